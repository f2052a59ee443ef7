"""Looks, while calls come in numbers, whether something is stuck behind one that takes long."""

from _thread import allocate_lock, start_new_thread
from time import sleep

#: How long output, and calls that were read together with a slow one, may wait.
TICK_SECONDS = 0.001


class Ticker:
    """A thread that ticks while it is told so, and otherwise sleeps.

    Ticking allows what makes throughput: output is held back, to be sent with the replies of
    other calls, and calls that were read together are run by one thread without waking another.
    Nothing is held back while it sleeps, so it need not wake for calls that come one by one.
    """

    def __init__(self, outbox):
        #: What else is done at every tick; returns whether to go on ticking.
        self.on_tick = lambda: False
        self._outbox = outbox
        self._wanted = False
        self._gate = allocate_lock()
        self._gate.acquire()
        self._started = False

    def want(self):
        """Keeps it ticking: many calls have just come."""
        self._wanted = True
        with self._outbox.lock:
            if self._outbox.held:
                return
            self._outbox.held = True
        if not self._started:
            self._started = True
            start_new_thread(self._run, ())
        self._gate.release()

    def _run(self):
        while True:
            self._gate.acquire()
            while self._wanted:
                self._wanted = False
                self._tick()
            # Whoever produces output after this sends it; what came before is sent by this tick.
            self._outbox.held = False
            self._tick()

    def _tick(self):
        sleep(TICK_SECONDS)
        self._outbox.flush()
        if self.on_tick():
            self.want()
