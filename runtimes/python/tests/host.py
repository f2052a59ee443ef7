"""The host's side of the protocol, for tests: starts a worker and speaks frames with it."""

import json
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent
WORKER = FOLDER / "src" / "worker.py"
VECTORS = json.loads(
    (FOLDER.parent.parent / "docs" / "protocols" / "worker-vectors.json").read_text("utf-8")
)
PATIENCE = 20

KINDS = {
    0x81: "hello", 0x82: "bound", 0x83: "bind failed", 0x84: "head", 0x85: "body", 0x86: "end",
    0x87: "log", 0x88: "failed", 0x89: "window",
}  # fmt: skip


def string(value):
    raw = value.encode()
    return struct.pack(">I", len(raw)) + raw


def pairs(items):
    return struct.pack(">H", len(items)) + b"".join(string(n) + string(v) for n, v in items)


def frame(kind, call=0, payload=b""):
    return struct.pack(">IBI", len(payload) + 5, kind, call) + payload


class Reader:
    """Reads the fields of a payload."""

    def __init__(self, payload):
        self.payload = payload
        self.at = 0

    def number(self, size):
        self.at += size
        return int.from_bytes(self.payload[self.at - size : self.at], "big")

    def string(self):
        size = self.number(4)
        self.at += size
        return self.payload[self.at - size : self.at].decode()

    def pairs(self):
        return [(self.string(), self.string()) for _ in range(self.number(2))]

    def rest(self):
        return self.payload[self.at :]


class Reply:
    """Everything a worker has said about one call."""

    def __init__(self):
        self.status = self.headers = self.failed = None
        self.body = b""
        self.entries = []
        self.over = False
        self.granted = 0

    def _stream(self, *wanted):
        return [text for stream, text in self.entries if stream in wanted]

    @property
    def logs(self):
        return self._stream(1)

    @property
    def errors(self):
        return self._stream(2)

    @property
    def out(self):
        return "".join(self._stream(3))

    @property
    def err(self):
        return "".join(self._stream(4))

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        return json.loads(self.body)

    def take(self, kind, payload):
        if self.over:
            raise AssertionError(f"{kind} for a call that is over")
        reader = Reader(payload)
        if kind == "head":
            self.status, more = reader.number(2), reader.number(1)
            self.headers = reader.pairs()
            self.body += reader.rest()
            self.over = not more
        elif kind == "body":
            assert payload, "an empty body frame"
            self.body += payload
        elif kind == "end":
            self.over = True
        elif kind == "log":
            self.entries.append((payload[0], payload[1:].decode()))
        elif kind == "failed":
            self.failed = (reader.number(1), reader.string())
            self.over = True
        elif kind == "window":
            self.granted += reader.number(4)
        else:
            raise AssertionError(f"{kind} for a call")


class Worker:
    """A worker process, bound to a function if `source` or `files` are given."""

    def __init__(self, source=None, files=None, entrypoint="main.py", environment=None):
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self.code = self.folder / "code"
        self.code.mkdir()
        self._listen()
        self.instance = Reply()
        self.calls = {}
        self.hello = self.bound = None
        self._last = 0
        self._until(lambda: self.hello)
        if source is not None:
            files = {entrypoint: source}
        if files is not None:
            self.bind(files, entrypoint, environment or {})

    def _listen(self):
        path = str(self.folder / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(PATIENCE)
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", str(WORKER)],
                env={
                    "PATH": "/usr/bin:/bin",
                    "HOME": "/tmp",
                    "LANG": "C.UTF-8",
                    "HEARTH_SOCKET": path,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            self.sock, _ = listener.accept()
        self.sock.settimeout(PATIENCE)
        self._buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.communicate()
            self._temporary.cleanup()

    def write(self, files):
        for name, source in files.items():
            path = self.code / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source), "utf-8")

    def bind(self, files, entrypoint="main.py", environment=None):
        """Binds and waits for the answer, which is left in `bound`: True, or reason and message."""
        self.write(files)
        self.send(self.bind_frame(entrypoint, environment or {}))
        self._until(lambda: self.bound)

    def bind_frame(self, entrypoint="main.py", environment=None):
        return frame(
            0x01,
            0,
            struct.pack(">H", 1)
            + string(str(self.code))
            + string(entrypoint)
            + pairs(list((environment or {}).items())),
        )

    def send(self, *parts):
        self.sock.sendall(b"".join(parts))

    def call_frame(
        self,
        path="/",
        method="GET",
        headers=(),
        body=b"",
        query="",
        logging=True,
        more=False,
        number=None,
    ):
        """A call's frame, and its number."""
        if number is None:
            self._last = number = self._last + 1
        self.calls[number] = Reply()
        items = [part.partition("=")[::2] for part in query.split("&") if part]
        url = f"http://localhost:3000{path}" + (f"?{query}" if query else "")
        payload = (
            struct.pack(">IB", 15000, logging | more << 1)
            + b"".join(map(string, (method, url, "http", "localhost")))
            + struct.pack(">H", 3000)
            + string(path)
            + string(query)
            + pairs(items)
            + pairs([("host", "localhost:3000"), *headers])
            + body
        )
        return frame(0x02, number, payload), number

    def begin(self, *arguments, **fields):
        """Sends a call and returns its number."""
        data, number = self.call_frame(*arguments, **fields)
        self.send(data)
        return number

    def call(self, *arguments, **fields):
        """Sends a call and waits for its end."""
        return self.end(self.begin(*arguments, **fields))

    def end(self, number):
        reply = self.calls[number]
        self._until(lambda: reply.over)
        return reply

    def until(self, condition):
        """Reads frames until `condition()`."""
        self._until(condition)

    def cancel(self, number, reason=1):
        self.send(frame(0x05, number, bytes([reason])))

    def grant(self, number, size):
        self.send(frame(0x07, number, struct.pack(">I", size)))

    def drain(self):
        self.send(frame(0x06))

    def exit_code(self):
        """Waits until the worker has closed the connection and ended."""
        while self.read():
            pass
        return self.process.wait(PATIENCE)

    def _until(self, condition):
        while not condition():
            if not self.read():
                raise AssertionError(f"the worker is gone: {self.process.communicate()[1]}")

    def read(self):
        """Takes what the worker sends next. False at the end."""
        try:
            data = self.sock.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        self._buffer += data
        while len(self._buffer) >= 9:
            length, kind, call = struct.unpack_from(">IBI", self._buffer)
            if len(self._buffer) < 4 + length:
                break
            payload = self._buffer[9 : 4 + length]
            self._buffer = self._buffer[4 + length :]
            self._take(KINDS[kind], call, payload)
        return bool(data)

    def _take(self, kind, call, payload):
        reader = Reader(payload)
        if kind == "hello":
            self.hello = (
                reader.number(2), reader.number(2), reader.string(), reader.string(),
                reader.string(), reader.number(4), reader.number(4),
            )  # fmt: skip
        elif kind == "bound":
            self.bound = True
        elif kind == "bind failed":
            self.bound = (reader.number(1), reader.string())
        else:
            (self.calls[call] if call else self.instance).take(kind, payload)
