"""Every answer is made here, so that none goes out without its security headers.

How every refusal looks, so that a client needs one way to read them all.

`RefusedError` is raised by whoever refuses; this module alone turns it, aiohttp's own refusals
and bugs into the error shape of the API.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_jsonable_python

from atlas_supervisor.api.routes import Reply, StreamReply
from atlas_supervisor.errors import RefusedError

# Codes and hints for what aiohttp refuses by itself.
_BY_STATUS = {
    404: ("not_found", "GET /docs shows every path there is"),
    405: ("method_not_allowed", "the Allow header names the methods that this path takes"),
    413: ("body_too_large", "a body may have 65536 bytes"),
    417: ("expectation_failed", "the only expectation that is understood is 100-continue"),
}


class ErrorDetail(BaseModel):
    """What went wrong, for a program (`code`) and for a person (the rest)."""

    model_config = ConfigDict(frozen=True)

    code: str = Field(description="Stable and snake_case.")
    message: str
    hint: str = Field(description="What the caller can do about it.")
    field: str | None = Field(
        default=None, description="The query key or body field at fault, where there is one."
    )


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    model_config = ConfigDict(frozen=True)

    error: ErrorDetail


def printable(text: str) -> str:
    """Return `text` with everything escaped that could forge a log line or move a cursor."""
    return text.encode("ascii", "backslashreplace").decode("ascii").translate(_ESCAPES)


_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


def invalid(what: str, error: ValidationError) -> RefusedError:
    """Return the refusal for the first fault of a query or body (`what`), naming its field."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = printable(".".join(str(part) for part in fault["loc"]))[:100]
    message = f"{field}: {fault['msg']}" if field else fault["msg"]
    return RefusedError(
        f"invalid_{what}",
        message if fault["type"] != "extra_forbidden" else f"{field}: there is no such field",
        status=400,
        hint="GET /docs shows what this request takes",
        extra={"field": field} if field else None,
    )


def unreadable(what: str, message: str, *, field: str | None = None) -> RefusedError:
    """Return the refusal for a query or body (`what`) that can't even be taken apart."""
    return RefusedError(
        f"invalid_{what}",
        message,
        status=400,
        hint="GET /docs shows what this request takes",
        extra={"field": printable(field)[:100]} if field else None,
    )


def bad_header(name: str, message: str) -> RefusedError:
    """Return the refusal of a header's value, naming the header."""
    return RefusedError(
        "invalid_header",
        f"{name}: {message}",
        status=400,
        hint="GET /docs shows what this request takes",
        extra={"field": name},
    )


def of_http_exception(error: web.HTTPException) -> RefusedError:
    """Return aiohttp's own refusal in our words."""
    code, hint = _BY_STATUS.get(error.status, ("refused", "GET /docs shows what is there"))
    phrase = HTTPStatus(error.status).phrase.lower()
    return RefusedError(code, phrase, status=error.status, hint=hint)


def body_of(error: RefusedError) -> dict[str, Any]:
    """Return the JSON body of a refusal: its further fields, and `error`."""
    extra = dict(error.extra)
    detail = {"code": error.code, "message": error.message, "hint": error.hint}
    if error.status == 400 and "field" in extra:
        detail["field"] = extra.pop("field")
    return {**to_jsonable_python(extra), "error": detail}


def unavailable(why: str) -> RefusedError:
    """Return the answer where the daemon's own storage does not do its part."""
    return RefusedError(
        "unavailable",
        why,
        status=503,
        hint="see whether the disk of STATE_DIR is full, read-only or locked; traffic is not "
        "concerned",
    )


def internal_error() -> RefusedError:
    """Return the answer to a bug: it tells nothing about the inside."""
    return RefusedError(
        "internal_error",
        "the daemon failed to answer this request",
        status=500,
        hint="the daemon's log has the details; please report it",
    )


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
