"""Measures one worker: start-up, bind, calls per second. A host of the fewest lines.

python3 runtimes/python/bench/load.py [--interpreter python3.11] [--seconds 2]
"""

import argparse
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time

WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "src", "worker.py")
FLAGS = ("-I", "-S", "-X", "utf8")

FUNCTIONS = {
    "sync": "def main(context):\n    return context.res.text('hello')\n",
    "sync, path and log": "def main(context):\n    context.log(context.req.path)\n"
    "    return context.res.json({'path': context.req.path})\n",
    "async": "async def main(context):\n    return context.res.text('hello')\n",
    "async, path and log": "async def main(context):\n    context.log(context.req.path)\n"
    "    return context.res.json({'path': context.req.path})\n",
    "sync, sleeps 5 ms": "import time\ndef main(context):\n    time.sleep(0.005)\n"
    "    return context.res.text('hello')\n",
    "async, sleeps 5 ms": "import asyncio\nasync def main(context):\n"
    "    await asyncio.sleep(0.005)\n    return context.res.text('hello')\n",
}


def text(value):
    raw = value.encode()
    return struct.pack(">I", len(raw)) + raw


def pairs(*items):
    return struct.pack(">H", len(items)) + b"".join(text(n) + text(v) for n, v in items)


def frame(kind, call, payload):
    return struct.pack(">IBI", len(payload) + 5, kind, call) + payload


CALL = (
    struct.pack(">IB", 15000, 1)
    + b"".join(map(text, ("GET", "http://localhost:3000/hello?a=1", "http", "localhost")))
    + struct.pack(">H", 3000)
    + text("/hello") + text("a=1") + pairs(("a", "1"))
    + pairs(("host", "localhost:3000"), ("accept", "*/*"), ("user-agent", "load/1"))
)  # fmt: skip


class Worker:
    def __init__(self, interpreter):
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
            "HEARTH_SOCKET": path,
        }
        began = time.perf_counter()
        self.process = subprocess.Popen([interpreter, *FLAGS, WORKER], env=environment)
        self.sock, _ = listener.accept()
        self.rest = b""
        self.frames = iter(())
        self.next()
        self.hello = time.perf_counter() - began
        listener.close()

    def next(self):
        while True:
            for found in self.frames:
                return found
            self.frames = iter(self.read())

    def read(self):
        data = self.rest + self.sock.recv(262144)
        start, found = 0, []
        while len(data) - start >= 9:
            length, kind, call = struct.unpack_from(">IBI", data, start)
            if start + 4 + length > len(data):
                break
            found.append((kind, call))
            start += 4 + length
        self.rest = data[start:]
        return found

    def bind(self, source):
        with open(os.path.join(self.folder.name, "main.py"), "w") as file:
            file.write(source)
        began = time.perf_counter()
        self.sock.sendall(
            frame(1, 0, struct.pack(">H", 1) + text(self.folder.name) + text("main.py") + pairs())
        )
        kind, _ = self.next()
        assert kind == 0x82, kind
        return time.perf_counter() - began

    def load(self, in_flight, seconds):
        number, done = 0, 0
        began = time.perf_counter()
        batch = []
        for _ in range(in_flight):
            number += 1
            batch.append(frame(2, number, CALL))
        self.sock.sendall(b"".join(batch))
        while True:
            batch = []
            for kind, _ in self.read():
                if kind == 0x84:
                    done += 1
                    number += 1
                    batch.append(frame(2, number, CALL))
                else:
                    assert kind == 0x87, hex(kind)
            took = time.perf_counter() - began
            if took > seconds:
                return done / took
            if batch:
                self.sock.sendall(b"".join(batch))

    def resident_kib(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

    def quiet(self):
        """Waits until the worker uses no CPU."""

        def spent():
            with open(f"/proc/{self.process.pid}/stat") as file:
                return file.read().split()[13:15]

        before = None
        while before != (before := spent()):
            time.sleep(0.05)

    def close(self):
        self.sock.close()
        self.process.wait()
        self.folder.cleanup()


def median(values):
    return sorted(values)[len(values) // 2]


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--interpreter", default="/usr/bin/python3")
    options.add_argument("--seconds", type=float, default=2)
    options.add_argument("--only", default="", help="functions whose name contains this")
    options = options.parse_args()

    hellos, cold, warm, resident = [], [], [], []
    for round in range(20):
        worker = Worker(options.interpreter)
        hellos.append(worker.hello)
        if round % 2:
            worker.quiet()
            resident.append(worker.resident_kib())
            warm.append(worker.bind(FUNCTIONS["sync"]))
        else:
            cold.append(worker.bind(FUNCTIONS["sync"]))
        worker.close()
    print(f"hello           {median(hellos) * 1e3:8.1f} ms")
    print(f"bind at once    {median(cold) * 1e3:8.1f} ms")
    print(f"bind, prepared  {median(warm) * 1e3:8.1f} ms")
    print(f"resident        {median(resident) / 1024:8.1f} MiB, unbound and prepared")
    for name, source in FUNCTIONS.items():
        if options.only not in name:
            continue
        worker = Worker(options.interpreter)
        worker.bind(source)
        rates = []
        for in_flight in (1, 16):
            rates.append(worker.load(in_flight, options.seconds))
            # What was in flight when the time was up.
            while select.select([worker.sock], [], [], 0.05)[0]:
                worker.read()
        print(f"{name:22} {rates[0]:8.0f} calls/s one by one {rates[1]:8.0f} calls/s at 16")
        worker.close()


if __name__ == "__main__":
    sys.exit(main())
