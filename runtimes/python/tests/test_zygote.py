"""Forked workers, as a launcher would ask for them. Needs root: a child enters namespaces."""

import array
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import unittest

import host

ALLOW_ALL = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000).hex()
NEW_USER_AND_UTS = 0x14000000


class Zygote:
    """A zygote, and an instance that it can fork into."""

    def __init__(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock = ours
        self.sock.settimeout(host.PATIENCE)
        # The number that a zygote expects is this process's own business, so a shell moves it.
        command = [sys.executable, "-I", "-S", "-X", "utf8", str(host.WORKER), "--zygote"]
        script = f'exec "$@" 3<&{theirs.fileno()}'
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", script, "sh", *command], env={}, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self.init = subprocess.Popen(
            ["unshare", "--map-user=1000", "--map-group=1000", "--pid", "--uts", "--fork",
             "--kill-child", "sh", "-c", "echo; sleep 1000"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        self.init.stdout.read(1)
        children = f"/proc/{self.init.pid}/task/{self.init.pid}/children"
        with open(children) as file:
            self.inside = os.pidfd_open(int(file.read().split()[0]))
        self.ready = json.loads(self.sock.recv(1000))

    def fork(self, group=None, groups=()):
        """Asks for a worker: its PID, and the channel to it."""
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.settimeout(host.PATIENCE)
        descriptors = [self.inside, theirs.fileno(), *([] if group is None else [group]), *groups]
        socket.send_fds(self.sock, [b"false" if group is None else b"true"], descriptors)
        theirs.close()
        data, descriptors, _, _ = socket.recv_fds(self.sock, 1000, 4)
        for descriptor in descriptors:
            os.close(descriptor)
        answer = json.loads(data)
        return answer.get("Forked"), channel, len(descriptors)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()
        self.process.wait(host.PATIENCE)
        self.init.kill()
        self.init.communicate()
        os.close(self.inside)


class Process:
    """A worker that is a child of this process, with what `subprocess.Popen` has."""

    def __init__(self, pid, read):
        self.pid = pid
        self._read = read
        self._status = None

    def wait(self, _timeout=None):
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def kill(self):
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def communicate(self):
        self.wait()
        with open(self._read, closefd=True) as file:
            return "", file.read()


class ForkedWorker(host.Worker):
    """A worker like any other, but for its beginning."""

    def __init__(self, zygote, *arguments, **fields):
        self._zygote = zygote
        super().__init__(*arguments, **fields)

    def _listen(self):
        self._temporary_is_reachable()
        path = str(self.folder / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            os.chmod(path, 0o777)
            listener.listen(1)
            listener.settimeout(host.PATIENCE)
            pid, channel, _ = self._zygote.fork()
            read, write = os.pipe()
            self.process = Process(pid, read)
            socket.send_fds(channel, [json.dumps(details(path)).encode()], [write])
            os.close(write)
            self.birth = json.loads(channel.recv(1000))
            channel.close()
            self.sock, _ = listener.accept()
        self.sock.settimeout(host.PATIENCE)
        self._buffer = b""

    def _temporary_is_reachable(self):
        os.chmod(self.folder, 0o755)


def details(path):
    return {
        "namespaces": NEW_USER_AND_UTS,
        "user": 1000,
        "directory": "/",
        "environment": ["PATH=/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8", f"HEARTH_SOCKET={path}"],
        "resources": {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 100},
        "filter": ALLOW_ALL,
        "has_output": True,
    }


@unittest.skipUnless(os.geteuid() == 0, "entering namespaces needs root")
class Forked(unittest.TestCase):
    def setUp(self):
        self.zygote = Zygote()
        self.addCleanup(self.zygote.__exit__)
        self.assertEqual(self.zygote.ready, "Ready")

    def test_a_forked_worker_serves_like_any_other(self):
        source = """
            import asyncio, os, signal, subprocess, sys, threading

            async def main(context):
                print("printed", len(sys.argv))
                got = []
                signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
                main_thread = threading.main_thread()
                other = threading.Thread(
                    target=lambda: signal.pthread_kill(main_thread.ident, signal.SIGUSR1)
                )
                other.start()
                other.join()
                await asyncio.sleep(0)
                ran = subprocess.run(["true"]).returncode
                child = os.fork()
                if child == 0:
                    os._exit(7)
                ended = os.waitpid(child, 0)[1] >> 8
                names = sorted(os.environ)
                return context.res.json([
                    main_thread.native_id == os.getpid(), os.getpid() < 100, got, ran, ended,
                    os.getuid(), names, len(os.listdir("/proc/self/fd")) < 12,
                    await asyncio.to_thread(abs, -1), __import__("gc").isenabled(),
                ])
        """
        with ForkedWorker(self.zygote, source) as worker:
            self.assertIs(worker.bound, True, worker.bound)
            self.assertIn("Ready", worker.birth)
            reply = worker.call()
            self.assertEqual(
                reply.json,
                [True, True, [1], 0, 7, 1000, ["HOME", "LANG", "PATH"], True, 1, True],
            )
            self.assertEqual(reply.out, "printed 1\n")
            worker.drain()
            self.assertEqual(worker.exit_code(), 0)

    def test_workers_of_one_zygote_differ_in_what_is_random(self):
        source = """
            import os, random, uuid

            def main(context):
                numbers = [random.random(), random.getrandbits(64), str(uuid.uuid4()), str(uuid.uuid1())]
                return context.res.json([*numbers, os.urandom(8).hex()])
        """
        seen = []
        for _ in range(3):
            with ForkedWorker(self.zygote, source) as worker:
                seen += worker.call().json
        self.assertEqual(len(set(seen)), len(seen))

    def test_what_fails_is_said_with_its_step(self):
        for wrong, step, errno in (
            ({"directory": "/nonexistent"}, "enter the runtime's directory", 2),
            ({"namespaces": 1}, "enter the instance", 22),
            ({"filter": ""}, "install the system call filter", 22),
        ):
            pid, channel, _ = self.zygote.fork()
            channel.send(json.dumps({**details("/"), "has_output": False, **wrong}).encode())
            said = json.loads(channel.recv(1000))
            self.assertEqual(said, {"Failed": {"step": step, "errno": errno}})
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 1)
            channel.close()

    def test_a_child_that_nobody_wants_ends(self):
        pid, channel, descriptors = self.zygote.fork()
        self.assertEqual(descriptors, 1, "a pidfd comes with the answer")
        channel.close()
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)

    def test_a_child_begins_in_its_groups(self):
        with open("/proc/mounts") as file:
            mounts = [line.split() for line in file]
        found = 0
        for kind, options, name, flags in (
            ("cgroup2", "", "cgroup.procs", os.O_PATH | os.O_DIRECTORY),
            ("cgroup", "pids", "tasks", os.O_WRONLY),
        ):
            places = [m[1] for m in mounts if m[2] == kind and options in m[3].split(",") + [""]]
            if not places or not os.access(places[0], os.W_OK):
                continue
            found += 1
            place = os.path.join(places[0], f"hearth-test-{os.getpid()}")
            os.mkdir(place)
            self.addCleanup(os.rmdir, place)
            path = place if kind == "cgroup2" else os.path.join(place, name)
            descriptor = os.open(path, flags)
            if kind == "cgroup2":
                pid, channel, _ = self.zygote.fork(group=descriptor)
            else:
                pid, channel, _ = self.zygote.fork(groups=[descriptor])
            os.close(descriptor)
            # Once it reads from its channel it has joined.
            channel.send(json.dumps({**details("/"), "has_output": False}).encode())
            channel.recv(1000)
            with open(os.path.join(place, "cgroup.procs")) as file:
                self.assertEqual(file.read().split(), [str(pid)])
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            channel.close()
        if not found:
            self.skipTest("no cgroups to make")

    def test_a_fork_that_fails_leaves_a_zygote_that_works(self):
        broken = os.open("/", os.O_RDONLY)
        self.addCleanup(os.close, broken)
        rights = array.array("i", [broken, broken])
        self.zygote.sock.sendmsg([b"false"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        said = json.loads(self.zygote.sock.recv(1000))
        self.assertEqual(said["Failed"]["step"], "fork a worker")
        with ForkedWorker(self.zygote, "def main(context):\n    return 1\n") as worker:
            self.assertIs(worker.bound, True)

    def test_a_zygote_ends_with_its_launcher(self):
        self.zygote.sock.close()
        self.assertEqual(self.zygote.process.wait(host.PATIENCE), 0)


if __name__ == "__main__":
    unittest.main()
