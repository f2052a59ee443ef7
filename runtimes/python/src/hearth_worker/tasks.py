"""Runs a function whose `main` is a coroutine function: every call is a task of one asyncio loop.

The loop's thread reads the socket itself. What all calls of a turn of the loop have to send goes
out in one write at the end of that turn.
"""

import asyncio
import sys
import threading
from contextvars import copy_context

from . import frames, reply
from .native import current

# Since Python 3.12 a task can run at once up to its first wait; most functions need no more.
_EAGER = {"eager_start": True} if sys.version_info >= (3, 12) else {}


class Tasks:
    """The loop and what its calls share."""

    def __init__(self, main, session):
        self._main = main
        self._session = session
        self._outbox = session.outbox
        self._context = copy_context()
        self._loop = _loop()
        self._flushes = False

    def serve(self):
        """Serves the socket on this thread. Does not return."""
        self._loop.add_reader(self._session.sock.fileno(), self._receive)
        self.run()

    def run(self):
        """Runs the loop on this thread for good."""
        asyncio.set_event_loop(self._loop)
        while True:
            try:
                self._loop.run_forever()
            except BaseException as error:
                # SystemExit and KeyboardInterrupt leave the loop when a task of the function
                # itself, which no call waits for, has raised them.
                print(reply.describe(error), file=sys.stderr)

    def start(self, call):
        """Starts a call that the loop's thread has just read."""
        asyncio.Task(self._call(call), loop=self._loop, **_EAGER)

    def adopt(self, call, result):
        """Takes over a call, from another thread, that has got as far as `result`."""
        self._loop.call_soon_threadsafe(self._begin_adopted, call, result)

    def on_tick(self):
        """Nothing to do: a slow step of one call holds up the whole loop."""
        return False

    def linger(self, seconds):
        """Gives cancelled calls this long to end, then ends the process."""
        self._loop.remove_reader(self._session.sock.fileno())
        self._loop.call_later(seconds, self._session.exit)

    def _receive(self):
        self._session.receive()
        if _EAGER:
            self._flush()
        else:
            # Queued behind the first steps of all calls that were read just now.
            self._flush_soon()

    def _begin_adopted(self, call, result):
        asyncio.Task(self._finish(call, result), loop=self._loop)

    async def _call(self, call):
        if call.over:
            return  # cancelled before its first step
        current.set(call)
        call.stop = asyncio.current_task(self._loop).cancel
        try:
            result = self._main(call.context())
            if hasattr(result, "__await__"):
                result = await result
            await self._reply(call, result)
        except BaseException as error:
            reply.fail(call, error)
        self._flush_soon()

    async def _finish(self, call, result):
        task = asyncio.current_task(self._loop)
        call.stop = lambda: self._loop.call_soon_threadsafe(task.cancel)
        if call.cancelled:
            task.cancel()
        try:
            if hasattr(result, "__await__"):
                result = await result
            await self._reply(call, result)
        except BaseException as error:
            reply.fail(call, error)
        self._flush()

    async def _reply(self, call, result):
        status, pairs, body = reply.parse(result)
        if call.cancelled:
            call.fail(frames.CANCELLED)
        elif type(body) is not bytes:
            await self._stream(call, status, pairs, body)
        elif len(body) <= frames.WINDOW_START:
            call.finish(frames.head(call.id, status, 0, pairs, body))
        else:
            await self._stream(call, status, pairs, reply.Source((body,)))

    async def _stream(self, call, status, pairs, source):
        call.begin(frames.head(call.id, status, 1, pairs))
        self._outbox.flush()
        try:
            while True:
                value = await source.next_async()
                if value is reply.DONE:
                    break
                await self._send_piece(call, reply.piece(value))
                # A source that never waits must not keep the loop to itself.
                await asyncio.sleep(0)
        finally:
            await source.close_async()
        call.finish(frames.reply_end(call.id))

    async def _send_piece(self, call, data):
        start = 0
        while start < len(data):
            size = call.take_credit(len(data) - start)
            if size == 0:
                await self._credit(call)
                continue
            call.put_body(data[start : start + size])
            self._outbox.flush()
            start += size

    async def _credit(self, call):
        change = self._loop.create_future()
        call.on_change(lambda: self._loop.call_soon_threadsafe(_settle, change))
        await change

    def _flush_soon(self):
        """Flushes at the end of this turn, or the next one, of the loop."""
        if not self._flushes:
            self._flushes = True
            self._loop.call_soon(self._flush)

    def _flush(self):
        self._flushes = False
        self._outbox.flush()
        self._session.rest()


def _loop():
    # Before 3.10 an asyncio.Event or Lock made while the module was loading belongs to the loop
    # that the main thread has by default.
    if sys.version_info < (3, 10) and threading.current_thread() is threading.main_thread():
        return asyncio.get_event_loop()
    return asyncio.new_event_loop()


def _settle(future):
    if not future.done():
        future.set_result(None)
