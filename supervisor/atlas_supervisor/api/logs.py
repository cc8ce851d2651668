"""The noun `logs`: the last lines of a log, and what comes then, for curl, jq and `atlasctl`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.api import examples
from atlas_supervisor.api.events import LAST_EVENT_ID
from atlas_supervisor.api.responses import bad_header, unreadable
from atlas_supervisor.api.routes import (
    Access,
    AnyRoute,
    Nothing,
    Request,
    ResponseSpec,
    Route,
    StreamReply,
)
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.log import LogFeed, LogLevel, LogLine, LogSource, WantedLines
from atlas_supervisor.model.slot import SlotName

MOST_LINES = 10_000

_PLACE = r"^[0-9]{1,20}-[0-9]{1,20}-[0-9]{1,10}$"
_OWN_ALONE = ("level", "deploy_id", "slot")
_NDJSON, _TEXT, _EVENTS = "application/x-ndjson", "text/plain; charset=utf-8", "text/event-stream"
_RETRY_MILLISECONDS = 1000


class LogsQuery(BaseModel):
    """Which lines, and whether to go on."""

    model_config = ConfigDict(extra="forbid")

    lines: int = Field(
        default=100, ge=0, le=MOST_LINES, description="At most so many of those that are there."
    )
    follow: bool = Field(default=False, description="Go on with what comes, until you leave.")
    # Not the enumerations: a parameter's schema stands in the document without its definitions.
    level: Literal["debug", "info", "warning", "error", "critical"] | None = Field(
        default=None, description="Of at least this level; for the supervisor's log alone."
    )
    deploy_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="Of this deploy; for the supervisor's log alone.",
    )
    slot: Literal["blue", "green"] | None = Field(
        default=None, description="About this slot; for the supervisor's log alone."
    )
    contains: str | None = Field(
        default=None, min_length=1, max_length=200, description="With this text in them."
    )
    events: bool = Field(
        default=False,
        description="As server-sent events, each with an id to go on after.",
    )
    after: str | None = Field(
        default=None,
        pattern=_PLACE,
        description="Those after this id instead of the last ones. `Last-Event-ID` wins.",
    )


Frame = Callable[[LogLine], str]


class _Parts:
    """A feed as the bytes of an answer."""

    def __init__(self, feed: LogFeed, frame: Frame, *, events: bool) -> None:
        self._feed = feed
        self._frame = frame
        self._events = events
        self._opened = not events

    async def next(self) -> bytes | None:
        """Wait for the next part; None: there is no more. Raises AtlasError."""
        if not self._opened:
            self._opened = True
            return f"retry: {_RETRY_MILLISECONDS}\n\n".encode()
        while (lines := await self._feed.next()) is not None:
            if lines:
                return "".join(map(self._frame, lines)).encode()
            if self._events:  # in text, a sign of life would be taken for a line
                return f"id: {self._feed.cursor}\n: still here\n\n".encode()
        return None

    def close(self) -> None:
        """End the feed."""
        self._feed.close()


def _line(line: LogLine) -> str:
    return f"{line.text}\n"


def _event(line: LogLine) -> str:
    kind = "event: gap\n" if line.gap else ""
    return f"id: {line.cursor}\n{kind}data: {line.text}\n\n"


async def _logs(call: Request[LogsQuery, Nothing]) -> StreamReply:
    query = call.query
    try:
        source = LogSource(call.path["source"])
    except ValueError:
        raise RefusedError(_CODE, _MESSAGE, status=404, hint=_HINT) from None
    if source is not LogSource.SUPERVISOR:
        for name in _OWN_ALONE:
            if getattr(query, name) is not None:
                what = f"{name}: a worker's lines have no such thing; use contains"
                raise unreadable("query", what, field=name)
    feed = await call.control.logs.read(
        source,
        WantedLines(
            level=query.level and LogLevel(query.level),
            deploy_id=query.deploy_id,
            slot=query.slot and SlotName(query.slot),
            contains=query.contains,
        ),
        lines=query.lines,
        follow=query.follow,
        after=_after(call),
    )
    plain = _NDJSON if source is LogSource.SUPERVISOR else _TEXT
    return StreamReply(
        _Parts(feed, _event if query.events else _line, events=query.events),
        content_type=_EVENTS if query.events else plain,
        headers={"X-Accel-Buffering": "no"},  # nginx would hold lines back
    )


def _after(call: Request[LogsQuery, Nothing]) -> str | None:
    given = call.headers.get(LAST_EVENT_ID)
    if given is None:
        return call.query.after
    if not re.fullmatch(_PLACE, given, re.ASCII):
        raise bad_header(LAST_EVENT_ID, "it is the id of a line of this log")
    return given


_CODE, _MESSAGE = "log_not_found", "there is no log of this name"
_HINT = "there are supervisor, blue and green"

_OWN_EXAMPLE = (
    '{"ts": "2026-01-05T09:30:01.204116Z", "level": "info", "event": "deploy_transition", '
    '"deploy_id": "d-20260105-093000-4f2a", "release": "1.4.0", "source": "launch", '
    '"happening": "passed", "target": "smoke", "why": "pid 4711 was ready after 310 ms"}\n'
)
_WORKER_EXAMPLE = "2026-01-05 09:30:01,190 INFO version 1.4.0 serves http://127.0.0.1:8790\n"
_EVENTS_EXAMPLE = "retry: 1000\n\nid: 1311-40960-2843712905\ndata: listening\n\n: still here\n\n"

ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/logs/{source}",
        handler=_logs,
        summary="The last lines of a log, and what comes then",
        description=(
            "The supervisor's own log is newline-delimited JSON, a worker's is text with control "
            "characters escaped and overlong lines cut. With `follow=true` the answer goes on over "
            "rotation until the client leaves or the daemon stops; with `events=true` it is a "
            "stream of server-sent events, which can be resumed where it ended."
        ),
        tag="Deploy",
        query=LogsQuery,
        body=Nothing,
        access=Access.SENSITIVE,
        parameters={"source": "`supervisor`, `blue` or `green`."},
        headers={
            LAST_EVENT_ID: {
                "type": "string",
                "pattern": _PLACE,
                "description": "Go on after the line with this id.",
            }
        },
        answers=(
            ResponseSpec(200, "The lines.", None, _OWN_EXAMPLE, content_type=_NDJSON),
            ResponseSpec(
                200, "A worker's lines.", None, _WORKER_EXAMPLE, content_type="text/plain"
            ),
            ResponseSpec(200, "The same as events.", None, _EVENTS_EXAMPLE, content_type=_EVENTS),
            examples.refused(404, _CODE, _MESSAGE, _HINT),
            examples.refused(
                503,
                "too_many_streams",
                "512 streams are open already",
                "close some, or poll GET /deploy/status",
            ),
            examples.refused(503, "stopping", "the supervisor is stopping", "try again later"),
        ),
    ),
)
