"""The worker's life: connect, hello, prepare, bind, serve."""

import _socket
import os
import sys
from _signal import SIG_IGN, SIGINT, signal

from . import VERSION, frames

# What nearly every function needs, what binding needs first.
COMMON = (
    "hearth_worker.session", "hearth_worker.loading", "hearth_worker.threads",
    "hearth_worker.reply", "concurrent.futures.thread", "json", "traceback", "importlib.util",
    "hearth_worker.tasks", "datetime", "typing", "dataclasses", "random", "hashlib", "base64",
    "uuid", "urllib.parse", "http.client",
)  # fmt: skip


def run(where, token=None, is_prepared=False):
    """Serves the host that listens at `where`: a path, or `tcp://address:port`. Does not return."""
    sock, preface = _connect(where, token)
    sock.sendall(
        preface
        + frames.hello(
            "python",
            sys.version.split()[0],
            VERSION,
            frames.ATTRIBUTES_OUTPUT | frames.REALLY_CANCELS,
        )
    )
    # A terminal's Ctrl-C reaches every process of its group; the host decides when to end.
    signal(SIGINT, SIG_IGN)
    if is_prepared:
        from .zygote import rehearse

        rehearse()
    else:
        prepare(lambda: _is_readable(sock))
    _serve(sock)


def _connect(where, token):
    """The socket, and what must be said on it before anything else."""
    if not where.startswith("tcp://"):
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        sock.connect(where)
        return sock, b""
    host, _, port = where[len("tcp://") :].rpartition(":")
    if not token:
        sys.exit("hearth-worker: HEARTH_TOKEN is not set; over TCP the host asks for it")
    family = _socket.AF_INET6 if host.startswith("[") else _socket.AF_INET
    sock = _socket.socket(family, _socket.SOCK_STREAM)
    sock.connect((host.strip("[]"), int(port)))
    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return sock, f"HEARTH {token}\n".encode()


def prepare(hurry=lambda: False):
    """Imports what functions commonly use, until `hurry()`.

    A process that forks workers calls this before it forks: nothing here depends on a connection.
    """
    import gc

    for name in COMMON:
        if hurry():
            break
        __import__(name)
    gc.collect()
    gc.freeze()


def _is_readable(sock):
    import select

    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _serve(sock):
    from . import native
    from .outbox import Outbox
    from .session import Session

    splitter = frames.Splitter()
    session = Session(sock, splitter, Outbox(sock))
    native.capture(session.outside)
    native.inherit()
    try:
        version, code_dir, entrypoint, environment = frames.bind(_first_frame(sock, splitter))
        if version != frames.VERSION:
            raise frames.ProtocolError(f"version {version}")
    except frames.ProtocolError as error:
        session.broken(error)
    session.serve(_bind(session, code_dir, entrypoint, environment))


def _first_frame(sock, splitter):
    """Waits for a `bind`, which must come alone, and returns its payload."""
    received = []
    while not received:
        data = _receive(sock)
        received = splitter.feed(data)
    kind, _, payload = received[0]
    if kind != frames.BIND or len(received) > 1 or splitter.wanted:
        raise frames.ProtocolError("the first frame must be a bind, and be answered")
    return payload


def _receive(sock):
    try:
        data = sock.recv(65_536)
    except OSError:
        data = b""
    if not data:
        os._exit(0)
    return data


def _bind(session, code_dir, entrypoint, environment):
    """Loads the function and answers. Returns what serves it."""
    from . import loading

    try:
        main = loading.load(code_dir, entrypoint, environment)
    except loading.BindError as error:
        session.outbox.put(frames.bind_failed(error.reason, error.message))
        session.outside.flush()
        session.outbox.flush()
        while True:
            _receive(session.sock)
    if loading.is_asynchronous(main):
        from .tasks import Tasks as Engine
    else:
        from .threads import Threads as Engine
    engine = Engine(main, session)
    session.outside.flush()
    session.outbox.put(frames.BOUND)
    session.outbox.flush()
    return engine
