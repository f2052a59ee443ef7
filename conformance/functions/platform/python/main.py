"""What the platform's tests deploy: each path is something that an instance does or tells."""

import asyncio
import os
import random
import uuid

instance = str(uuid.uuid4())
guess = random.random()
hoarded = []
closed = 0


def whoami(context):
    version = os.environ.get("VERSION", "")
    return context.res.json({"instance": instance, "guess": guess, "version": version})


def listing(directory):
    try:
        return os.listdir(directory)
    except OSError:
        return []


def read(file):
    try:
        with open(file, encoding="utf-8", errors="replace") as text:
            return text.read()
    except OSError:
        return ""


def look(context):
    processes = [name for name in listing("/proc") if name.isdigit()]
    return context.res.json(
        {
            "environment": dict(os.environ),
            "code": listing(os.path.dirname(os.path.abspath(__file__))),
            "temporary": listing("/tmp"),
            "processes": [read(f"/proc/{pid}/cmdline").replace("\0", " ") for pid in processes],
            "sockets": read("/proc/net/unix"),
        }
    )


async def sleep(context):
    context.log("began")
    await asyncio.sleep(int(context.req.query["ms"]) / 1000)
    context.log("finished")
    return whoami(context)


async def pieces():
    global closed
    try:
        while True:
            yield "piece\n"
            await asyncio.sleep(0.005)
    finally:
        closed += 1


def hoard(context):
    for _ in range(int(context.req.query["mib"])):
        hoarded.append(b"\x01" * (1 << 20))
    return context.res.json(len(hoarded))


def flood(context):
    for _ in range(int(context.req.query["kib"])):
        context.log("x" * 1023)
    return context.res.empty()


def write(context):
    with open(context.req.query["path"], "w", encoding="utf-8") as file:
        file.write("ours")
    return context.res.empty()


def echo(context):
    return context.res.json({"path": context.req.path, "headers": context.req.headers})


ACTIONS = {
    "/": whoami,
    "/stream": lambda context: context.res.text(pieces()),
    "/closed": lambda context: context.res.json(closed),
    "/crash": lambda _: os._exit(3),
    "/hoard": hoard,
    "/flood": flood,
    "/write": write,
    "/look": look,
}


async def main(context):
    if context.req.path == "/sleep":
        return await sleep(context)
    return ACTIONS.get(context.req.path, echo)(context)
