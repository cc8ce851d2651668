"""Reads requests strictly, and builds every response: success, stream and error.

Unknown and repeated fields of a request are refused by name, not ignored. Every response has the
security headers. Errors have one shape: this module alone turns `RefusedError` and aiohttp's own
HTTP exceptions into it.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_jsonable_python

from atlas_supervisor import errors
from atlas_supervisor.api.routes import Reply, StreamReply
from atlas_supervisor.errors import ErrorSpec, RefusedError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.worker_text import disclosed, withheld
from atlas_supervisor.system.text import escaped
from atlas_supervisor.system.threads import in_thread

FORM = "application/x-www-form-urlencoded"
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

_BY_STATUS = {
    row.status: row
    for row in (
        errors.NOT_FOUND,
        errors.METHOD_NOT_ALLOWED,
        errors.BODY_TOO_LARGE,
        errors.EXPECTATION_FAILED,
    )
}
"""What aiohttp refuses by itself."""

_HEADERS = {
    "Server": "atlas-supervisor",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LONGEST_FIELD = 100
_PIECE_BYTES = 16 * 1024
_LONG_BYTES = 64 * 1024


class ErrorDetail(BaseModel, frozen=True):
    """What went wrong: `code` for programs, the rest for people."""

    code: str = Field(description="Stable, snake_case.")
    message: str = Field(description="What went wrong.")
    hint: str = Field(description="What the caller can do about it.")
    field: str | None = Field(
        default=None, description="The query field, body field or header at fault, if any."
    )
    lines: list[str] | None = Field(
        default=None, description="Of a refused reload: one line for each fault."
    )


class ErrorAnswer(BaseModel, frozen=True):
    """The body of every error."""

    error: ErrorDetail = Field(description="What went wrong.")


# Responses.


async def success(reply: Reply, *, headers: Mapping[str, str], trusted: bool) -> web.Response:
    """Return a handler's reply as a response, with these headers besides its own.

    Without what workers have said, unless the caller is trusted.
    """
    data = reply.payload
    if isinstance(data, BaseModel):
        data = data.model_dump_json().encode()
        if trusted:
            data = disclosed(data)
        elif len(data) > _LONG_BYTES:
            data = await in_thread(withheld, data)
        else:
            data = withheld(data)
    return web.Response(
        body=_PacedBody(data, kept=reply.kept) if len(data) > _PIECE_BYTES else data,
        status=reply.status,
        headers=_headers(reply.content_type, {**reply.headers, **headers}),
    )


class _PacedBody(Payload):
    """A body that is written piece by piece, as its client reads: the rest is not copied."""

    _default_content_type = "application/octet-stream"
    _autoclose = True

    def __init__(self, data: bytes, *, kept: bool) -> None:
        super().__init__(data)
        self._data = data
        self._size = len(data)
        self.own_size = 0 if kept else len(data)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._data.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for start in range(0, len(self._data), _PIECE_BYTES):
            await writer.write(self._data[start : start + _PIECE_BYTES])
            await writer.drain()


def stream(reply: StreamReply) -> web.StreamResponse:
    """Return the head of an open-ended answer; the connection ends with it."""
    headers = {**_HEADERS, **reply.headers, "Content-Type": reply.content_type}
    response = web.StreamResponse(headers=headers)
    response.force_close()
    return response


def own_size(response: web.StreamResponse) -> int:
    """Return how much memory the body of a complete answer takes; of a short one and a stream 0."""
    body = response.body if isinstance(response, web.Response) else None
    return body.own_size if isinstance(body, _PacedBody) else 0


def refusal(
    error: RefusedError,
    *,
    headers: Mapping[str, str] | None = None,
    close: bool = False,
    trusted: bool = False,
) -> web.Response:
    """Return an error as a response; `close` ends the connection after it."""
    response = web.Response(
        body=_encode(error, trusted=trusted),
        status=error.status,
        headers=_headers("application/json", headers or {}),
    )
    if close:
        response.force_close()
    return response


_REFUSAL = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Refused: ATLAS Supervisor</title>
<h1>{message}</h1>
<p>{hint}.</p>
<p><a href="{back}">Open the dashboard</a></p>
</html>
"""


def refusal_page(error: RefusedError, *, back: str, headers: Mapping[str, str]) -> web.Response:
    """Return an error as a page, for a browser that was led to the dashboard."""
    text = {"message": error.message, "hint": error.hint, "back": back}
    page = _REFUSAL.format(**{name: html.escape(each) for name, each in text.items()})
    response = web.Response(
        body=page.encode(), status=error.status, headers=_headers("text/html", headers)
    )
    response.force_close()
    return response


def raw_timeout() -> bytes:
    """Return the whole answer to headers that did not arrive in time, for a bare transport."""
    body = _encode(errors.TOO_SLOW.error(), trusted=False)
    fields = {**_headers("application/json", {}), "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 408 Request Timeout\r\n{head}Connection: close\r\n\r\n".encode() + body


def _headers(content_type: str, more: Mapping[str, str]) -> dict[str, str]:
    charset = "; charset=utf-8" if content_type.startswith("text/") else ""
    return {"Content-Type": content_type + charset, **_HEADERS, **more}


def _encode(error: RefusedError, *, trusted: bool) -> bytes:
    extra = dict(error.extra)
    detail = {"code": error.code, "message": error.message, "hint": error.hint}
    if error.status == 400 and "field" in extra:
        detail["field"] = extra.pop("field")
    if error.code == errors.RELOAD_REFUSED.code:
        detail["lines"] = extra.pop("lines", [error.message])
    document = {**to_jsonable_python(extra), "error": detail}
    # Halves of characters become escapes, which JSON has, too.
    text = json.dumps(document, ensure_ascii=False).encode(errors="backslashreplace")
    return disclosed(text) if trusted else withheld(text)


# Errors that are made from what a library found.


_IN_WORDS = {
    "extra_forbidden": "unknown field",
    "string_pattern_mismatch": "it has characters that can't be in it, or is too long",
}


def invalid(row: ErrorSpec, error: ValidationError) -> RefusedError:
    """Return the error for the first fault that pydantic found in a query or body."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in fault["loc"])
    message = _IN_WORDS.get(fault["type"], fault["msg"])
    return bad_field(row, field, message)


def bad_field(row: ErrorSpec, field: str, problem: str) -> RefusedError:
    """Return the error for a query or body, naming the field at fault unless it is empty."""
    field = escaped(field)[:_LONGEST_FIELD]
    if not field:
        return row.error(problem=problem)
    return row.error(problem=f"{field}: {problem}", extra={"field": field})


def bad_header(name: str, problem: str) -> RefusedError:
    """Return the error for a header's value."""
    return errors.INVALID_HEADER.error(header=name, problem=problem, extra={"field": name})


def of_http_exception(error: web.HTTPException) -> RefusedError:
    """Return the error for one of aiohttp's own HTTP exceptions."""
    row = _BY_STATUS.get(error.status, errors.REFUSED)
    return row.error(status=error.status, phrase=HTTPStatus(error.status).phrase.lower())


# Requests.


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


async def read_form(request: web.Request, model: type[M], deadline: float) -> M:
    """Return a form's fields as `model`; empty ones are left out. Raises RefusedError as above."""
    data = await _read(request, deadline)
    if request.content_type != FORM or not data.isascii():
        raise errors.INVALID_BODY.error(problem="the body must be a form's fields, URL-encoded")
    fields: dict[str, str] = {}
    try:
        pairs = parse_qsl(data.decode(), errors="strict", max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError as error:
        raise errors.INVALID_BODY.error(problem="the fields are not UTF-8, or too many") from error
    for name, value in pairs:
        if name in fields:
            raise bad_field(errors.INVALID_BODY, name, _TWICE)
        fields[name] = value
    try:
        return model.model_validate(fields)
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
