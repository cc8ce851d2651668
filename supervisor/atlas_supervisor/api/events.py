"""The route that streams deploy transitions as server-sent events."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Literal

from pydantic import BaseModel, Field

from atlas_supervisor import errors
from atlas_supervisor.api import examples
from atlas_supervisor.api.messages import bad_header
from atlas_supervisor.api.routes import AnyRoute, Nothing, Request, ResponseSpec, Route, StreamReply
from atlas_supervisor.model.deploy import EventFeed, PublishedEvent

LAST_EVENT_ID = "Last-Event-ID"
SILENCE_SECONDS = 15.0
"""After this time without an event a comment is sent, so that both ends notice a dead peer."""

_RETRY_MILLISECONDS = 1000
_TOGETHER_BYTES = 16 * 1024
_STILL_HERE = b": still here\n\n"
_MAX_ID = 2**63 - 1
_ID = re.compile(r"[0-9]{1,19}", re.ASCII)


class EventsQuery(BaseModel, extra="forbid"):
    """Which events to stream."""

    deploy_id: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9._-]{1,100}$", description="Only events of this deploy."
    )
    after: int | None = Field(
        default=None,
        ge=0,
        le=_MAX_ID,
        description="The same as `Last-Event-ID`, for clients that can't set headers. The header "
        "wins.",
    )


class StreamedEvent(BaseModel, frozen=True):
    """One server-sent event; the stream is a sequence of them."""

    event: Literal["transition", "reset"] = Field(description="The kind of event.")
    data: str = Field(description="JSON on one line: a `DeployEvent`, or for `reset` a `message`.")
    id: str = Field(default="", description="The id to resume after; absent if not saved yet.")


class _Frames:
    """Encodes a feed as an event stream."""

    def __init__(self, feed: EventFeed, *, trusted: bool) -> None:
        self._feed = feed
        self._trusted = trusted
        self._opening: bytes | None = _opening(feed)

    async def next(self) -> bytes | None:
        """Wait for the next block; None at the end. Raises AtlasError."""
        if self._opening is not None:
            opening, self._opening = self._opening, None
            return opening
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                event = await self._feed.next()
        except TimeoutError:
            return _STILL_HERE
        return None if event is None else self._blocks(event)

    def _blocks(self, first: PublishedEvent) -> bytes:
        """Return an event and those already queued behind it: one write instead of many."""
        blocks = [self._block(first)]
        size = len(blocks[0])
        while size < _TOGETHER_BYTES and (event := self._feed.ready()) is not None:
            blocks.append(self._block(event))
            size += len(blocks[-1])
        return b"".join(blocks)

    def _block(self, event: PublishedEvent) -> bytes:
        name = b"" if event.id is None else b"id: %d\n" % event.id
        data = event.data if self._trusted else event.withheld_data
        return name + b"event: transition\ndata: " + data + b"\n\n"

    def close(self) -> None:
        """End the feed."""
        self._feed.close()


def _opening(feed: EventFeed) -> bytes:
    """Return the stream's head: an id to resume after, even before the first event."""
    resumes_at = "" if feed.resumes_at is None else f"id: {feed.resumes_at}\n"
    blocks = f"retry: {_RETRY_MILLISECONDS}\n{resumes_at}\n"
    if feed.reset is not None:
        message = json.dumps({"message": feed.reset})
        blocks += f"{resumes_at}event: reset\ndata: {message}\n\n"
    return blocks.encode()


async def _events(call: Request[EventsQuery, Nothing]) -> StreamReply:
    after = call.query.after
    given = call.headers.get(LAST_EVENT_ID)
    if given is not None:
        if not _ID.fullmatch(given) or int(given) > _MAX_ID:
            raise bad_header(LAST_EVENT_ID, "expected the id of an event, a number")
        after = int(given)
    feed = await call.control.queries.events(after=after, deploy_id=call.query.deploy_id)
    return StreamReply(
        _Frames(feed, trusted=call.trusted),
        content_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},  # nginx would hold events back
    )


_EXAMPLE = StreamedEvent(event="transition", data=examples.EVENT.model_dump_json(), id="42")

ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/events",
        handler=_events,
        summary="Stream deploy transitions",
        description="Server-sent events: one `transition` for each transition of a deploy, its "
        "start included, with its id in the journal; the data is a `DeployEvent`. With "
        "`Last-Event-ID` the stream starts after that id. For an id that the journal does not "
        "have, one `reset` comes first, then what happens from now on.",
        tag="Deploy",
        query=EventsQuery,
        body=Nothing,
        headers={
            LAST_EVENT_ID: {
                "type": "integer",
                "minimum": 0,
                "maximum": _MAX_ID,
                "description": "Resume after the event with this id; 0: from the first one.",
            }
        },
        answers=(
            ResponseSpec(
                200,
                "The stream. This is one of its events.",
                StreamedEvent,
                _EXAMPLE,
                content_type="text/event-stream",
            ),
        ),
        errors=(errors.DEPLOY_NOT_FOUND, errors.TOO_MANY_STREAMS, errors.STOPPING),
    ),
)
