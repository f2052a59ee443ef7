"""What the host asks of a bound worker, frame by frame."""

import os
from _thread import allocate_lock

from . import frames, native
from .call import Call
from .frames import ProtocolError
from .ticker import Ticker

READ_SIZE = 65_536

# A window is sent for every so many bytes of a request's body.
GRANT_SIZE = 131_072

#: How long cancelled calls may clean up after the host has gone.
GRACE_SECONDS = 0.1

BROKEN = 70

_DONT_WAIT = 0x40  # MSG_DONTWAIT of Linux


class Session:
    """The calls of this worker, and the one reader of its socket at a time."""

    def __init__(self, sock, splitter, outbox):
        self.sock = sock
        self.outbox = outbox
        self.outside = native.Output(0, True, outbox)
        #: The calls that are not over, by number.
        self.calls = {}
        self._splitter = splitter
        self._ticker = Ticker(outbox)
        self._engine = None
        self._draining = False
        self._reading = allocate_lock()
        os.register_at_fork(after_in_child=self._abandon)

    def serve(self, engine):
        """Answers calls with `engine`. Does not return."""
        self._engine = engine
        self._ticker.on_tick = engine.on_tick
        engine.serve()

    def receive(self, to_the_end=False):
        """Reads what there is, and acts on it. Only one thread does so at a time.

        The last edge of a closed connection may be that of its last data, so the end itself must
        be looked for: then `to_the_end` is set.
        """
        with self._reading:
            try:
                self._drain_socket(to_the_end)
            except ProtocolError as error:
                self.broken(error)

    def rest(self):
        """Ends a draining worker that has nothing left to do."""
        if self._draining and not self.calls:
            self.exit()

    def exit(self):
        """Ends the process, whatever its threads do, once everything is sent."""
        self.outside.flush()
        self.outbox.finish()
        os._exit(0)

    def broken(self, error):
        """Ends the process because of a frame that cannot be."""
        os.write(2, f"hearth-worker: the host broke the protocol: {error}\n".encode())
        os._exit(BROKEN)

    def _abandon(self):
        # A forked process that returns from `main` ends, instead of taking its parent's calls.
        self.calls = {}
        self._draining = True

    def _drain_socket(self, to_the_end):
        while True:
            size = max(READ_SIZE, self._splitter.wanted)
            try:
                data = self.sock.recv(size, _DONT_WAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            received = self._splitter.feed(data)
            if len(received) > 1:
                self._ticker.want()
            for kind, number, payload in received:
                self._act(kind, number, payload)
            # Saves asking a socket that a short read has shown to be empty.
            if len(data) < size and not to_the_end:
                return

    def _act(self, kind, number, payload):
        if kind == frames.CALL:
            self._call(number, payload)
        elif kind == frames.BODY:
            self._body(number, frames.body(payload))
        elif kind == frames.END:
            frames.empty(payload)
            self._end(number)
        elif kind == frames.CANCEL:
            frames.cancel(payload)
            self._cancel(number)
        elif kind == frames.WINDOW:
            self._window(number, frames.window(payload))
        elif kind == frames.DRAIN:
            frames.empty(payload)
            self._draining = True
        else:
            raise ProtocolError("a second bind")

    def _call(self, number, payload):
        flags = frames.call_flags(payload)
        if number in self.calls:
            raise ProtocolError(f"call {number} is not over")
        if self._draining:
            raise ProtocolError("a call after drain")
        call = self.calls[number] = Call(number, flags, payload, self)
        if not call.gathering:
            self._engine.start(call)

    def _body(self, number, piece):
        call = self.calls.get(number)
        if call is None:
            return
        if not call.gathering:
            raise ProtocolError(f"body for call {number}, whose body is complete")
        call.rest.append(piece)
        call.received += len(piece)
        if call.received >= GRANT_SIZE:
            self.outbox.put(frames.grant(number, call.received))
            call.received = 0

    def _end(self, number):
        call = self.calls.get(number)
        if call is None:
            return
        if not call.gathering:
            raise ProtocolError(f"a second end of call {number}'s body")
        call.gathering = 0
        self._engine.start(call)

    def _cancel(self, number):
        call = self.calls.get(number)
        if call is not None:
            call.cancel()

    def _window(self, number, size):
        call = self.calls.get(number)
        if call is not None:
            call.grant(size)

    def _lost(self):
        """Ends the process soon: the host has closed the connection."""
        self._draining = True
        self.outbox.close()
        for call in list(self.calls.values()):
            call.cancel()
        self.rest()
        self._engine.linger(GRACE_SECONDS)
