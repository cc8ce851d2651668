"""An aiohttp application that serves by the kit's adapter; nothing else in it knows of that.

Its answers are those of the bundled worker, so that the load client's checks hold for both.
"""

from __future__ import annotations

import asyncio
import json
import os

from aiohttp import WSMsgType, web

from atlas_worker.aiohttp import run_app

VERSION = os.environ["ATLAS_VERSION"]
INSTANCE = os.environ["ATLAS_INSTANCE"]
MARK = {"X-Atlas-Version": VERSION}

routes = web.RouteTableDef()


@routes.get("/")
async def home(_request: web.Request) -> web.Response:
    """Say who answers."""
    told = {"name": "atlas-worker", "status": "ok", "version": VERSION, "instance": INSTANCE}
    return web.json_response(told)


@routes.post("/echo")
async def echo(request: web.Request) -> web.Response:
    """Answer with the request's own body."""
    return web.Response(body=await request.read(), headers=MARK)


@routes.get("/health")
async def health(_request: web.Request) -> web.Response:
    """Say that all is well."""
    return web.json_response({"status": "ok"})


@routes.get("/ws")
async def websocket(request: web.Request) -> web.WebSocketResponse:
    """Send every message back, with the version, until the client goes or is sent away."""
    response = web.WebSocketResponse()
    await response.prepare(request)
    async for message in response:
        if message.type is WSMsgType.TEXT:
            await response.send_json({"message": message.data, "version": VERSION})
    return response


@routes.get("/events")
async def events(request: web.Request) -> web.StreamResponse:
    """Send numbered events for ever, `interval` seconds apart, after `Last-Event-ID`."""
    number = int(request.headers.get("Last-Event-ID", "0"))
    interval = float(request.query.get("interval", "1"))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while True:
        number += 1
        data = json.dumps({"number": number, "version": VERSION})
        await response.write(f"id: {number}\ndata: {data}\n\n".encode())
        await asyncio.sleep(interval)


if __name__ == "__main__":
    app = web.Application()
    app.add_routes(routes)
    run_app(app)
