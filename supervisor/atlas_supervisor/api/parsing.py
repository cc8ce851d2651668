"""Takes a request apart, strictly: whatever is not understood is refused by name, not ignored."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl

from aiohttp import web
from pydantic import BaseModel, ValidationError

from atlas_supervisor.api.responses import bad_header, invalid, too_slow, unreadable
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.idempotency_key import IdempotencyKey

MAX_BODY_BYTES = 64 * 1024
_MAX_QUERY_FIELDS = 32

IDEMPOTENCY_KEY = "Idempotency-Key"
KEY_PATTERN = r'^(?:"[!-~]{1,255}"|(?!""$)[!-~]{1,255})$'
"""In quotes, as the IETF's draft has it, or bare."""
_KEY = re.compile(KEY_PATTERN, re.ASCII)
_NOT_ASKED_FOR = {"wait"}
"""Query fields that say how to answer, not what to do."""

M = TypeVar("M", bound=BaseModel)


def read_query(request: web.BaseRequest, model: type[M]) -> M:
    """Return the query as `model`. Raises RefusedError (400), naming the field."""
    _, _, raw = request.raw_path.partition("?")
    try:
        raw.encode("ascii")
        pairs = parse_qsl(
            raw, keep_blank_values=True, errors="strict", max_num_fields=_MAX_QUERY_FIELDS
        )
    except ValueError as error:
        raise unreadable("query", "the query is not UTF-8, or too long") from error
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            raise unreadable("query", "a field is given twice", field=name)
        fields[name] = value
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid("query", error) from error


async def read_body(request: web.Request, model: type[M], deadline: float) -> M:
    """Return the JSON body as `model`; no body is `{}`.

    Raises RefusedError: 400, 408 when `deadline` (loop time) has passed, 413, 415.
    """
    data = await _read(request, deadline)
    if data:
        _check_type(request)
    text = data or b"{}"
    _check_json(text)
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise invalid("body", error) from error


def read_key(
    request: web.BaseRequest, actor: Actor, query: BaseModel, body: BaseModel
) -> IdempotencyKey | None:
    """Return the `Idempotency-Key` with what the request asks for; None if it has none.

    Raises RefusedError (400). In quotes or bare, it is the same key.
    """
    given = request.headers.getall(IDEMPOTENCY_KEY, [])
    if not given:
        return None
    value = given[0]
    if len(given) > 1 or not _KEY.fullmatch(value):
        raise RefusedError(
            "invalid_header",
            f"{IDEMPOTENCY_KEY}: one key of 1 to 255 visible ASCII characters is taken",
            status=400,
            hint="a UUID is a good key: a new one for each request, the same one to repeat it",
            extra={"field": IDEMPOTENCY_KEY},
        )
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    asked = query.model_dump(mode="json", exclude=_NOT_ASKED_FOR)
    request_of_key = [request.method, request.path, asked, body.model_dump(mode="json"), actor.name]
    said = json.dumps(request_of_key, sort_keys=True)
    return IdempotencyKey(value, hashlib.sha256(said.encode()).hexdigest())


def read_headers(request: web.BaseRequest, names: Iterable[str]) -> dict[str, str]:
    """Return those of these headers that were given. Raises RefusedError (400) for one twice."""
    found: dict[str, str] = {}
    for name in names:
        given = request.headers.getall(name, [])
        if len(given) > 1:
            raise bad_header(name, "it is given twice")
        if given:
            found[name] = given[0]
    return found


async def _read(request: web.Request, deadline: float) -> bytes:
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, request.content_length or 0)
    try:
        async with asyncio.timeout_at(deadline):
            return await request.read()
    except TimeoutError as error:
        raise too_slow() from error
    except web.RequestPayloadError as error:
        raise unreadable("body", "the body is not valid HTTP") from error


def _check_type(request: web.Request) -> None:
    given = "Content-Type" in request.headers
    charset = (request.charset or "utf-8").lower()
    if given and (request.content_type != "application/json" or charset != "utf-8"):
        raise RefusedError(
            "unsupported_media_type",
            "a body is JSON in UTF-8",
            status=415,
            hint="send Content-Type: application/json",
        )
    if "Content-Encoding" in request.headers:
        raise RefusedError(
            "unsupported_media_type",
            "a compressed body is not taken",
            status=415,
            hint="leave Content-Encoding out",
        )


def _check_json(data: bytes) -> None:
    """Refuse what a lenient parser takes: NaN, a key given twice; and what breaks it: depth."""
    try:
        json.loads(
            data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates
        )
    except RecursionError as error:
        raise unreadable("body", "the JSON is nested too deeply") from error
    except ValueError as error:  # bad UTF-8 and numbers of thousands of digits as well
        raise unreadable("body", "the body is not valid JSON") from error


def _refuse_constant(name: str) -> NoReturn:
    raise unreadable("body", f"{name} is not JSON")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise unreadable("body", "a field is given twice", field=name)
        found[name] = value
    return found
