"""An instance on its way out, as the status shows it, and what it says that it still has."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from atlas_supervisor.model.slot import CpuPercent, MemoryMB, SlotName

Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]


class DrainCounts(BaseModel, frozen=True):
    """What a draining worker with the kit still has, by its own count."""

    requests: Count = Field(description="Requests in progress.")
    websockets: Count = Field(description="Open WebSockets.")
    event_streams: Count = Field(description="Open streams of server-sent events.")
    idle: Count = Field(description="Idle connections.")

    def most(self, other: DrainCounts | None) -> DrainCounts:
        """Return the greater count of each kind."""
        if other is None:
            return self
        theirs = other.model_dump()
        return DrainCounts(**{kind: max(count, theirs[kind]) for kind, count in self})


class DrainingView(BaseModel, frozen=True):
    """A worker that finishes its connections and then exits."""

    slot: SlotName = Field(description="The slot it served in; another worker may be there by now.")
    instance: str = Field(description="Unique name of the worker process.")
    pid: int = Field(description="Its process id.")
    version: str = Field(description="Its version.")
    since_ts: datetime = Field(description="When the drain started.")
    deadline_ts: datetime = Field(description="When its remaining connections are closed.")
    left: DrainCounts | None = Field(
        description="Remaining work as the worker reports it; null without a report (a worker "
        "without the kit never reports)."
    )
    connections: int | None = Field(
        description="Connections at the last check by the kernel's count; null if not checked yet."
    )
    memory_mb: MemoryMB = None
    cpu_percent: CpuPercent = None
