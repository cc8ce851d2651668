"""Reads requests: bounded, validated, and refused with the field's name."""

from __future__ import annotations

import json
import math
from typing import Any, TypeGuard

from aiohttp import web

from atlas_worker.app.errors import RequestError, bad_field
from atlas_worker.contract import SMOKE_HEADER

JSON_BYTES = 1024 * 1024


def is_smoke(request: web.Request) -> bool:
    """Return whether the request is a smoke test's, whose writes must be undone."""
    return SMOKE_HEADER in request.headers


async def read_body(request: web.Request, limit: int) -> bytes:
    """Return the body; raises `RequestError` 413 once it is longer than `limit` bytes."""
    if "Content-Encoding" in request.headers:
        raise RequestError(
            "encoded_body", "an encoded body is not accepted here", hint="send it plain", status=415
        )
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise RequestError(
                "body_too_large",
                f"the body is longer than {limit} bytes",
                hint=f"send at most {limit} bytes",
                status=413,
            )
    return bytes(body)


async def read_object(request: web.Request, *, fields: frozenset[str]) -> dict[str, Any]:
    """Return the body as a JSON object that has no other fields; raises `RequestError`."""
    body = await read_body(request, JSON_BYTES)
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise RequestError(
            "bad_json", "the body is not JSON", hint="send a JSON object", field="body"
        ) from None
    if not isinstance(value, dict):
        raise bad_field("body", "is not a JSON object", "a JSON object")
    for name in value.keys() - fields:
        known = ", ".join(sorted(fields))
        raise RequestError(
            "unknown_field", f"{name[:80]!r} is unknown", hint=f"known are: {known}", field="body"
        )
    return value


def text_field(value: dict[str, Any], name: str, *, limit: int) -> str:
    """Return a required, non-empty text of at most `limit` characters."""
    text = value.get(name)
    if not isinstance(text, str) or not text.strip() or len(text) > limit:
        raise bad_field(name, "is missing or invalid", f"a text of 1 to {limit} characters")
    if not is_storable(text):
        raise bad_field(name, "contains half a surrogate pair", "valid Unicode")
    return text


def is_storable(text: str) -> bool:
    """Return whether the text can be written as UTF-8; JSON may contain half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a JSON value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def query_number(
    request: web.Request, name: str, *, default: float | None, low: float, high: float
) -> float:
    """Return a number of the query string within bounds."""
    text = request.query.get(name)
    if text is None and default is not None:
        return default
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise bad_field(name, "is missing or out of range", f"a number from {low:g} to {high:g}")
    return number


def query_count(request: web.Request, name: str, *, default: int, high: int) -> int:
    """Return a whole number of the query string, from 1 to `high`."""
    number = query_number(request, name, default=default, low=1, high=high)
    if number != int(number):
        raise bad_field(name, "is not a whole number", f"a whole number from 1 to {high}")
    return int(number)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
