"""A neighbour that does harm for as long as a call asks for: `?as=frames&seconds=4`."""

import os
import socket
import threading
import time

# A frame of length 6 with a log entry (0x87) of no call (0), native output (3), without a text:
# the least that the host has to read and to look at (docs/protocols/worker.md).
ENTRY = bytes.fromhex("00000006870000000003")
PIECE = 64 << 10


def connection():
    """The descriptor of the worker's connection to the host."""
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as found:
                if found.family == socket.AF_UNIX and found.type == socket.SOCK_STREAM:
                    return int(name)
        except OSError:
            pass
    raise RuntimeError("there is no connection")


def write(descriptor, piece, until):
    while time.monotonic() < until:
        rest = piece
        # A frame that was begun is ended, or the host would take the worker for broken.
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def frames(until):
    """Thousands of frames in each write, for next to no processor time of its own."""
    write(connection(), ENTRY * (PIECE // len(ENTRY)), until)


def lines(until):
    """The same as native output, which the host reads from a pipe."""
    write(1, b"\n" * PIECE, until)


def hog(until):
    while time.monotonic() < until:
        pass


def main(context):
    query = context.req.query
    work = {"frames": frames, "lines": lines, "hog": hog}[query["as"]]
    # The reply is written before anything else is.
    begun = time.monotonic() + 0.1
    until = begun + float(query["seconds"])

    def do():
        time.sleep(0.1)
        work(until)

    threading.Thread(target=do, daemon=True).start()
    return context.res.text("begun")
