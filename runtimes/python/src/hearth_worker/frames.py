"""The bytes of worker protocol version 1: docs/protocols/worker.md is the reference.

Decodes what a host sends and encodes what a worker sends. Whatever the protocol does not allow
raises `ProtocolError`; nothing is repaired.
"""

from struct import Struct
from struct import error as StructError

VERSION = 1

BIND, CALL, BODY, END, CANCEL, DRAIN, WINDOW = range(1, 8)

CONTEXT_LOG, CONTEXT_ERROR, STDOUT, STDERR = range(1, 5)

NO_ENTRYPOINT, NO_CALLABLE, SYNTAX_ERROR, MISSING_MODULE, LOAD_ERROR = range(1, 6)

THREW, NOTHING_USABLE, CANCELLED, WORKER_FAILED = range(1, 5)

ATTRIBUTES_OUTPUT, REALLY_CANCELS = 1, 2

LOGGING, MORE = 1, 2

FRAME_LIMIT = 1 << 20
WINDOW_START = 262_144
WINDOW_LIMIT = (1 << 31) - 1
BODY_LIMIT = 262_144
HEADERS_LIMIT = 256
HEAD_LIMIT = 65_536
MESSAGE_LIMIT = 65_536

_HEADER = Struct(">IBI")
_LENGTH = Struct(">I")
_HEAD = Struct(">IBIHBH")
_LOG = Struct(">IBIB")
_REASON = Struct(">IBIBI")
_VALUE = Struct(">IBII")
_U16 = Struct(">H")

# timeout, flags, six empty strings, the port and two empty lists
_SMALLEST_CALL = 4 + 1 + 6 * 4 + 2 + 2 + 2


class ProtocolError(Exception):
    """The other side sent something that the protocol does not allow."""


class Splitter:
    """Cuts a stream of bytes into frames."""

    def __init__(self):
        self._rest = b""

    @property
    def wanted(self):
        """How many bytes are missing of the frame that has begun, as far as is known."""
        if len(self._rest) < 4:
            return 0
        return 4 + _LENGTH.unpack_from(self._rest)[0] - len(self._rest)

    def feed(self, data):
        """Returns the frames completed by `data`, as (kind, call, payload)."""
        if self._rest:
            data = self._rest + data
        frames = []
        start, size = 0, len(data)
        while size - start >= 4:
            length = _LENGTH.unpack_from(data, start)[0]
            if not 5 <= length <= FRAME_LIMIT:
                raise ProtocolError(f"frame of {length} bytes")
            stop = start + 4 + length
            if stop > size:
                break
            _, kind, call = _HEADER.unpack_from(data, start)
            if not BIND <= kind <= WINDOW:
                raise ProtocolError(f"frame of kind {kind:#x}")
            if (call == 0) != (kind == BIND or kind == DRAIN):
                raise ProtocolError(f"frame of kind {kind:#x} for call {call}")
            frames.append((kind, call, data[start + 9 : stop]))
            start = stop
        self._rest = data[start:] if start else data
        return frames


def strings(data, start, count):
    """Decodes `count` strings; returns them and where they end."""
    values = []
    try:
        for _ in range(count):
            begin = start + 4
            start = begin + _LENGTH.unpack_from(data, begin - 4)[0]
            if start > len(data):
                raise ProtocolError("string longer than its frame")
            values.append(str(data[begin:start], "utf-8"))
    except StructError:
        raise ProtocolError("payload ends within a string") from None
    except UnicodeDecodeError:
        raise ProtocolError("text that is not UTF-8") from None
    return values, start


def pairs(data, start):
    """Decodes `pairs`; returns a flat list of names and values, and where they end."""
    count, start = u16(data, start)
    return strings(data, start, 2 * count)


def u16(data, start):
    """Decodes a u16; returns it and where it ends."""
    try:
        return _U16.unpack_from(data, start)[0], start + 2
    except StructError:
        raise ProtocolError("payload ends within a number") from None


def bind(payload):
    """Decodes a `bind`; returns version, code directory, entrypoint and environment."""
    version, start = u16(payload, 0)
    (code_dir, entrypoint), start = strings(payload, start, 2)
    environment, start = pairs(payload, start)
    if start != len(payload):
        raise ProtocolError("bytes behind the payload")
    return version, code_dir, entrypoint, dict(zip(environment[::2], environment[1::2]))


def call_flags(payload):
    """Checks the fixed part of a `call` and returns its flags; `Request` decodes the rest."""
    if len(payload) < _SMALLEST_CALL:
        raise ProtocolError("call too short")
    flags = payload[4]
    if flags & ~(LOGGING | MORE):
        raise ProtocolError(f"unknown flags {flags:#x} in a call")
    return flags


def body(payload):
    """Checks a `body`, which carries at least a byte."""
    if not payload:
        raise ProtocolError("empty body frame")
    return payload


def empty(payload):
    """Checks a payload that has no fields."""
    if payload:
        raise ProtocolError("bytes behind the payload")


def cancel(payload):
    """Decodes a `cancel`; returns its reason."""
    if len(payload) != 1:
        raise ProtocolError("a cancel has one byte")
    if not 1 <= payload[0] <= 3:
        raise ProtocolError(f"unknown reason {payload[0]} of a cancel")
    return payload[0]


def window(payload):
    """Decodes a `window`; returns how many bytes it grants."""
    if len(payload) != 4:
        raise ProtocolError("a window has four bytes")
    granted = _LENGTH.unpack(payload)[0]
    if granted == 0:
        raise ProtocolError("window of nothing")
    return granted


def utf8(text):
    """Encodes any text, also such with lone surrogates."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _string(raw):
    return _LENGTH.pack(len(raw)) + raw


def hello(language, language_version, worker_version, capabilities, most_calls=0):
    """The first frame of a worker."""
    payload = b"".join(
        (
            _U16.pack(VERSION),
            _U16.pack(VERSION),
            _string(language.encode()),
            _string(language_version.encode()),
            _string(worker_version.encode()),
            _LENGTH.pack(capabilities),
            _LENGTH.pack(most_calls),
        )
    )
    return _HEADER.pack(len(payload) + 5, 0x81, 0) + payload


BOUND = _HEADER.pack(5, 0x82, 0)


def bind_failed(reason, message):
    """The answer to a `bind` whose code cannot be served."""
    raw = utf8(message[:MESSAGE_LIMIT])
    return _REASON.pack(10 + len(raw), 0x83, 0, reason, len(raw)) + raw


_known_pairs = {}


def pair(name, value):
    """Encodes one header. Functions repeat themselves: short ones are remembered."""
    raw = _known_pairs.get((name, value))
    if raw is None:
        raw = _string(utf8(name)) + _string(utf8(value))
        if len(raw) <= 128 and len(_known_pairs) < 512:
            _known_pairs[name, value] = raw
    return raw


def head(call, status, more, header_pairs, content=b""):
    """The head of a reply; `header_pairs` are results of `pair`."""
    headers = b"".join(header_pairs)
    length = 10 + len(headers) + len(content)
    return _HEAD.pack(length, 0x84, call, status, more, len(header_pairs)) + headers + content


def reply_body(call, piece):
    """A piece of a reply's body, 1 to `BODY_LIMIT` bytes."""
    return _HEADER.pack(5 + len(piece), 0x85, call) + piece


def reply_end(call):
    """The end of a reply's body."""
    return _HEADER.pack(5, 0x86, call)


def log(call, stream, text):
    """Log output of a call, or of the worker if `call` is 0."""
    raw = utf8(text)
    return _LOG.pack(6 + len(raw), 0x87, call, stream) + raw


def failed(call, reason, message=""):
    """The end of a call that has no reply."""
    raw = utf8(message[:MESSAGE_LIMIT])
    return _REASON.pack(10 + len(raw), 0x88, call, reason, len(raw)) + raw


def grant(call, size):
    """Lets the host send `size` more bytes of a request's body."""
    return _VALUE.pack(9, 0x89, call, size)
