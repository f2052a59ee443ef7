"""The fixture function as most are written: `main` is a plain function."""

from common import ACTIONS, STREAMS, WAITING

# Short, so that a cancelled call notices.
PAUSE = 0.01


def wait(event):
    while not event.wait(PAUSE):
        pass


def run(generator):
    try:
        while True:
            wait(next(generator))
    except StopIteration as end:
        return end.value
    finally:
        generator.close()


def stream(pieces):
    try:
        for piece in pieces:
            if isinstance(piece, (str, bytes)):
                yield piece
            else:
                wait(piece)
    finally:
        pieces.close()


def main(context):
    action = context.req.headers.get("x-action", "request")
    if action == "entrypoint":
        return context.res.text("main.py")
    if action in WAITING:
        return run(WAITING[action](context))
    if action in STREAMS:
        return context.res.text(stream(STREAMS[action](context.req.headers["x-gate"])))
    return ACTIONS[action](context)
