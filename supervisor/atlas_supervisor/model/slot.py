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

    slot: SlotName
    port: int = Field(description="The slot's own port, on loopback.")
    role: Role
    state: SlotState = Field(
        description="`empty`: no instance; `starting`: launched, not ready yet; `running`; `warm`: "
        "out of traffic, kept for an instant rollback; `draining`: finishing its connections; "
        "`backoff`: it died and is started again after a pause; `failed`: it died too often and "
        "was given up."
    )
    pid: int | None
    version: str | None
    started_ts: datetime | None
    restarts: int = Field(description="How often the instance was started again by itself.")
    last_exit: str | None = Field(
        default=None,
        description="How an instance here last went down, or failed to start, without having been "
        "asked to end; null if none did since the daemon was started.",
    )
