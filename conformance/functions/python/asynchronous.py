"""The fixture function with a coroutine function as `main`."""

import asyncio

from common import ACTIONS, STREAMS, WAITING

PAUSE = 0.01


async def wait(event):
    while not event.is_set():
        await asyncio.sleep(PAUSE)


async def run(generator):
    try:
        while True:
            await wait(next(generator))
    except StopIteration as end:
        return end.value
    finally:
        generator.close()


async def stream(pieces):
    try:
        for piece in pieces:
            if isinstance(piece, (str, bytes)):
                yield piece
            else:
                await wait(piece)
    finally:
        pieces.close()


async def main(context):
    action = context.req.headers.get("x-action", "request")
    if action == "entrypoint":
        return context.res.text("asynchronous.py")
    if action in WAITING:
        return await run(WAITING[action](context))
    if action in STREAMS:
        return context.res.text(stream(STREAMS[action](context.req.headers["x-gate"])))
    return ACTIONS[action](context)
