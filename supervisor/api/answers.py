"""Every answer is made here, so that none goes out without its security headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from supervisor.api.errors import body_of
from supervisor.api.routes import Reply, StreamReply
from supervisor.errors import RefusedError

_HEADERS = {
    "Server": "atlas-supervisor",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def success(reply: Reply, *, headers: Mapping[str, str]) -> web.Response:
    """Return a handler's reply as a response, with these headers besides its own."""
    payload = reply.payload
    data = payload.model_dump_json().encode() if isinstance(payload, BaseModel) else payload
    return web.Response(
        body=data,
        status=reply.status,
        headers=_headers(reply.content_type, {**reply.headers, **headers}),
    )


def stream(reply: StreamReply) -> web.StreamResponse:
    """Return the beginning of an answer that goes on; the connection ends with it."""
    headers = {**_HEADERS, **reply.headers, "Content-Type": reply.content_type}
    response = web.StreamResponse(headers=headers)
    response.force_close()
    return response


def refusal(
    error: RefusedError, *, headers: Mapping[str, str] | None = None, close: bool = False
) -> web.Response:
    """Return a refusal in the error shape; `close` ends the connection after it."""
    response = web.Response(
        body=_encode(body_of(error)),
        status=error.status,
        headers=_headers("application/json", headers or {}),
    )
    if close:
        response.force_close()
    return response


def raw_timeout() -> bytes:
    """Return the answer to headers that did not come in time, for a bare transport."""
    body = _encode(body_of(too_slow()))
    fields = {**_headers("application/json", {}), "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 408 Request Timeout\r\n{head}Connection: close\r\n\r\n".encode() + body


def too_slow() -> RefusedError:
    """Return the refusal of a request that did not come in time."""
    return RefusedError(
        "too_slow", "the request did not come in whole in time", status=408, hint="send it again"
    )


def _headers(content_type: str, more: Mapping[str, str]) -> dict[str, str]:
    charset = "; charset=utf-8" if content_type.startswith("text/") else ""
    return {"Content-Type": content_type + charset, **_HEADERS, **more}


def _encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()
