"""The two slots and what a reader of the status sees of each."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class SlotName(StrEnum):
    """A slot's name. Blue owns `ACTIVE_PORT`, green `STAGING_PORT`, for good: roles move."""

    BLUE = "blue"
    GREEN = "green"

    @property
    def other(self) -> SlotName:
        """The slot that this one takes turns with."""
        return SlotName.GREEN if self is SlotName.BLUE else SlotName.BLUE


class Role(StrEnum):
    """What a slot is for at the moment."""

    ACTIVE = "active"
    STAGING = "staging"


class SlotState(StrEnum):
    """How far the slot's instance is in its life."""

    EMPTY = "empty"
    STARTING = "starting"
    RUNNING = "running"
    WARM = "warm"
    DRAINING = "draining"
    BACKOFF = "backoff"
    FAILED = "failed"


class SlotView(BaseModel):
    """One slot as the status shows it."""

    model_config = ConfigDict(frozen=True)

    slot: SlotName = Field(description="The slot's name.")
    port: int = Field(description="The slot's own port, on loopback.")
    role: Role = Field(description="Roles change with the switch.")
    state: SlotState = Field(
        description="`empty`: no worker; `starting`: launched, not ready yet; `running`; `warm`: "
        "out of traffic, kept for an instant rollback; `draining`: finishing its connections; "
        "`backoff`: crashed, restarts after a delay; `failed`: crashed too often, not restarted."
    )
    pid: int | None = Field(description="Process id of its worker, if there is one.")
    version: str | None = Field(description="Version of its worker, if there is one.")
    started_ts: datetime | None = Field(description="When its worker was started.")
    restarts: int = Field(description="Number of automatic restarts of its worker.")
    last_exit: str | None = Field(
        default=None,
        description="How a worker in this slot last ended unexpectedly, or failed to start; null "
        "if none did since the daemon was started.",
    )
