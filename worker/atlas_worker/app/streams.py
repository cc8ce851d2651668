"""Exchanges that do not end by themselves: a WebSocket echo, and server-sent events.

Neither knows of the drain: the kit closes them.
"""

from __future__ import annotations

import asyncio
import json

from aiohttp import WSCloseCode, WSMsgType, hdrs, web

from atlas_worker.app.errors import RequestError, bad_field
from atlas_worker.app.identity import IDENTITY
from atlas_worker.app.requests import query_number

MESSAGE_BYTES = 64 * 1024
# A client that vanishes is noticed within one and a half times this (seconds).
_HEARTBEAT = 30.0
_LOW_INTERVAL, _HIGH_INTERVAL = 0.01, 60.0
_LAST_NUMBER_DIGITS = 15

routes = web.RouteTableDef()


@routes.get("/ws")
async def get_websocket(request: web.Request) -> web.StreamResponse:
    """Answer each text message with JSON that carries it and the version."""
    websocket = web.WebSocketResponse(heartbeat=_HEARTBEAT, max_msg_size=MESSAGE_BYTES)
    if not websocket.can_prepare(request):
        raise RequestError(
            "no_websocket", "this is not a WebSocket handshake", hint="use ws://", status=400
        )
    await websocket.prepare(request)
    identity = request.app[IDENTITY]
    async for message in websocket:
        if message.type is WSMsgType.TEXT:
            answer = {"message": message.data, "version": identity.version}
            await websocket.send_json({**answer, "instance": identity.instance})
        elif message.type is WSMsgType.BINARY:
            await websocket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"send text")
    return websocket


@routes.get("/events")
async def get_events(request: web.Request) -> web.StreamResponse:
    """Send endless numbered events, `interval` seconds apart, after `Last-Event-ID` if given."""
    interval = query_number(
        request, "interval", default=1.0, low=_LOW_INTERVAL, high=_HIGH_INTERVAL
    )
    number = _last_number(request)
    identity = request.app[IDENTITY]
    response = web.StreamResponse(headers={hdrs.CACHE_CONTROL: "no-store"})
    response.content_type = "text/event-stream"
    await response.prepare(request)
    await response.write(b"retry: 1000\n\n")
    while True:
        number += 1
        data = {"number": number, "version": identity.version, "instance": identity.instance}
        await response.write(f"id: {number}\ndata: {json.dumps(data)}\n\n".encode())
        await asyncio.sleep(interval)


def _last_number(request: web.Request) -> int:
    text = request.headers.get("Last-Event-ID", "").strip()
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal()) or len(text) > _LAST_NUMBER_DIGITS:
        raise bad_field("Last-Event-ID", "is not an event of this stream", "the id of an event")
    return int(text)
