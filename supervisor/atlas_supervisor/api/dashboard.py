"""The routes of the dashboard: the page and its files.

The page is made of what the API's own handlers answer, asked in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

from pydantic import BaseModel
from pydantic_core import from_json

from atlas_supervisor import errors
from atlas_supervisor.api.ports import Control
from atlas_supervisor.api.routes import (
    Access,
    AnyRoute,
    Nothing,
    Reply,
    Request,
    ResponseSpec,
    Route,
)
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.worker_text import disclosed, withheld

_POLICY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
}
_ASSETS = {"atlas.js": "text/javascript", "atlas.css": "text/css"}


class Asker:
    """Asks the API's own handlers, as a request would."""

    def __init__(self, rows: Iterable[AnyRoute], control: Control) -> None:
        self._rows = tuple(row for row in rows if row.method == "GET")
        self._control = control

    async def ask(self, target: str, *, sees_all: bool) -> dict[str, Any]:
        """Return the JSON answer of a GET, an error included."""
        path, _, query = target.partition("?")
        row, found = self._row(path)
        try:
            if row.access is not Access.READ and not sees_all:
                raise errors.TOKEN_REQUIRED.error(file="CONTROL_TOKEN_FILE")
            call = Request(
                control=self._control,
                actor=Actor(name="anonymous", origin="internal"),
                query=row.query.model_validate(dict(parse_qsl(query))),
                body=Nothing(),
                path=found,
                trusted=sees_all,
            )
            reply = await row.handler(call)
        except RefusedError as error:
            return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
        payload = getattr(reply, "payload", None)
        if not isinstance(payload, BaseModel):
            raise TypeError(f"{target} is not answered with JSON")
        data = payload.model_dump_json().encode()
        answer: dict[str, Any] = from_json(disclosed(data) if sees_all else withheld(data))
        return answer

    def _row(self, path: str) -> tuple[AnyRoute, dict[str, str]]:
        for row in self._rows:
            if row.path == path:
                return row, {}
        for row in self._rows:
            head, brace, name = row.path.partition("{")
            if brace and path.startswith(head) and "/" not in path[len(head) :]:
                return row, {name.rstrip("}"): path[len(head) :]}
        raise LookupError(path)


def routes(rows: Iterable[AnyRoute]) -> tuple[AnyRoute, ...]:
    """Return the dashboard's routes; `rows` are those that it asks."""
    rows = tuple(rows)

    async def page(call: Request[Nothing, Nothing]) -> Reply:
        # Jinja2 takes a sixth of the daemon's start, and most daemons are never looked at.
        from atlas_supervisor.dashboard import page  # noqa: PLC0415  # see above
        from atlas_supervisor.dashboard.answers import Answers, Audience  # noqa: PLC0415

        audience = Audience.OPERATOR if call.trusted else Audience.READER
        asker = Asker(rows, call.control)
        found = {each: await asker.ask(each, sees_all=audience.sees_all) for each in page.needs()}
        answers = Answers(found, at=datetime.now(UTC), audience=audience)
        html = {
            name: page.render_section(name, section.view(answers), answers)
            for name, section in page.SECTIONS.items()
        }
        return Reply(page.render_page(html).encode(), headers=_POLICY, content_type="text/html")

    return (
        _route(
            "/", page, "The dashboard", ResponseSpec(200, "A page.", None, content_type="text/html")
        ),
        Route(
            method="GET",
            path="/dashboard/{asset}",
            handler=_asset,
            summary="A file of the dashboard",
            description="Script or style of the page. Nothing comes from another host.",
            tag=None,
            query=Nothing,
            body=Nothing,
            parameters={"asset": "The file's name."},
            answers=tuple(
                ResponseSpec(200, f"`{name}`.", None, content_type=content_type)
                for name, content_type in _ASSETS.items()
            ),
            errors=(errors.ASSET_NOT_FOUND,),
        ),
    )


def _route(path: str, handler: Callable[..., Any], summary: str, answer: ResponseSpec) -> AnyRoute:
    return Route(
        method="GET",
        path=path,
        handler=handler,
        summary=summary,
        description="For people: docs/dashboard.md.",
        tag=None,
        query=Nothing,
        body=Nothing,
        answers=(answer,),
    )


async def _asset(call: Request[Nothing, Nothing]) -> Reply:
    name = call.path["asset"]
    if name not in _ASSETS:  # a name is looked up, never joined to a path unchecked
        raise errors.ASSET_NOT_FOUND.error()
    data = await asyncio.to_thread(_read_asset, name)
    return Reply(data, content_type=_ASSETS[name], kept=True)


@cache
def _read_asset(name: str) -> bytes:
    from atlas_supervisor.dashboard import page  # noqa: PLC0415  # as above

    return (page.STATIC / name).read_bytes()
