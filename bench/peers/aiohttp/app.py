"""aiohttp with nothing around it; gunicorn runs it as its users do."""

from aiohttp import web


async def hello(request):
    return web.Response(text="Hello, World!")


application = web.Application()
application.router.add_get("/", hello)
