"""The two slots, and each slot's state as the status shows it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class SlotName(StrEnum):
    """A slot's name. Blue always owns `ACTIVE_PORT`, green `STAGING_PORT`; roles change."""

    BLUE = "blue"
    GREEN = "green"

    @property
    def other(self) -> SlotName:
        """The other slot."""
        return SlotName.GREEN if self is SlotName.BLUE else SlotName.BLUE


class Role(StrEnum):
    """A slot's role at the moment."""

    ACTIVE = "active"
    STAGING = "staging"


class SlotState(StrEnum):
    """The state of a slot; `workers.slot_machine` has the transitions."""

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
        "without traffic, kept for an instant rollback; `draining`: finishing its connections; "
        "`backoff`: it crashed and is restarted after a delay; `failed`: it crashed too often and "
        "was given up."
    )
    pid: int | None
    version: str | None
    started_ts: datetime | None
    restarts: int = Field(description="How often the worker was restarted after a crash.")
    last_exit: str | None = Field(
        default=None,
        description="How a worker here last crashed, hung or failed to start; null if none did "
        "since the daemon was started.",
    )
