"""The fixture function: README.md says what each action does.

Nothing here waits. A generator yields the gate that it wants to pass, and whoever runs it waits,
in the manner of its entrypoint.
"""

import os
import socket
import sys
import threading

PIECE = b"x" * 65536

produced = 0
served = 0


class Gate:
    """A named place where calls wait until another call opens it."""

    def __init__(self):
        self.reached = threading.Event()
        self.opened = threading.Event()


_gates = {}
_gates_lock = threading.Lock()


def gate(name):
    with _gates_lock:
        return _gates.setdefault(name, Gate())


def circular():
    value = {"name": "round"}
    value["self"] = value
    return value


VALUES = {
    "error": lambda: ValueError("boom"),
    "circular": circular,
    "tuple": lambda: ("apple", 1),
    "bytes": lambda: b"\x01\x02\x03",
    "large": lambda: 2**64,
    "nothing": lambda: None,
}


def fail(message):
    raise RuntimeError(message)


STEPS = {
    "log": lambda context, *rest: context.log(*rest),
    "error": lambda context, *rest: context.error(*rest),
    "log value": lambda context, name: context.log(VALUES[name]()),
    "print": lambda _, text: print(text),
    "print error": lambda _, text: print(text, file=sys.stderr),
    "throw": lambda _, message: fail(message),
    "build": lambda context, kind, *rest: getattr(context.res, kind)(*rest),
    "reply": lambda context, kind, *rest: getattr(context.res, kind)(*rest),
    "return": lambda _, value: value,
}


def script(context):
    for name, *rest in context.req.body_json:
        if name == "wait":
            place = gate(rest[0])
            place.reached.set()
            try:
                yield place.opened
            except GeneratorExit:
                gate(rest[0] + " left").reached.set()
                raise
            continue
        result = STEPS[name](context, *rest)
        if name in ("reply", "return"):
            return result


def pieces(name):
    """Pieces of a body, and the gate between them."""
    yield "first\n"
    place = gate(name)
    place.reached.set()
    yield place.opened
    yield "second\n"


def flood(name):
    global produced
    produced = 0
    try:
        while produced < 4096:
            produced += 1
            yield PIECE
    finally:
        gate(name).reached.set()


def garble():
    """Writes what no worker would to whatever sockets this process has."""
    for descriptor in range(3, 64):
        try:
            with socket.socket(fileno=os.dup(descriptor)) as duplicate:
                duplicate.send(b"\xff" * 64)
        except OSError:
            pass


def hoard():
    hoarded = []
    while True:
        hoarded.append(bytearray(b"\x01") * (1 << 20))


def spin():
    while True:
        pass


def request(context):
    req = context.req
    return context.res.json(
        {
            "method": req.method,
            "scheme": req.scheme,
            "host": req.host,
            "port": req.port,
            "path": req.path,
            "queryString": req.query_string,
            "query": req.query,
            "url": req.url,
            "headers": req.headers,
        }
    )


def count(context):
    global served
    served += 1
    return context.res.json(served)


def open_gate(context):
    gate(context.req.headers["x-gate"]).opened.set()
    return context.res.empty()


def reached(context):
    yield gate(context.req.headers["x-gate"]).reached
    return context.res.empty()


#: What answers at once.
ACTIONS = {
    "body": lambda context: context.res.json({"body": context.req.body}),
    "body text": lambda context: context.res.text(context.req.body_text),
    "body raw": lambda context: context.res.text(context.req.body_raw),
    "body json": lambda context: context.res.json({"body": context.req.body_json}),
    "body binary": lambda context: context.res.binary(context.req.body_binary),
    "body length": lambda context: context.res.json(len(context.req.body_binary)),
    "bytes as text": lambda context: context.res.send(b"\x00\xff\x10"),
    "request": request,
    "environment": lambda context: context.res.json(dict(os.environ)),
    "served": count,
    "open": open_gate,
    "produced": lambda context: context.res.json(produced),
    "spin": lambda _: spin(),
    "exit": lambda _: os._exit(3),
    "garble": lambda _: garble(),
    "hoard": lambda _: hoard(),
}

#: What waits for gates.
WAITING = {"script": script, "reached": reached}

#: What answers with a stream.
STREAMS = {"stream": pieces, "flood": flood}
