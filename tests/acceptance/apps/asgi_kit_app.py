"""A Starlette application for the runner and the middleware; it knows nothing of either.

Its answers are those of the bundled worker, so that the load client's checks hold for both.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

VERSION = os.environ.get("ATLAS_VERSION", "dev")
INSTANCE = os.environ.get("ATLAS_INSTANCE", "-")
MARK = {"X-Atlas-Version": VERSION}


async def home(_request: Request) -> Response:
    """Say who answers."""
    body = {"name": "atlas-worker", "status": "ok", "version": VERSION, "instance": INSTANCE}
    return JSONResponse(body, headers=MARK)


async def echo(request: Request) -> Response:
    """Answer with the request's own body."""
    body = await request.body()
    return Response(body, headers=MARK, media_type="application/octet-stream")


async def health(_request: Request) -> Response:
    """Say that all is well."""
    return JSONResponse({"status": "ok", "version": VERSION}, headers=MARK)


async def socket(websocket: WebSocket) -> None:
    """Send every message back, with the version, until the client goes, or is sent away."""
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_json({"message": message, "version": VERSION})


async def events(request: Request) -> Response:
    """Send numbered events for ever, `interval` seconds apart, after `Last-Event-ID`."""
    interval = float(request.query_params.get("interval", "1"))

    async def ticks() -> AsyncIterator[str]:
        number = int(request.headers.get("last-event-id", "0"))
        while True:
            number += 1
            yield f"id: {number}\ndata: {json.dumps({'number': number, 'version': VERSION})}\n\n"
            await asyncio.sleep(interval)

    return StreamingResponse(ticks(), media_type="text/event-stream", headers=MARK)


app = Starlette(
    routes=[
        Route("/", home),
        Route("/echo", echo, methods=["POST"]),
        Route("/health", health),
        Route("/events", events),
        WebSocketRoute("/ws", socket),
    ]
)
