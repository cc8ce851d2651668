"""Calls the API's own handlers from within the daemon, as a request would.

So the dashboard shows what the API answers and does what the API does: there is no second way in.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from atlas_supervisor import errors
from atlas_supervisor.api.messages import invalid
from atlas_supervisor.api.ports import Control
from atlas_supervisor.api.routes import Access, AnyRoute, Request, StreamReply
from atlas_supervisor.errors import AtlasError, RefusedError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.worker_text import disclosed, withheld
from atlas_supervisor.system.threads import in_thread

_LONG_BYTES = 64 * 1024
"""What is longer is read in a thread."""
_ANYONE = Actor(name="anonymous", origin="internal")


class Asker:
    """Finds the row of a request and calls its handler."""

    def __init__(self, rows: Iterable[AnyRoute], control: Control) -> None:
        # Fixed paths first, as the router does.
        self._rows = sorted(rows, key=lambda row: ("{" in row.path, row.path))
        self._control = control

    async def ask(self, target: str, *, sees_all: bool) -> dict[str, Any]:
        """Return the JSON that a GET is answered with, also if that is an error."""
        row, path = self._find("GET", target)
        try:
            if row.access is not Access.READ and not sees_all:
                raise errors.TOKEN_REQUIRED.error(file="control.token")
            return await self._call(row, target, path, {}, _ANYONE, sees_all=sees_all)
        except RefusedError as refused:
            return _as_json(refused, sees_all=sees_all)
        except AtlasError as error:  # the database, for example
            return _as_json(errors.UNAVAILABLE.error(problem=error), sees_all=sees_all)

    async def do(self, target: str, body: dict[str, Any], actor: Actor) -> dict[str, Any]:
        """Send a POST for `actor`, who may change things; return its answer.

        Raises RefusedError, and AtlasError where the daemon's storage fails.
        """
        row, path = self._find("POST", target)
        return await self._call(row, target, path, body, actor, sees_all=True)

    def _find(self, method: str, target: str) -> tuple[AnyRoute, dict[str, str]]:
        parts = target.partition("?")[0].split("/")
        for row in self._rows:
            pattern = row.path.split("/")
            if row.method == method and len(pattern) == len(parts):
                pairs = list(zip(pattern, parts, strict=True))
                if all(each.startswith("{") or each == part for each, part in pairs):
                    named = ((each, part) for each, part in pairs if each.startswith("{"))
                    return row, {each.strip("{}"): part for each, part in named}
        raise LookupError(f"{method} {target}")

    async def _call(
        self,
        row: AnyRoute,
        target: str,
        path: dict[str, str],
        body: dict[str, Any],
        actor: Actor,
        *,
        sees_all: bool,
    ) -> dict[str, Any]:
        try:
            query = row.query.model_validate(dict(parse_qsl(target.partition("?")[2])))
            model = row.body.model_validate(body)
        except ValidationError as error:
            raise invalid(errors.INVALID_BODY, error) from error
        call = Request(
            control=self._control, actor=actor, query=query, body=model, path=path, trusted=sees_all
        )
        reply = await row.handler(call)
        if isinstance(reply, StreamReply):
            return {"lines": await _lines(reply)}
        payload = reply.payload
        if not isinstance(payload, BaseModel):
            raise TypeError(f"{target} is not answered with JSON")
        data = payload.model_dump_json().encode()
        if len(data) > _LONG_BYTES:
            return await in_thread(partial(_read, data, sees_all=sees_all))
        return _read(data, sees_all=sees_all)


def _read(data: bytes, *, sees_all: bool) -> dict[str, Any]:
    answer: dict[str, Any] = from_json(disclosed(data) if sees_all else withheld(data))
    return answer


def _as_json(refused: RefusedError, *, sees_all: bool) -> dict[str, Any]:
    mend = disclosed if sees_all else withheld
    texts = {"code": refused.code, "message": refused.message, "hint": refused.hint}
    return {"error": {name: mend(text.encode()).decode() for name, text in texts.items()}}


async def _lines(reply: StreamReply) -> list[str]:
    """Return the lines of a stream that ends by itself: a log that is not followed."""
    parts = []
    try:
        while (part := await reply.source.next()) is not None:
            parts.append(part)
    finally:
        reply.source.close()
    return b"".join(parts).decode("utf-8", "replace").splitlines()
