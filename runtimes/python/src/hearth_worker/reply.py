"""What a function returned, as the parts of a reply."""

import os

from . import frames
from .context import stringify

MISSING = "Return statement missing. return context.res.empty() if no response is expected."

READ_SIZE = 65_536

#: What `Source.next` returns when there are no more pieces.
DONE = object()

#: A dict with others only is a function's own value, and no response.
_PARTS = frozenset(("body", "statusCode", "headers"))

_BYTES = (bytes, bytearray, memoryview)
_PLAIN = (str, int, float, list, tuple, dict, set, frozenset) + _BYTES


class Unusable(Exception):
    """A function returned something that is no reply."""


def parse(result):
    """Returns status, encoded headers and body: bytes, or a `Source` of them."""
    if result is None:
        raise Unusable(MISSING)
    if isinstance(result, dict) and (not result or not _PARTS.isdisjoint(result)):
        body = _body(result.get("body"))
        status = result.get("statusCode", 200)
        headers = result.get("headers")
        return _status(status), _pairs(headers) if headers else (), body
    if _is_stream(result):
        return 200, (), Source(result)
    kind = type(result).__name__
    raise Unusable(f"A function must return a response such as context.res.text(), not {kind}.")


def must_be_awaited(result):
    """Whether only an asyncio loop can make a reply of this result."""
    if hasattr(result, "__await__"):
        return True
    body = result.get("body") if isinstance(result, dict) else result
    return hasattr(body, "__aiter__")


def _status(status):
    if type(status) is not int:
        try:
            status = 200 if status is None else int(status)
        except (TypeError, ValueError):
            raise Unusable(f"Status code must be a number, not {status!r}.") from None
    if not 100 <= status <= 999:
        raise Unusable(f"Status code must be between 100 and 999, not {status}.")
    return status


def _pairs(headers):
    if not hasattr(headers, "items"):
        raise Unusable(f"Headers must be a dict, not {type(headers).__name__}.")
    pairs = []
    for name, value in headers.items():
        values = value if isinstance(value, (list, tuple)) else (value,)
        for single in values:
            pairs.append(frames.pair(str(name), str(single)))
    if len(pairs) > frames.HEADERS_LIMIT or sum(map(len, pairs)) > frames.HEAD_LIMIT:
        raise Unusable("Too many headers: 256 of them, or 64 KiB, is the most.")
    return pairs


def _body(body):
    if type(body) is str:
        return frames.utf8(body)
    if body is None:
        return b""
    if isinstance(body, _BYTES):
        return bytes(body)
    if _is_stream(body):
        return Source(body)
    return frames.utf8(stringify(body))


def _is_stream(value):
    return not isinstance(value, _PLAIN) and (
        hasattr(value, "__iter__") or hasattr(value, "__aiter__") or hasattr(value, "read")
    )


class Source:
    """The pieces of a body, one after the other, from an iterable or a file."""

    def __init__(self, body):
        self.is_async = False
        if hasattr(body, "read"):
            self._next = lambda: body.read(READ_SIZE) or DONE
        elif hasattr(body, "__aiter__"):
            self.is_async = True
            body = body.__aiter__()
        else:
            body = iter(body)
            self._next = lambda: next(body, DONE)
        self._body = body

    def next(self):
        """Returns the next piece, or `DONE`."""
        return self._next()

    async def next_async(self):
        """Returns the next piece, or `DONE`, of any source."""
        if not self.is_async:
            return self._next()
        try:
            return await self._body.__anext__()
        except StopAsyncIteration:
            return DONE

    def close(self):
        """Lets a generator or a file clean up."""
        close = getattr(self._body, "close", None)
        if close is not None:
            close()

    async def close_async(self):
        """Lets any source clean up."""
        close = getattr(self._body, "aclose", None)
        if close is not None:
            await close()
        else:
            self.close()


def piece(value):
    """A piece of a streamed body as bytes."""
    if isinstance(value, str):
        return frames.utf8(value)
    if isinstance(value, _BYTES):
        return bytes(value)
    raise TypeError(f"a streamed body is made of str and bytes, not {type(value).__name__}")


def fail(call, error):
    """Ends a call that was cancelled, or whose function raised `error` or returned no reply."""
    if call.cancelled:
        call.fail(frames.CANCELLED)
    elif isinstance(error, Unusable):
        call.fail(frames.NOTHING_USABLE, str(error))
    else:
        call.fail(frames.THREW, describe(error))


_HERE = os.path.dirname(os.path.abspath(__file__))


def describe(error):
    """The error with its stack trace, from the function's first frame on."""
    import traceback

    trace = error.__traceback__
    while trace is not None and _is_ours(trace):
        trace = trace.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, trace)).rstrip("\n")
    except Exception:
        return f"{type(error).__name__}: its stack trace cannot be shown"


def _is_ours(trace):
    return os.path.dirname(trace.tb_frame.f_code.co_filename) == _HERE
