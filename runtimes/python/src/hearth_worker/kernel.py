"""The system calls that a zygote and its workers need and Python has no function for.

Prepared when imported, so that a fork finds them in memory. The interpreter's lock stays held
during them: nothing else of this process runs in between.
"""

import ctypes
import os
import platform
import struct

_NUMBERS = {
    # name: (x86_64, aarch64)
    "capset": (126, 91),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "get_robust_list": (274, 100),
    "landlock_restrict_self": (446, 446),
    "prctl": (157, 167),
    "seccomp": (317, 277),
    "set_robust_list": (273, 99),
    "setns": (308, 268),
    "write": (1, 64),
}
_MACHINES = ("x86_64", "aarch64")

NEWPID = 0x20000000  # CLONE_NEWPID

_CLONE_PIDFD = 0x1000
_CLONE_PARENT = 0x8000
_CLONE_CHILD_CLEARTID = 0x200000
_CLONE_CHILD_SETTID = 0x1000000
_CLONE_INTO_CGROUP = 0x200000000

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_TID_ADDRESS = 40
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

# No privileges for user 0, for good: NOROOT, NO_SETUID_FIXUP, KEEP_CAPS (locked only),
# NO_CAP_AMBIENT_RAISE, each with its lock.
_SECUREBITS = 0b11101111

_CAPABILITIES_3 = 0x20080522
_SECCOMP_SET_MODE_FILTER = 1
_EINVAL = 22

_call = ctypes.PyDLL(None, use_errno=True).syscall
_call.restype = ctypes.c_long
_call.argtypes = [ctypes.c_long] * 7
_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_in_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_in_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _function in (_before_fork, _after_fork_in_parent, _after_fork_in_child):
    _function.restype = None
    _function.argtypes = []


def _system_call(name):
    machine = platform.machine()
    if machine not in _MACHINES:
        raise OSError(38, f"{name}: not known on {machine}")
    number = _NUMBERS[name][_MACHINES.index(machine)]

    def call(first=0, second=0, third=0, fourth=0, fifth=0):
        result = _call(number, first, second, third, fourth, fifth, 0)
        if result == -1:
            error = ctypes.get_errno()
            raise OSError(error, f"{name}: {os.strerror(error)}")
        return result

    return call


_capset = _system_call("capset")
_clone3 = _system_call("clone3")
_close_range = _system_call("close_range")
_get_robust_list = _system_call("get_robust_list")
_prctl = _system_call("prctl")
_seccomp = _system_call("seccomp")
_set_robust_list = _system_call("set_robust_list")
_setns = _system_call("setns")
_write = _system_call("write")
restrict_self = _system_call("landlock_restrict_self")


def enter(process, namespaces):
    """Enters namespaces of a process; the one of PIDs holds for the next child."""
    _setns(process, namespaces)


class Fork:
    """Makes children that belong to this process's own parent.

    `os.fork` cannot: only the launcher may collect a worker, or a zygote that dies would take the
    workers' ends with it. What the C library's fork does besides the system call is done here: the
    thread's id in its own books, and the list of its robust locks. Locks need no care, as there is
    only one thread; what Python must do is done by Python.
    """

    def __init__(self):
        address = ctypes.c_long()
        _prctl(_PR_GET_TID_ADDRESS, ctypes.addressof(address))
        books = ctypes.c_int.from_address(address.value)
        # Not every C library keeps the id there.
        if books.value != os.getpid():
            raise OSError(38, "the C library keeps its thread's id elsewhere")
        head, length = ctypes.c_long(), ctypes.c_long()
        _get_robust_list(0, ctypes.addressof(head), ctypes.addressof(length))
        self._robust = head.value, length.value
        self._tid_address = address.value
        self._pidfd = ctypes.c_int()
        self._zero = ctypes.create_string_buffer(b"0", 1)
        self._arguments = (ctypes.c_uint64 * 11)()

    def __call__(self, group, groups):
        """Forks into a cgroup of version 2, if there is one, and joins those of version 1.

        Returns the child's PID and a pidfd, or None in the child, which has then been moved into its
        groups before it has used any memory.
        """
        flags = _CLONE_PARENT | _CLONE_PIDFD | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
        arguments = self._arguments
        arguments[0] = flags if group is None else flags | _CLONE_INTO_CGROUP
        arguments[1] = ctypes.addressof(self._pidfd)
        arguments[2] = self._tid_address
        arguments[10] = group or 0
        _before_fork()
        try:
            pid = _clone3(ctypes.addressof(arguments), ctypes.sizeof(arguments))
        except OSError:
            _after_fork_in_parent()
            raise
        if pid:
            _after_fork_in_parent()
            return pid, self._pidfd.value
        try:
            zero = ctypes.addressof(self._zero)
            for joined in groups:
                _write(joined, zero, 1)
            _set_robust_list(*self._robust)
        except OSError:
            os._exit(1)
        _after_fork_in_child()
        return None


def drop_capabilities():
    """Leaves no privilege, and no way to any."""
    _prctl(_PR_SET_SECUREBITS, _SECUREBITS)
    for number in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, number)
        except OSError as error:
            # Numbers beyond what this kernel knows.
            if error.errno != _EINVAL:
                raise
            break
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITIES_3, 0), 8)
    nothing = ctypes.create_string_buffer(24)
    _capset(ctypes.addressof(header), ctypes.addressof(nothing))


def renounce_new_privileges():
    """From now on no program gives this process more than it has."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def own_proc_files():
    """Gives the process's files in /proc to its own user, as the start of a program does."""
    _prctl(_PR_SET_DUMPABLE, 1)


def install_filter(instructions):
    """Puts the process under a system call filter, for good."""
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    # struct sock_fprog: how many instructions of 8 bytes, and where.
    program = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(instructions) // 8, ctypes.addressof(buffer)), 16
    )
    _seccomp(_SECCOMP_SET_MODE_FILTER, 0, ctypes.addressof(program))


def close_all_but_standard():
    """Closes every descriptor from 3 on."""
    _close_range(3, 0xFFFFFFFF, 0)
