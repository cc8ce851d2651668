"""The route that reads and follows the logs, for curl, jq and `atlasctl`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, Field

from atlas_supervisor import errors
from atlas_supervisor.api.events import LAST_EVENT_ID
from atlas_supervisor.api.messages import bad_field, bad_header
from atlas_supervisor.api.routes import (
    Access,
    AnyRoute,
    Nothing,
    Request,
    ResponseSpec,
    Route,
    StreamReply,
)
from atlas_supervisor.model.log import LogFeed, LogLevel, LogLine, LogSource, WantedLines
from atlas_supervisor.model.slot import SlotName

MOST_LINES = 10_000

_PLACE = r"^[0-9]{1,20}-[0-9]{1,20}-[0-9]{1,10}$"
_OWN_ALONE = ("level", "deploy_id", "slot")
_SUPERVISOR_ONLY = "a worker's lines have no such field; use contains"
_NDJSON, _TEXT, _EVENTS = "application/x-ndjson", "text/plain; charset=utf-8", "text/event-stream"
_RETRY_MILLISECONDS = 1000


class LogEvent(BaseModel, frozen=True):
    """One line of a log as a server-sent event."""

    event: Literal["message", "gap"] = Field(
        default="message", description="`gap`: lines are missing here; `data` says why."
    )
    data: str = Field(description="The line.")
    id: str = Field(description="The id to resume after.")


class LogsQuery(BaseModel, extra="forbid"):
    """Which lines to return, and how."""

    lines: int = Field(
        default=100, ge=0, le=MOST_LINES, description="Maximum number of existing lines."
    )
    follow: bool = Field(
        default=False,
        description="Continue with new lines, over rotation, until the client leaves or the daemon "
        "stops.",
    )
    # Literals, not enums: a parameter's schema is written to the document without definitions.
    level: Literal["debug", "info", "warning", "error", "critical"] | None = Field(
        default=None, description="Only lines of at least this level; `supervisor` only."
    )
    deploy_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="Only lines about this deploy; `supervisor` only.",
    )
    slot: Literal["blue", "green"] | None = Field(
        default=None, description="Only lines about this slot; `supervisor` only."
    )
    contains: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Only lines with this text (as in the line, or as `key=value`).",
    )
    events: bool = Field(
        default=False,
        description="Answer with server-sent events, each with an id to resume after.",
    )
    after: str | None = Field(
        default=None,
        pattern=_PLACE,
        description="Lines after this id instead of the last ones. `Last-Event-ID` wins.",
    )


Frame = Callable[[LogLine], str]


class _Parts:
    """Encodes a feed as the parts of an answer."""

    def __init__(self, feed: LogFeed, frame: Frame, *, events: bool) -> None:
        self._feed = feed
        self._frame = frame
        self._events = events
        self._opened = not events

    async def next(self) -> bytes | None:
        """Wait for the next part; None at the end. Raises AtlasError."""
        if not self._opened:
            self._opened = True
            return f"retry: {_RETRY_MILLISECONDS}\n\n".encode()
        while (lines := await self._feed.next()) is not None:
            if lines:
                return "".join(map(self._frame, lines)).encode()
            if self._events:  # in plain text a comment would be taken for a line
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
        raise errors.LOG_NOT_FOUND.error() from None
    if source is not LogSource.SUPERVISOR:
        for name in _OWN_ALONE:
            if getattr(query, name) is not None:
                raise bad_field(errors.INVALID_QUERY, name, _SUPERVISOR_ONLY)
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
        raise bad_header(LAST_EVENT_ID, "expected the id of a line of this log")
    return given


_OWN_EXAMPLE = (
    '{"ts": "2026-01-05T09:30:01.204116Z", "level": "info", "event": "deploy_transition", '
    '"deploy_id": "20260105-093000-4f2a11", "release": "1.4.0", "source": "launch", '
    '"happening": "passed", "target": "smoke", "why": "pid 4711 was ready after 310 ms"}\n'
)
_WORKER_EXAMPLE = "2026-01-05 09:30:01,190 INFO version 1.4.0 serves http://127.0.0.1:8790\n"
_EVENT_EXAMPLE = LogEvent(data="listening", id="1311-40960-2843712905")

ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/logs/{source}",
        handler=_logs,
        summary="Read or follow a log",
        description="The last lines of a log, with `follow=true` new ones as well. All filters "
        "must match. The daemon's own log is newline-delimited JSON, a worker's is text with "
        "control characters escaped and overlong lines cut. With `events=true` the answer is a "
        "stream of server-sent events, which can be resumed where it ended.",
        tag="Deploy",
        query=LogsQuery,
        body=Nothing,
        access=Access.SENSITIVE,
        parameters={
            "source": "`supervisor`: the daemon's own log; `blue`, `green`: what the workers in "
            "that slot print."
        },
        headers={
            LAST_EVENT_ID: {
                "type": "string",
                "pattern": _PLACE,
                "description": "Resume after the line with this id.",
            }
        },
        answers=(
            ResponseSpec(200, "The lines.", None, _OWN_EXAMPLE, content_type=_NDJSON),
            ResponseSpec(
                200, "A worker's lines.", None, _WORKER_EXAMPLE, content_type="text/plain"
            ),
            ResponseSpec(
                200,
                "The same as events (`events=true`). This is one of them.",
                LogEvent,
                _EVENT_EXAMPLE,
                content_type=_EVENTS,
            ),
        ),
        errors=(errors.LOG_NOT_FOUND, errors.TOO_MANY_STREAMS, errors.STOPPING),
    ),
)
