"""Structured errors: a code for programs, a message and a hint for people."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable

from aiohttp import web

_log = logging.getLogger("atlas.worker")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RequestError(Exception):
    """An invalid request; `field` names the part that is wrong."""

    def __init__(
        self, code: str, message: str, *, hint: str, status: int = 400, field: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.status = status
        self.field = field


def bad_field(field: str, problem: str, accepted: str) -> RequestError:
    """Return the error for one bad field: the problem, and the accepted values."""
    return RequestError(
        "bad_field", f"{field} {problem}", hint=f"{field} is {accepted}", field=field
    )


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception into a structured error."""
    try:
        return await handler(request)
    except RequestError as error:
        return _answer(error.status, error.code, error.message, error.hint, field=error.field)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _from_http(request, error)
    except sqlite3.DatabaseError as error:
        _log.warning("the database failed: %s", error)
        return _answer(503, "storage_unavailable", f"the database failed: {error}", "try again")
    except Exception:  # noqa: BLE001 - the last resort: a bug gets a structured error, too
        _log.exception("%s %s failed", request.method, request.path)
        return _answer(500, "internal_error", "this is a bug of the worker", "see the worker's log")


def _from_http(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    if isinstance(error, web.HTTPNotFound):
        return _answer(
            404, "not_found", f"there is nothing at {request.path}", "GET / names this worker"
        )
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        response = _answer(
            405, "method_not_allowed", f"{request.method} can't be used here", f"use {allowed}"
        )
        response.headers["Allow"] = allowed
        return response
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return _answer(413, "body_too_large", error.text or "the body is too large", "send less")
    return _answer(error.status, "refused", error.reason, "see the message")


def _answer(
    status: int, code: str, message: str, hint: str, *, field: str | None = None
) -> web.Response:
    body: dict[str, str] = {"code": code, "message": message, "hint": hint}
    if field is not None:
        body["field"] = field
    return web.json_response({"error": body}, status=status)
