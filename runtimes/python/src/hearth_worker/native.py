"""Attributes what a function prints to the call that printed it.

`current` is the call whose code runs here. asyncio carries it into tasks by itself; threads, and
functions handed to a `ThreadPoolExecutor`, get it from `inherit`.
"""

import io
import os
import sys
from contextvars import ContextVar, copy_context
from functools import wraps

from . import frames

current = ContextVar("hearth_call", default=None)

# Text is held back until a newline, but no more than this; as bytes it always fits a frame.
PIECE_LIMIT = 8192


class Output:
    """The output of one call, or (number 0) of everything outside of calls."""

    __slots__ = ("id", "logging", "outbox", "over", "_pieces", "_size", "_stream")

    def __init__(self, number, logging, outbox):
        self.id = number
        self.logging = logging
        self.outbox = outbox
        self.over = False
        self._pieces = []
        self._size = 0
        self._stream = 0

    def log(self, stream, text):
        """Sends one finished entry, behind what was printed before it."""
        with self.outbox.lock:
            if self.over:
                return
            self.release()
            self.outbox.put(frames.log(self.id, stream, text))
        self.send()

    def write(self, stream, text):
        """Takes native output, unless the call is over. Complete lines go out at once."""
        with self.outbox.lock:
            if self.over:
                return False
            if not self.logging:
                return True
            if stream != self._stream:
                self.release()
                self._stream = stream
            self._pieces.append(text)
            self._size += len(text)
            if "\n" not in text and self._size < PIECE_LIMIT:
                return True
            self.release()
        self.send()
        return True

    def flush(self):
        """Sends an incomplete line too, unless the call is over."""
        if self.over:
            return False
        if self._pieces:
            with self.outbox.lock:
                self.release()
            self.send()
        return True

    def release(self):
        """Makes frames of what is pending. The caller holds the outbox's lock."""
        if not self._pieces:
            return
        text = "".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        for start in range(0, len(text), PIECE_LIMIT):
            piece = text[start : start + PIECE_LIMIT]
            self.outbox.put(frames.log(self.id, self._stream, piece))

    def send(self):
        """Sends what has become a frame, unless that is about to happen anyway."""
        if not self.outbox.held or self.outbox.is_full:
            self.outbox.flush()


class Stream(io.TextIOBase):
    """Standard output or standard error, of whichever call is writing."""

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True
    write_through = False
    mode = "w"

    def __init__(self, descriptor, code, outside):
        self.name = "<stdout>" if descriptor == 1 else "<stderr>"
        self.buffer = Buffer(self)
        self._descriptor = descriptor
        self._code = code
        self._outside = outside
        self._direct = False

    def bypass(self):
        """From now on writes to the process's own descriptor."""
        self._direct = True

    def write(self, text):
        """Writes to the current call; outside of one, or after its end, to the instance's log."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._direct:
            os.write(self._descriptor, frames.utf8(text))
        elif text:
            call = current.get()
            if call is None or not call.write(self._code, text):
                self._outside.write(self._code, text)
        return len(text)

    def flush(self):
        """Sends what is pending although its line is not complete."""
        call = current.get()
        if call is None or not call.flush():
            self._outside.flush()

    def fileno(self):
        """The process's own descriptor: what is written to it is not attributed to a call."""
        return self._descriptor

    def isatty(self):
        return False

    def writable(self):
        return True

    def close(self):
        """Does nothing: the next call needs the stream."""

    def reconfigure(self, **_options):
        """Accepts the options of `io.TextIOWrapper`; none of them applies."""


class Buffer(io.RawIOBase):
    """The `buffer` of a `Stream`: takes bytes."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, data):
        raw = bytes(data)
        self._stream.write(raw.decode("utf-8", "backslashreplace"))
        return len(raw)

    def flush(self):
        self._stream.flush()

    def fileno(self):
        return self._stream.fileno()

    def writable(self):
        return True

    def close(self):
        """Does nothing: the next call needs the stream."""


def capture(outside):
    """Replaces the standard streams; `outside` takes what no running call has written.

    A process that a function forks has no business with the host, so there the streams lead to
    the process's own descriptors again.
    """
    sys.stdout = sys.__stdout__ = Stream(1, frames.STDOUT, outside)
    sys.stderr = sys.__stderr__ = Stream(2, frames.STDERR, outside)
    os.register_at_fork(after_in_child=sys.stdout.bypass)
    os.register_at_fork(after_in_child=sys.stderr.bypass)


def inherit():
    """Makes threads begin in the context of the call that started them."""
    from concurrent.futures.thread import ThreadPoolExecutor
    from threading import Thread

    start, submit = Thread.start, ThreadPoolExecutor.submit

    @wraps(start)
    def start_in_context(self):
        if current.get() is not None:
            _run_within(self, copy_context())
        start(self)

    @wraps(submit)
    def submit_in_context(self, fn, /, *args, **kwargs):
        if current.get() is None:
            return submit(self, fn, *args, **kwargs)
        return submit(self, copy_context().run, fn, *args, **kwargs)

    Thread.start = start_in_context
    ThreadPoolExecutor.submit = submit_in_context


def _run_within(thread, context):
    run = thread.run

    def run_in_context():
        del thread.run  # the thread must not keep itself alive through its own method
        context.run(run)

    thread.run = run_in_context
