"""The object a function gets: `context.req`, `context.res`, `context.log`, `context.error`."""

from . import frames

TRUNCATE_AT = 8000
TRUNCATED = "... Log truncated due to size limit (8000 characters)"

_encode_json = None


def compact_json(value):
    """JSON without white space."""
    global _encode_json
    if _encode_json is None:
        import json

        _encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    return _encode_json(value)


def stringify(value):
    """A value as it appears in a log: containers as JSON where that is possible."""
    if isinstance(value, (dict, list, tuple)):
        try:
            return compact_json(value)
        except (TypeError, ValueError, RecursionError):
            pass
    return str(value)


def log_entry(values):
    """One entry of a log, cut to its greatest size."""
    text = " ".join([value if type(value) is str else stringify(value) for value in values])
    if len(text) > TRUNCATE_AT:
        return text[:TRUNCATE_AT] + TRUNCATED
    return text


class Request:
    """A call as the function sees it. Fields are decoded when they are first read."""

    def __init__(self, payload, rest, broken):
        self._payload = payload
        self._rest = rest
        self._broken = broken

    def __getattr__(self, name):
        decode = _FIELDS.get(name)
        if decode is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            decode(self)
        except frames.ProtocolError as error:
            self._broken(error)
        return self.__dict__[name]

    def _decode_target(self):
        fields = self.__dict__
        (method, url, scheme, host), start = frames.strings(self._payload, 5, 4)
        port, start = frames.u16(self._payload, start)
        (path, query_string), start = frames.strings(self._payload, start, 2)
        fields["_query_start"] = start
        # What the function has assigned before its first look stays.
        keep = fields.setdefault
        keep("method", method)
        keep("url", url)
        keep("scheme", scheme)
        keep("host", host)
        keep("port", port)
        keep("path", path)
        keep("query_string", query_string)

    def _decode_query(self):
        flat, start = frames.pairs(self._payload, self._query_start)
        self.__dict__["_headers_start"] = start
        self.__dict__.setdefault("query", dict(zip(flat[::2], flat[1::2])))

    def _decode_headers(self):
        flat, start = frames.pairs(self._payload, self._headers_start)
        self.__dict__["_body_start"] = start
        self.__dict__.setdefault("headers", dict(zip(flat[::2], flat[1::2])))

    def _decode_binary(self):
        body = self._payload[self._body_start :]
        self.body_binary = body + b"".join(self._rest) if self._rest else body

    def _decode_text(self):
        self.body_text = str(self.body_binary, "utf-8", "replace")

    def _decode_raw(self):
        self.body_raw = self.body_text

    def _decode_json(self):
        import json

        self.body_json = json.loads(self.body_text)

    def _decode_body(self):
        content_type = self.headers.get("content-type", "").lower()
        if content_type.startswith("application/json"):
            self.body = self.body_json if self.body_binary else {}
        else:
            self.body = self.body_text


_FIELDS = {
    **dict.fromkeys(
        ("method", "url", "scheme", "host", "port", "path", "query_string", "_query_start"),
        Request._decode_target,
    ),
    "query": Request._decode_query,
    "_headers_start": Request._decode_query,
    "headers": Request._decode_headers,
    "_body_start": Request._decode_headers,
    "body_binary": Request._decode_binary,
    "body_text": Request._decode_text,
    "body_raw": Request._decode_raw,
    "body_json": Request._decode_json,
    "body": Request._decode_body,
}


class Response:
    """Builds replies. Nothing is sent until the function returns one of them.

    A reply is a plain dict of `body`, `statusCode` and `headers`, so a function may as well
    return its own. The status may be passed as `statusCode` or `status_code`.
    """

    __slots__ = ()

    def text(self, body, statusCode=200, headers=None, *, status_code=None):
        """A reply of text."""
        return _reply(body, statusCode if status_code is None else status_code, headers)

    def binary(self, body, statusCode=200, headers=None, *, status_code=None):
        """A reply of bytes, a bytearray or a memoryview, unchanged."""
        return _reply(body, statusCode if status_code is None else status_code, headers)

    def send(self, body, statusCode=200, headers=None, *, status_code=None):
        """A reply of whatever `body` is. `text`, `json` and `binary` say what is meant."""
        return _reply(body, statusCode if status_code is None else status_code, headers)

    def json(self, obj, statusCode=200, headers=None, *, status_code=None):
        """A reply of compact JSON, with its content type."""
        headers = _with(headers, "content-type", "application/json")
        return _reply(
            compact_json(obj), statusCode if status_code is None else status_code, headers
        )

    def redirect(self, url, statusCode=301, headers=None, *, status_code=None):
        """A reply that sends the client elsewhere."""
        headers = _with(headers, "location", url)
        return _reply("", statusCode if status_code is None else status_code, headers)

    def empty(self):
        """A reply without content."""
        return _reply("", 204, None)


def _reply(body, status, headers):
    return {"body": body, "statusCode": status, "headers": {} if headers is None else headers}


def _with(headers, name, value):
    """A copy of the headers in which `name`, however it was written, has one value."""
    kept = {k: v for k, v in headers.items() if str(k).lower() != name} if headers else {}
    kept[name] = value
    return kept


_RESPONSE = Response()


class Context:
    """What `main` is called with."""

    __slots__ = ("req", "res", "_call")

    def __init__(self, call, request):
        self.req = request
        self.res = _RESPONSE
        self._call = call

    def log(self, *values):
        """Writes an entry to the log of this call."""
        if self._call.logging:
            self._call.log(frames.CONTEXT_LOG, log_entry(values))

    def error(self, *values):
        """Writes an entry to the errors of this call."""
        if self._call.logging:
            self._call.log(frames.CONTEXT_ERROR, log_entry(values))
