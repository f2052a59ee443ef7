"""Forks workers into finished sandboxes: a spare then costs a fork, not the start of Python.

```text
launcher ── fork: init's pidfd, a channel, cgroups ──► zygote ── clone ──► child
    ▲  ▲───────── Forked: the child's pidfd ──────────────┘                  │
    │                                                                        │
    └──────── channel: what the instance is like ──► ◄── Ready, Failed ──────┘
```

A zygote has everything imported that workers have, and nothing of any instance: what the launcher
says of one is read by the child. Its words are in docs/protocols/worker.md ("Zygotes").
"""

import _socket
import gc
import json
import os
import resource
import threading
from array import array

from . import connection, kernel

# The launcher's socket.
_LAUNCHER = 3
_LONGEST = 131_072
_MOST_DESCRIPTORS = 8


def serve():
    """Forks on request. Returns in each child, which is then a worker that has its environment."""
    launcher = _socket.socket(fileno=_LAUNCHER)
    fork = kernel.Fork()
    connection.prepare()
    # A collection would touch, and so copy, what is shared with the children.
    gc.disable()
    _say(launcher, "Ready")
    while True:
        wants_group, descriptors = _hear(launcher)
        if not descriptors:
            os._exit(0)
        init, channel, *groups = descriptors
        group = groups.pop(0) if wants_group else None
        try:
            # For the next child only: a process itself cannot change where its PID is.
            kernel.enter(init, kernel.NEWPID)
            child = fork(group, groups)
        except OSError as error:
            _say(launcher, {"Failed": {"step": "fork a worker", "errno": error.errno}})
            child = ()
        if child is None:
            launcher.close()
            return _become_worker(_socket.socket(fileno=channel), init)
        if child:
            pid, pidfd = child
            _say(launcher, {"Forked": pid}, pidfd)
            os.close(pidfd)
        for descriptor in descriptors:
            os.close(descriptor)


def _say(sock, word, descriptor=None):
    rights = []
    if descriptor is not None:
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", [descriptor]))]
    try:
        sock.sendmsg([json.dumps(word).encode()], rights)
    except OSError:
        # A launcher that is gone takes everything of its own with it.
        os._exit(0)


def _hear(sock):
    size = array("i").itemsize
    data, rights, _, _ = sock.recvmsg(
        _LONGEST, _socket.CMSG_SPACE(_MOST_DESCRIPTORS * size), _socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array("i")
    for _, _, numbers in rights:
        descriptors.frombytes(numbers[: len(numbers) - len(numbers) % size])
    if not data:
        os._exit(0)
    return json.loads(data), list(descriptors)


class _Steps:
    """Remembers what is being done, for whoever asks why it failed."""

    now = ""


def _become_worker(channel, init):
    steps = _Steps()
    try:
        _enter(channel, init, steps)
    except OSError as error:
        _say(channel, {"Failed": {"step": steps.now, "errno": error.errno or 5}})
        os._exit(1)
    # Nobody hears of what comes later: the worker runs.
    _say(channel, {"Ready": os.getpid()})
    channel.detach()
    kernel.close_all_but_standard()
    # What Python itself forgets after a fork.
    threading.main_thread()._set_native_id()
    gc.enable()


def _enter(channel, init, steps):
    details, descriptors = _hear(channel)
    output = descriptors.pop(0) if details["has_output"] else None
    steps.now = "enter the instance"
    kernel.enter(init, details["namespaces"])
    steps.now = "lead a session"
    os.setsid()
    steps.now = "open the standard streams"
    _open_standard(output)
    steps.now = "enter the runtime's directory"
    os.umask(0o022)
    os.chdir(details["directory"])
    steps.now = "become the instance's user"
    _become(details["user"])
    steps.now = "set resource limits"
    for name, limit in details["resources"].items():
        _lower(getattr(resource, name), limit)
    steps.now = "drop capabilities"
    kernel.drop_capabilities()
    steps.now = "renounce new privileges"
    kernel.renounce_new_privileges()
    steps.now = "show itself to its own user"
    kernel.own_proc_files()
    if descriptors:
        steps.now = "set up Landlock"
        kernel.restrict_self(descriptors.pop(0))
    _take_environment(details["environment"])
    instructions = bytes.fromhex(details["filter"])
    steps.now = "install the system call filter"
    kernel.install_filter(instructions)


def _open_standard(output):
    null = os.open("/dev/null", os.O_RDWR | os.O_NOCTTY)
    for number, source in ((0, null), (1, output), (2, output)):
        os.dup2(null if source is None else source, number)


def _become(user):
    try:
        os.setgroups([])
    except PermissionError:
        # Without root the kernel insists on the groups one has.
        pass
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _lower(which, limit):
    """Never above what the launcher has itself."""
    highest = resource.getrlimit(which)[1]
    if highest != resource.RLIM_INFINITY:
        limit = min(limit, highest)
    resource.setrlimit(which, (limit, limit))


def _take_environment(variables):
    import _locale

    # The interpreter may have set LC_CTYPE for itself.
    os.environ.clear()
    for variable in variables:
        name, _, value = variable.partition("=")
        os.environ[name] = value
    try:
        _locale.setlocale(_locale.LC_CTYPE, "")
    except _locale.Error:
        # As at a start: a locale that is not there is no locale.
        pass


# Takes the ways that most functions take: imports, a class, text, JSON.
_SAMPLE = """
import json, os
from datetime import datetime
class Sample:
    def __init__(self, **fields):
        self.fields = fields
    def text(self):
        return json.dumps({"at": f"{datetime.now():%Y}", **self.fields})
def main(*arguments):
    return json.loads(Sample(name="sample", number=1).text())
"""


def rehearse():
    """Touches what binding and a first call will touch, while nobody waits.

    A forked process shares its memory with the zygote until it writes to it, and in Python even
    to look at an object is to write. Each page costs microseconds that a call would have to wait.
    """
    from importlib.machinery import ModuleSpec, SourceFileLoader
    from importlib.util import module_from_spec

    from . import frames, loading

    scope = module_from_spec(ModuleSpec("sample", SourceFileLoader("sample", "/sample.py"))).__dict__
    exec(compile(_SAMPLE, "/sample.py", "exec"), scope)
    scope["main"]()
    loading.is_asynchronous(scope["main"])
    os.path.isfile(os.path.normpath(os.path.join("/mnt", "sample.py")))
