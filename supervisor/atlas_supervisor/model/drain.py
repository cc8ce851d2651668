"""A draining worker as the status shows it, and its own counts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.model.slot import SlotName

Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]


class DrainCounts(BaseModel):
    """The connections of a draining worker, as it reports them itself (with the kit)."""

    model_config = ConfigDict(frozen=True)

    requests: Count = Field(description="Requests in flight.")
    websockets: Count
    event_streams: Count = Field(description="Responses of server-sent events.")
    idle: Count = Field(description="Connections without a request in flight.")

    def most(self, other: DrainCounts | None) -> DrainCounts:
        """Return the greater count of each kind."""
        if other is None:
            return self
        theirs = other.model_dump()
        return DrainCounts(**{kind: max(count, theirs[kind]) for kind, count in self})


class DrainingView(BaseModel):
    """A worker that finishes its connections and then ends."""

    model_config = ConfigDict(frozen=True)

    slot: SlotName = Field(description="The slot that it served in; another may be there by now.")
    instance: str
    pid: int
    version: str
    since_ts: datetime = Field(description="When its drain began.")
    deadline_ts: datetime = Field(description="When its remaining connections are cut off.")
    left: DrainCounts | None = Field(
        description="Its remaining connections as it reports them; null without a report, which "
        "only a worker with the kit sends."
    )
    connections: int | None = Field(
        description="Its connections when they were last counted; null if they were not."
    )
