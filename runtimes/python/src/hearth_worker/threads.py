"""Runs a function whose `main` is not a coroutine function, on a pool of threads.

All threads wait on one epoll set that holds the socket. The kernel wakes the one that went to
sleep last, and it reads, runs the call and sends the reply, all by itself: calls that come one
after the other stay on one hot thread. Both descriptors are edge-triggered, so one event wakes
one thread.

A thread that runs a call may be gone for long. So it begins only if another one is left to watch
the socket, and calls that came in the same read are left in `_queue` for the others. Waking
another thread for them at once doubles the price of a fast function's call, so usually the reader
goes through the queue itself, and the ticker wakes others when it does not get on. Once that has
happened, functions are taken to be slow for a while, and others are woken at once.
"""

import select
import threading
from collections import deque
from contextvars import copy_context
from os import pipe, write

from . import frames, reply
from .native import current

MOST_THREADS = 64

# How often threads may be woken in vain until a function is taken to be fast.
_SLOW = 64

_EDGE = select.EPOLLIN | select.EPOLLET
_CLOSED = select.EPOLLRDHUP | select.EPOLLHUP


class Threads:
    """The pool, and what its threads share."""

    def __init__(self, main, session):
        self._main = main
        self._session = session
        self._outbox = session.outbox
        self._context = copy_context()
        self._queue = deque()
        #: One entry for each thread that watches the socket.
        self._watching = []
        self._started = 1
        self._slow = 0
        self._seen = None
        self._starting = threading.Lock()
        self._tasks = None
        self._epoll = select.epoll()
        self._socket = session.sock.fileno()
        self._epoll.register(self._socket, _EDGE | select.EPOLLRDHUP)
        # Always readable. Setting its events again makes a new edge, which wakes one thread.
        self._bell, writer = pipe()
        write(writer, b"!")
        self._epoll.register(self._bell, _EDGE)

    def start(self, call):
        """Queues a call. Whoever reads from the socket looks into the queue afterwards."""
        self._queue.append(call)

    def serve(self):
        """Makes this thread one of the pool. Does not return."""
        poll = self._epoll.poll
        while True:
            self._watching.append(None)
            if self._queue and len(self._watching) > 1:
                self._ring()
            [(descriptor, events)] = poll(-1, 1)
            self._watching.pop()
            if descriptor == self._socket:
                self._session.receive(to_the_end=events & _CLOSED)
            elif self._slow and not self._queue:
                self._slow -= 1
            self._work()

    def on_tick(self):
        """Wakes another thread if the queue has not moved since the last tick."""
        try:
            first = self._queue[0]
        except IndexError:
            first = None
        if self._started > MOST_THREADS and len(self._watching) <= 1:
            return False  # nobody can be woken; whoever ends a call goes on with the queue
        if first is not None and first is self._seen:
            self._slow = _SLOW
            self._ring()
        self._seen = first
        return first is not None

    def linger(self, seconds):
        """Gives cancelled calls this long to end, then ends the process."""
        threading.Event().wait(seconds)
        self._session.exit()

    def _ring(self):
        self._epoll.modify(self._bell, _EDGE)

    def _work(self):
        queue = self._queue
        while queue and self._is_watched():
            try:
                call = queue.popleft()
            except IndexError:
                break
            if queue and self._slow:
                self._ring()
            self._context.copy().run(self._run, call)
            if not self._outbox.held:
                self._outbox.flush()
        self._outbox.flush()
        self._session.rest()

    def _is_watched(self):
        """Whether somebody watches the socket; starts another thread if that is possible."""
        if self._watching:
            return True
        with self._starting:
            if self._started > MOST_THREADS:
                return False
            self._started += 1
        threading.Thread(target=self.serve, name="hearth-call", daemon=True).start()
        return True

    def _run(self, call):
        current.set(call)
        call.stop = call.strike
        if call.cancelled:
            call.fail(frames.CANCELLED)
            return
        try:
            result = call.step(self._main, call.context())
            if reply.must_be_awaited(result):
                self._on_a_loop(call, result)
                return
            status, pairs, body = reply.parse(result)
            if call.cancelled:
                call.fail(frames.CANCELLED)
            elif type(body) is not bytes:
                self._stream(call, status, pairs, body)
            elif len(body) <= frames.WINDOW_START:
                call.finish(frames.head(call.id, status, 0, pairs, body))
            else:
                self._stream(call, status, pairs, reply.Source((body,)))
        except BaseException as error:
            reply.fail(call, error)

    def _stream(self, call, status, pairs, source):
        call.begin(frames.head(call.id, status, 1, pairs))
        self._outbox.flush()
        try:
            while True:
                value = call.step(source.next)
                if value is reply.DONE:
                    break
                self._send_piece(call, reply.piece(value))
        finally:
            source.close()
        call.finish(frames.reply_end(call.id))

    def _send_piece(self, call, data):
        start = 0
        while start < len(data):
            size = call.take_credit(len(data) - start)
            if size == 0:
                call.wait_for_credit()
                continue
            call.put_body(data[start : start + size])
            self._outbox.flush()
            start += size

    def _on_a_loop(self, call, result):
        """Leaves what must be awaited to an asyncio loop with a thread of its own."""
        with self._starting:
            if self._tasks is None:
                from .tasks import Tasks

                self._tasks = Tasks(None, self._session)
                threading.Thread(target=self._tasks.run, name="hearth-loop", daemon=True).start()
        self._tasks.adopt(call, result)
