"""The plain routes: identity, an echo, a slow answer, and the features."""

from __future__ import annotations

import asyncio

from aiohttp import web

from atlas_worker.app.features import optimizer, vision
from atlas_worker.app.features import web as pages
from atlas_worker.app.features.arms import serve
from atlas_worker.app.identity import IDENTITY
from atlas_worker.app.requests import query_number, read_body, read_object

ECHO_BYTES = 64 * 1024 * 1024
SLOW_SECONDS = 30

routes = web.RouteTableDef()


@routes.get("/")
async def get_home(request: web.Request) -> web.Response:
    """Answer with the identity of the instance."""
    identity = request.app[IDENTITY]
    return web.json_response(
        {
            "name": "atlas-worker",
            "status": "ok",
            "version": identity.version,
            "slot": identity.slot,
            "instance": identity.instance,
            "pid": identity.pid,
            "channel": identity.channel,
        }
    )


@routes.post("/echo")
async def post_echo(request: web.Request) -> web.Response:
    """Answer with the request's body, byte for byte."""
    headers = {"X-Atlas-Version": request.app[IDENTITY].version}
    for name in ("Content-Type", "Content-Encoding"):
        if name in request.headers:
            headers[name] = request.headers[name]
    return web.Response(body=await request.read(), headers=headers)


@routes.get("/slow")
async def get_slow(request: web.Request) -> web.Response:
    """Answer after a while."""
    seconds = query_number(request, "seconds", default=None, low=0, high=SLOW_SECONDS)
    await asyncio.sleep(seconds)
    identity = request.app[IDENTITY]
    return web.json_response(
        {"slept_seconds": seconds, "version": identity.version, "instance": identity.instance}
    )


@routes.post("/features/vision")
async def post_vision(request: web.Request) -> web.Response:
    """Describe a posted image."""
    image = await read_body(request, vision.IMAGE_BYTES)
    return web.json_response(
        await asyncio.to_thread(serve, "vision", vision.look_at, vision.look_at_quickly, image)
    )


@routes.post("/features/web")
async def post_web(request: web.Request) -> web.Response:
    """Read a posted web page."""
    page = await read_body(request, pages.PAGE_BYTES)
    return web.json_response(
        await asyncio.to_thread(
            serve, "web", pages.read_page, pages.read_page_at_once, page, request.charset or "utf-8"
        )
    )


@routes.post("/features/optimizer")
async def post_optimizer(request: web.Request) -> web.Response:
    """Solve a posted problem."""
    fields = frozenset({"problem", "capacity", "items", "coefficients", "interval"})
    body = await read_object(request, fields=fields)
    return web.json_response(
        await asyncio.to_thread(
            serve, "optimizer", optimizer.optimize, optimizer.optimize_by_steps, body
        )
    )
