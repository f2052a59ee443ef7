"""What waits to be sent to the host, from all threads, in one order."""

import os
from _thread import RLock, allocate_lock

# Beyond this, whoever produces output waits until the socket has taken it.
HIGH_WATER = 1 << 20


class Outbox:
    """Gathers frames and writes them together.

    `lock` makes "is this call still running? then append" one step: a frame for a call that is
    over would break the protocol. It can be taken again by its holder because a destructor, which
    may print, can run at any allocation.
    """

    def __init__(self, sock):
        self.lock = RLock()
        self.frames = []
        #: True while somebody is sure to flush soon, so that log output need not be sent at once.
        self.held = False
        self._size = 0
        self._closed = False
        self._sending = allocate_lock()
        self._sock = sock
        os.register_at_fork(after_in_child=self._abandon)

    @property
    def is_full(self):
        """Whether whoever produces output should help to send it."""
        return self._size > HIGH_WATER

    def put(self, frame):
        """Appends a frame. It is sent by the next `flush`."""
        with self.lock:
            if not self._closed:
                self.frames.append(frame)
                self._size += len(frame)

    def flush(self):
        """Sends everything. If a thread is sending already, it sends these frames too.

        When the outbox is full that thread is waited for: so everybody is slowed down to the
        host's pace.
        """
        while self.frames:
            if not self._sending.acquire(self.is_full):
                return
            try:
                self._send()
            finally:
                self._sending.release()

    def finish(self):
        """Sends everything, and waits for whoever is sending. Does nothing once closed."""
        if not self._closed:
            with self._sending:
                self._send()

    def close(self):
        """Drops what waits and whatever is put later: the host is gone."""
        with self.lock:
            self._closed = True
            self.frames = []
            self._size = 0

    def _abandon(self):
        # Another thread may have held a lock when this process was forked from its own.
        self.lock = RLock()
        self._sending = allocate_lock()
        self.close()

    def _send(self):
        with self.lock:
            frames, self.frames = self.frames, []
            self._size = 0
        if not frames:
            return
        try:
            self._sock.sendall(frames[0] if len(frames) == 1 else b"".join(frames))
        except OSError:
            self.close()
