"""One call: its output, its credit, its end."""

from _thread import allocate_lock, get_ident

from . import frames
from .context import Context, Request
from .native import Output


class Cancelled(BaseException):
    """Raised in the code of a sync function whose call was cancelled."""


class Call(Output):
    """A call from its first frame to the one that ends it.

    Cancelling a sync call means raising `Cancelled` in the thread that runs it, and that can
    strike between any two instructions. So a call is exposed only while the function's own code
    runs; see `step`.
    """

    __slots__ = (
        "cancelled", "gathering", "received", "rest", "stop",
        "_credit", "_exposed", "_payload", "_session", "_struck", "_thread", "_waker",
    )  # fmt: skip

    def __init__(self, number, flags, payload, session):
        Output.__init__(self, number, flags & frames.LOGGING, session.outbox)
        self.cancelled = False
        #: Whether more of the request's body is still to come.
        self.gathering = flags & frames.MORE
        self.rest = []
        #: Bytes of it that have come since the last grant.
        self.received = 0
        #: How to stop what runs for this call; None as long as nothing does.
        self.stop = None
        self._payload = payload
        self._session = session
        self._credit = frames.WINDOW_START
        self._waker = None
        self._thread = 0
        self._exposed = False
        self._struck = False

    def context(self):
        """The object that the function is called with."""
        return Context(self, Request(self._payload, self.rest, self._session.broken))

    # The end

    def begin(self, head):
        """Sends the head of a reply whose body follows."""
        with self.outbox.lock:
            if not self.over:
                self.release()
                self.outbox.put(head)

    def put_body(self, piece):
        """Sends a piece of the reply's body, for which `take_credit` has made room."""
        with self.outbox.lock:
            if not self.over:
                self.release()
                self.outbox.put(frames.reply_body(self.id, piece))

    def finish(self, last):
        """Ends the call with its last frame. Only the first end counts."""
        with self.outbox.lock:
            if self.over:
                return
            self.release()
            self.over = True
            self.stop = None  # it refers to this call
            # The host may use the number again as soon as it has this frame.
            self._session.calls.pop(self.id, None)
            self.outbox.put(last)

    def fail(self, reason, message=""):
        """Ends the call without a reply."""
        self.finish(frames.failed(self.id, reason, message))

    def cancel(self):
        """Stops the call. It ends when nothing of it runs any more, at once if nothing did."""
        if self.cancelled:
            return
        self.cancelled = True
        self.logging = 0
        stop = self.stop
        if stop is None:
            self.fail(frames.CANCELLED)
        else:
            stop()
        self._wake()

    # The reply's credit

    def grant(self, size):
        """Lets `size` more bytes of the reply's body be sent."""
        with self.outbox.lock:
            self._credit += size
            if self._credit > frames.WINDOW_LIMIT:
                raise frames.ProtocolError("window beyond its greatest sum")
        self._wake()

    def take_credit(self, wanted):
        """Takes credit for up to `wanted` bytes of body; returns for how many, maybe 0."""
        with self.outbox.lock:
            size = min(wanted, self._credit, frames.BODY_LIMIT)
            self._credit -= size
        return size

    def on_change(self, waker):
        """Has `waker` called once, after the next grant or cancel."""
        self._waker = waker
        if self._credit or self.cancelled:
            self._wake()

    def wait_for_credit(self):
        """Blocks this thread until there is credit. Raises `Cancelled` for a cancelled call."""
        gate = allocate_lock()
        gate.acquire()
        self.on_change(gate.release)
        gate.acquire()
        if self.cancelled:
            raise Cancelled

    def _wake(self):
        with self.outbox.lock:
            waker, self._waker = self._waker, None
        if waker is not None:
            waker()

    # Striking a thread

    def step(self, code, *arguments):
        """Runs code of the function, during which (and only then) `strike` may hit this thread."""
        try:
            self._thread = get_ident()
            self._exposed = True
            if self.cancelled:
                raise Cancelled
            return code(*arguments)
        finally:
            self._shelter()

    def strike(self):
        """Raises `Cancelled` in the function's code, once, if it is running."""
        with _striking:
            if self._exposed and not self._struck:
                self._struck = True
                _raise_in(self._thread, Cancelled)

    def send(self):
        """As for any output, but not open to strikes, which could tear a frame apart."""
        if self.cancelled or (self.outbox.held and not self.outbox.is_full):
            return
        if not self._exposed or self._thread != get_ident():
            self.outbox.flush()
            return
        self._shelter()
        self.outbox.flush()
        with _striking:
            self._exposed = not self.cancelled
        if self.cancelled:
            raise Cancelled

    def _shelter(self):
        """Leaves the function's code; when this returns, no strike is on its way.

        Either the canceller sees `_exposed` gone, or `cancelled` is seen here: then the lock waits
        until its strike has been made, and what was not delivered yet is taken back.
        """
        while True:
            try:
                self._exposed = False
                if self.cancelled:
                    with _striking:
                        _raise_in(get_ident(), None)
                return
            except Cancelled:
                continue


_striking = allocate_lock()


def _raise_in(thread, exception):
    try:
        import ctypes
    except ImportError:
        return  # an interpreter without libffi: the call then ends when its code does
    target = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), target)
