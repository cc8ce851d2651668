"""Parses requests strictly: unknown and repeated fields are refused by name, not ignored."""

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

from atlas_supervisor import errors
from atlas_supervisor.api.responses import bad_field, bad_header, invalid
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.idempotency_key import IdempotencyKey

MAX_BODY_BYTES = 64 * 1024
_MAX_QUERY_FIELDS = 32
_TWICE = "given twice"

IDEMPOTENCY_KEY = "Idempotency-Key"
KEY_PATTERN = r'^(?:"[!-~]{1,255}"|(?!""$)[!-~]{1,255})$'
"""Quoted, as in the IETF's draft, or bare."""
_KEY = re.compile(KEY_PATTERN, re.ASCII)
_ANSWER_FIELDS = {"wait"}
"""Query fields that choose the answer, not the action."""

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
        raise errors.INVALID_QUERY.error(
            problem="the query is not UTF-8, or has too many fields"
        ) from error
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            raise bad_field(errors.INVALID_QUERY, name, _TWICE)
        fields[name] = value
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid(errors.INVALID_QUERY, error) from error


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
        raise invalid(errors.INVALID_BODY, error) from error


def read_key(
    request: web.BaseRequest, actor: Actor, query: BaseModel, body: BaseModel
) -> IdempotencyKey | None:
    """Return the `Idempotency-Key` with the fingerprint of the request; None without a key.

    Raises RefusedError (400). Quoted and bare are the same key.
    """
    given = request.headers.getall(IDEMPOTENCY_KEY, [])
    if not given:
        return None
    value = given[0]
    if len(given) > 1 or not _KEY.fullmatch(value):
        field = {"field": IDEMPOTENCY_KEY}
        raise errors.INVALID_IDEMPOTENCY_KEY.error(header=IDEMPOTENCY_KEY, extra=field)
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    asked = query.model_dump(mode="json", exclude=_ANSWER_FIELDS)
    request_of_key = [request.method, request.path, asked, body.model_dump(mode="json"), actor.name]
    canonical = json.dumps(request_of_key, sort_keys=True).encode()
    return IdempotencyKey(value, hashlib.sha256(canonical).hexdigest())


def read_headers(request: web.BaseRequest, names: Iterable[str]) -> dict[str, str]:
    """Return the values of those headers that the request has.

    Raises RefusedError (400) for one that is given twice.
    """
    found: dict[str, str] = {}
    for name in names:
        given = request.headers.getall(name, [])
        if len(given) > 1:
            raise bad_header(name, _TWICE)
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
        raise errors.TOO_SLOW.error() from error
    except web.RequestPayloadError as error:
        raise errors.INVALID_BODY.error(problem="the body is not valid HTTP") from error


def _check_type(request: web.Request) -> None:
    given = "Content-Type" in request.headers
    charset = (request.charset or "utf-8").lower()
    foreign = given and (request.content_type != "application/json" or charset != "utf-8")
    if foreign or "Content-Encoding" in request.headers:
        raise errors.UNSUPPORTED_MEDIA_TYPE.error()


def _check_json(data: bytes) -> None:
    """Refuse what a lenient parser accepts (NaN, a key given twice), and JSON nested too deeply."""
    try:
        json.loads(
            data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates
        )
    except RecursionError as error:
        raise errors.INVALID_BODY.error(problem="the JSON is nested too deeply") from error
    except ValueError as error:  # bad UTF-8 and numbers of thousands of digits as well
        raise errors.INVALID_BODY.error(problem="the body is not valid JSON") from error


def _refuse_constant(name: str) -> NoReturn:
    raise errors.INVALID_BODY.error(problem=f"{name} is not JSON")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise bad_field(errors.INVALID_BODY, name, _TWICE)
        found[name] = value
    return found
