"""The routes of the dashboard: its page, its changes as they happen, its forms and its sessions.

Jinja2 and the sections are imported when a page is opened, not at the daemon's start.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from atlas_supervisor import errors
from atlas_supervisor.api.asking import Asker
from atlas_supervisor.api.dashboard_actions import ActionForm, Outcome, Text, as_text, outcome
from atlas_supervisor.api.ports import Control
from atlas_supervisor.api.routes import (
    Access,
    AnyRoute,
    Nothing,
    Reply,
    Request,
    ResponseSpec,
    Route,
    StreamReply,
)
from atlas_supervisor.api.security import rank_of
from atlas_supervisor.api.sessions import LASTS_SECONDS, Rank, Sessions
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.system.threads import in_thread

if TYPE_CHECKING:
    from atlas_supervisor.dashboard.answers import Audience
    from atlas_supervisor.dashboard.live import Board

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    # A form of a page without a referrer has no origin either, and would be refused.
    "Referrer-Policy": "same-origin",
}
_ASSETS = {"atlas.js": "text/javascript", "atlas.css": "text/css"}

_PATIENCE_SECONDS = 8.0
"""So long a browser without the script waits for an action, until the page is shown again."""
_MOST_NOTICES = 50


class PageQuery(BaseModel, extra="forbid"):
    """What the page shows besides the present."""

    notice: Text | None = Field(default=None, description="The outcome of an action, by its id.")


class SignInForm(BaseModel, extra="forbid"):
    """A token, pasted once."""

    token: str = Field(default="", max_length=4096, description="The token, or the view token.")


class PageEvent(BaseModel, frozen=True):
    """One server-sent event; the stream is a sequence of them."""

    event: Literal["sections", "ended"] = Field(description="The kind of event.")
    data: str = Field(
        description="JSON on one line: `at`, the moment of its numbers, and `sections`, their HTML "
        "by name; empty for `ended`."
    )


@dataclass
class _Desk:
    """What the routes share: made at the first request."""

    rows: tuple[AnyRoute, ...]
    sessions: Sessions

    def __post_init__(self) -> None:
        self.notices: dict[str, Outcome] = {}
        self._board: Board | None = None
        self._tasks: set[asyncio.Task[Outcome]] = set()

    async def board(self, control: Control) -> Board:
        if self._board is None:
            # In a thread: probes and the relay go on meanwhile.
            board = await in_thread(_imported)
            asker = Asker(self.rows, control)
            made = board(lambda each, who: asker.ask(each, sees_all=who.sees_all))
            self._board = self._board or made
        return self._board

    def start(self, outcome: Awaitable[Outcome]) -> asyncio.Task[Outcome]:
        """Run an action to its end, also if its client leaves."""
        task = asyncio.ensure_future(outcome)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[Outcome]) -> None:
        self._tasks.discard(task)
        if self._board is not None:
            self._board.expire()  # the page that is shown next has what was done

    def note(self, outcome: Outcome) -> str:
        """Keep an outcome for the page that is shown next; return its id."""
        name = secrets.token_hex(8)
        self.notices[name] = outcome
        while len(self.notices) > _MOST_NOTICES:
            del self.notices[next(iter(self.notices))]
        return name


def routes(rows: Iterable[AnyRoute], sessions: Sessions) -> tuple[AnyRoute, ...]:
    """Return the dashboard's routes; `rows` are those of the API that it uses."""
    desk = _Desk(tuple(rows), sessions)

    def bound(handler: _Handler) -> _Handler:
        async def with_desk(call: Request[Any, Any]) -> Any:
            return await handler(desk, call)

        return with_desk

    return (*_shown(bound), *_session(bound), _action(bound))


_Handler = Callable[..., Awaitable[Any]]
_Bind = Callable[[_Handler], _Handler]
_BACK = ResponseSpec(303, "Back to the page.", None, "", content_type="text/html")


def _shown(bound: _Bind) -> tuple[AnyRoute, ...]:
    """Return the routes of the page, its stream and its files."""
    page = ResponseSpec(200, "A page.", None, content_type="text/html")
    return (
        Route(
            method="GET",
            path="/",
            handler=bound(_page),
            summary="The dashboard",
            description="docs/dashboard.md. For a caller who may read nothing, the form to sign "
            "in.",
            tag=None,
            query=PageQuery,
            body=Nothing,
            access=Access.PUBLIC,
            heavy=True,
            answers=(page,),
        ),
        Route(
            method="GET",
            path="/dashboard/events",
            handler=bound(_events),
            summary="Stream the changes of the dashboard",
            description="Server-sent events for the page's own script: `sections` has the HTML of "
            "the sections that have changed, `ended` that the session has.",
            tag=None,
            query=Nothing,
            body=Nothing,
            answers=(
                ResponseSpec(
                    200,
                    "The stream. This is one of its events.",
                    PageEvent,
                    PageEvent(event="ended", data="{}"),
                    content_type="text/event-stream",
                ),
            ),
            errors=(errors.TOO_MANY_STREAMS, errors.STOPPING),
        ),
        Route(
            method="GET",
            path="/dashboard/{file}",
            handler=_asset,
            summary="A file of the dashboard",
            description="Script or style of the page. Nothing comes from another host.",
            tag=None,
            query=Nothing,
            body=Nothing,
            access=Access.PUBLIC,
            parameters={"file": "The file's name."},
            answers=tuple(
                ResponseSpec(200, f"`{name}`.", None, content_type=content_type)
                for name, content_type in _ASSETS.items()
            ),
            errors=(errors.ASSET_NOT_FOUND,),
        ),
    )


def _session(bound: _Bind) -> tuple[AnyRoute, ...]:
    """Return the routes to sign in and out."""
    return (
        Route(
            method="POST",
            path="/dashboard/session",
            handler=bound(_sign_in),
            summary="Sign in to the dashboard",
            description="With the token, or the view token. The answer sets a cookie, HttpOnly and "
            "SameSite=Strict, that is a session of twelve hours.",
            tag=None,
            query=Nothing,
            body=SignInForm,
            access=Access.PUBLIC,
            form=True,
            answers=(_BACK,),
            errors=(errors.TOKEN_WRONG,),
        ),
        Route(
            method="POST",
            path="/dashboard/session/end",
            handler=bound(_sign_out),
            summary="Sign out of the dashboard",
            description="Ends the session, in every browser that has its cookie.",
            tag=None,
            query=Nothing,
            body=ActionForm,
            access=Access.PUBLIC,
            form=True,
            answers=(_BACK,),
            errors=(errors.FORM_EXPIRED,),
        ),
    )


def _action(bound: _Bind) -> AnyRoute:
    """Return the route of everything that the page's buttons do."""
    return Route(
        method="POST",
        path="/dashboard/actions/{action}",
        handler=bound(_act),
        summary="Do an action of the dashboard",
        description="What the API's own request does, by a form: `deploy`, `dry-run`, "
        "`switch`, `abort`, `rollback`, `hold`, `release`, `ramp-pause`, `ramp-resume`, "
        "`ramp-advance`, `reset`, `reload`; of a fleet `fleet-rollout`, `fleet-pause`, "
        "`fleet-resume`, `fleet-abort`, `fleet-rollback`, `fleet-break`, `fleet-forget`, "
        "`fleet-kill`, `fleet-kill-all`, `fleet-reset`.",
        tag=None,
        query=Nothing,
        body=ActionForm,
        access=Access.FORM,
        form=True,
        parameters={"action": "The action's name."},
        headers={
            "Accept": {
                "type": "string",
                "description": "With `text/html` the answer is a redirect, else the outcome.",
            }
        },
        answers=(ResponseSpec(200, "The outcome.", Outcome), _BACK),
        errors=(errors.NO_SUCH_ACTION,),
    )


def _imported() -> type[Board]:
    """Import what renders pages: it takes as long as a part of the daemon's start."""
    from atlas_supervisor.dashboard import live, page  # noqa: PLC0415  # most are never looked at

    page.compile_templates()
    return live.Board


def _audience(rank: Rank) -> Audience:
    from atlas_supervisor.dashboard.answers import Audience  # noqa: PLC0415  # late, as above

    return (Audience.READER, Audience.VIEWER, Audience.OPERATOR)[rank]


async def _page(desk: _Desk, call: Request[PageQuery, Nothing]) -> Reply:
    board, audience = await desk.board(call.control), _audience(call.rank)
    sections = await board.snapshot(audience) if call.reads else None
    notice = desk.notices.get(call.query.notice or "") if call.rank is Rank.OPERATOR else None
    from atlas_supervisor.dashboard import page  # noqa: PLC0415  # late, as above

    html = page.render_page(
        sections,
        audience=audience,
        notice=notice and notice.model_dump(),
        session=call.session is not None,
        form_token=desk.sessions.form_token(call.actor.name),
        over_tcp=call.actor.origin != "unix",
    )
    return Reply(html.encode(), headers=HEADERS, content_type="text/html")


async def _events(desk: _Desk, call: Request[Nothing, Nothing]) -> StreamReply:
    def alive() -> bool:
        return call.session is None or desk.sessions.holds(call.session)

    board = await desk.board(call.control)
    feed = await board.watch(_audience(call.rank), alive)
    return StreamReply(feed, "text/event-stream", {"X-Accel-Buffering": "no"}, ends_itself=True)


async def _sign_in(desk: _Desk, call: Request[Nothing, SignInForm]) -> Reply:
    rank = rank_of(call.body.token, desk.sessions.tokens)
    if rank is None:
        raise errors.TOKEN_WRONG.error(file="control.token")
    session = desk.sessions.begin(rank)
    actor = Actor(name=session.actor, origin=call.actor.origin)
    hours = LASTS_SECONDS / 3600
    call.control.audit.enqueue(actor, "session", "begun", subject=session.id, hours=hours)
    return _back("../", {"Set-Cookie": desk.sessions.set_cookie(session)})


async def _sign_out(desk: _Desk, call: Request[Nothing, ActionForm]) -> Reply:
    if session := call.session:
        _check(desk, call)
        desk.sessions.end(session.id)
        # Written before the answer: a daemon that is killed then must know of it.
        await call.control.audit.record(call.actor, "session", "ended", subject=session.id)
    return _back("../../", {"Set-Cookie": desk.sessions.clear_cookie()})


async def _act(desk: _Desk, call: Request[Nothing, ActionForm]) -> Reply:
    from atlas_supervisor.dashboard.actions import ACTIONS  # noqa: PLC0415  # late, as above

    _check(desk, call)
    action = ACTIONS.get(call.path["action"])
    if action is None:
        raise errors.NO_SUCH_ACTION.error()
    fields = call.body.model_dump(exclude={"form_token"}, exclude_none=True)
    target = action.path + (f"?{action.query}" if action.query else "")
    command = action.command_line({name: as_text(value) for name, value in fields.items()})
    task = desk.start(outcome(desk.rows, call, target, {**action.body, **fields}, command))
    if "text/html" not in call.headers.get("Accept", ""):
        return Reply(await asyncio.shield(task))
    await asyncio.wait([task], timeout=_PATIENCE_SECONDS)
    under_way = Outcome(ok=True, message="It is under way.", hint="", command=command, audit=[])
    return _back(f"../../?notice={desk.note(task.result() if task.done() else under_way)}")


def _check(desk: _Desk, call: Request[Nothing, ActionForm]) -> None:
    if not desk.sessions.is_form_token(call.body.form_token, call.actor.name):
        raise errors.FORM_EXPIRED.error()


def _back(where: str, more: dict[str, str] | None = None) -> Reply:
    headers = {"Location": where, **(more or {})}
    return Reply(b"", status=303, headers=headers, content_type="text/html")


async def _asset(call: Request[Nothing, Nothing]) -> Reply:
    name = call.path["file"]
    if name not in _ASSETS:  # a name is looked up, never joined to a path unchecked
        raise errors.ASSET_NOT_FOUND.error()
    data = await in_thread(_read_asset, name)
    return Reply(data, content_type=_ASSETS[name], kept=True)


@cache
def _read_asset(name: str) -> bytes:
    from atlas_supervisor.dashboard import page  # noqa: PLC0415  # late, as above

    return (page.STATIC / name).read_bytes()
