"""The noun `events`: what happens to deploys, told as it happens by server-sent events."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor import errors
from atlas_supervisor.api import examples
from atlas_supervisor.api.responses import bad_header
from atlas_supervisor.api.routes import AnyRoute, Nothing, Request, ResponseSpec, Route, StreamReply
from atlas_supervisor.model.event import EventFeed, PublishedEvent

LAST_EVENT_ID = "Last-Event-ID"
SILENCE_SECONDS = 15.0
"""So long nothing is sent; then a comment, by which both ends see that the other is there."""

_RETRY_MILLISECONDS = 1000
_TOGETHER_BYTES = 16 * 1024
_STILL_HERE = b": still here\n\n"
_MAX_ID = 2**63 - 1
_ID = re.compile(r"[0-9]{1,19}", re.ASCII)


class EventsQuery(BaseModel):
    """Which events."""

    model_config = ConfigDict(extra="forbid")

    deploy_id: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9._-]{1,100}$", description="Of this deploy alone."
    )
    after: int | None = Field(
        default=None,
        ge=0,
        le=_MAX_ID,
        description="As `Last-Event-ID`, for clients that can't set headers. The header wins.",
    )


class StreamedEvent(BaseModel):
    """One server-sent event, by its fields. The stream is one after the other."""

    model_config = ConfigDict(frozen=True)

    event: Literal["transition", "reset"]
    data: str = Field(description="JSON on one line: a `DeployEvent`, or a `message`.")
    id: str = Field(default="", description="Where to resume; not there if it is not written yet.")


class _Frames:
    """A feed as the bytes of an event stream."""

    def __init__(self, feed: EventFeed) -> None:
        self._feed = feed
        self._opening: bytes | None = _opening(feed)

    async def next(self) -> bytes | None:
        """Wait for the next block; None: there is no more. Raises AtlasError."""
        if self._opening is not None:
            opening, self._opening = self._opening, None
            return opening
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                told = await self._feed.next()
        except TimeoutError:
            return _STILL_HERE
        return None if told is None else self._blocks(told)

    def _blocks(self, first: PublishedEvent) -> bytes:
        """Return an event together with what is there behind it: one write instead of many."""
        blocks = [_block(first)]
        size = len(blocks[0])
        while size < _TOGETHER_BYTES and (told := self._feed.ready()) is not None:
            blocks.append(_block(told))
            size += len(blocks[-1])
        return b"".join(blocks)

    def close(self) -> None:
        """End the feed."""
        self._feed.close()


def _opening(feed: EventFeed) -> bytes:
    """Return what stands first: an id to resume at, even before the first event has come."""
    resumes_at = "" if feed.resumes_at is None else f"id: {feed.resumes_at}\n"
    blocks = f"retry: {_RETRY_MILLISECONDS}\n{resumes_at}\n"
    if feed.reset is not None:
        message = json.dumps({"message": feed.reset})
        blocks += f"{resumes_at}event: reset\ndata: {message}\n\n"
    return blocks.encode()


def _block(told: PublishedEvent) -> bytes:
    name = b"" if told.id is None else b"id: %d\n" % told.id
    return name + b"event: transition\ndata: " + told.data + b"\n\n"


async def _events(call: Request[EventsQuery, Nothing]) -> StreamReply:
    after = call.query.after
    given = call.headers.get(LAST_EVENT_ID)
    if given is not None:
        if not _ID.fullmatch(given) or int(given) > _MAX_ID:
            raise bad_header(LAST_EVENT_ID, "it is the id of an event, a number")
        after = int(given)
    feed = await call.control.deploys.events(after=after, deploy_id=call.query.deploy_id)
    return StreamReply(
        _Frames(feed),
        content_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},  # nginx would hold events back
    )


_EXAMPLE = StreamedEvent(event="transition", data=examples.EVENT.model_dump_json(), id="42")

ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/events",
        handler=_events,
        summary="What happens to deploys, as it happens",
        description=(
            "Server-sent events: one `transition` for each transition of a deploy, its beginning "
            "included, under its id in the journal; the data is a `DeployEvent`. After "
            "`Last-Event-ID` it begins with what came after that id. An id that the journal does "
            "not have gets one `reset` first, then what happens from now on."
        ),
        tag="Deploy",
        query=EventsQuery,
        body=Nothing,
        headers={
            LAST_EVENT_ID: {
                "type": "integer",
                "minimum": 0,
                "maximum": _MAX_ID,
                "description": "Go on after this event. 0 stands before the first one.",
            }
        },
        answers=(
            ResponseSpec(
                200,
                "The stream; this is one event of it.",
                StreamedEvent,
                _EXAMPLE,
                content_type="text/event-stream",
            ),
        ),
        errors=(errors.DEPLOY_NOT_FOUND, errors.TOO_MANY_STREAMS, errors.STOPPING),
    ),
)
