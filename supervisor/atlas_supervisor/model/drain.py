"""An instance on its way out, as the status shows it, and what it says that it still has."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.model.slot import SlotName

Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]


class DrainCounts(BaseModel):
    """What a draining worker with the kit still has, by its own count."""

    model_config = ConfigDict(frozen=True)

    requests: Count = Field(description="Requests that are being answered.")
    websockets: Count
    event_streams: Count = Field(description="Answers of server-sent events.")
    idle: Count = Field(description="Connections on which nothing is under way.")

    def most(self, other: DrainCounts | None) -> DrainCounts:
        """Return the greater count of each kind."""
        if other is None:
            return self
        theirs = other.model_dump()
        return DrainCounts(**{kind: max(count, theirs[kind]) for kind, count in self})


class DrainingView(BaseModel):
    """An instance that finishes what it has and then ends."""

    model_config = ConfigDict(frozen=True)

    slot: SlotName = Field(description="The slot that it served in; another may be there by now.")
    instance: str
    pid: int
    version: str
    since_ts: datetime = Field(description="When its drain began.")
    deadline_ts: datetime = Field(description="When what it still has then is cut off.")
    left: DrainCounts | None = Field(
        description="What it says that it still has; null if it has not said, as a worker without "
        "the kit never does."
    )
    connections: int | None = Field(
        description="How many connections it had when that was last looked at; null if it was not."
    )
