"""A small ASGI application, written as if there were no supervisor."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

VERSION = os.environ["ATLAS_VERSION"].encode()

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer a POST with its body, anything else with `REQUEST-ID VERSION`."""
    assert scope["type"] == "http"
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if scope["method"] != "POST":
        body = dict(scope["headers"]).get(b"x-request-id", b"-") + b" " + VERSION
    headers = [(b"content-length", b"%d" % len(body)), (b"x-atlas-version", VERSION)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
