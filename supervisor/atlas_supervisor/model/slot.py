"""The two slots: the table of a slot's life, and how the status shows it. Pure.

`workers.slot` reports what happens to a worker as events, and the table alone says what state the
slot is in then. The diagram in `docs/slot-machine.md` is generated from it.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field

from atlas_supervisor.model.requests import RequestFigures


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


class SlotEvent(StrEnum):
    """What can happen to a slot."""

    LAUNCHED = "launched"
    """A worker is being started."""
    READY = "ready"
    """The worker has reported ready, or answers requests."""
    ACTIVATED = "activated"
    """A switch has given the slot all new connections."""
    DEACTIVATED = "deactivated"
    """A switch has given them to the other slot."""
    DRAIN_STARTED = "drain_started"
    """The worker is to finish its connections and end."""
    ADOPTED = "adopted"
    """The worker was started by an earlier daemon, and goes on as the slot's own."""
    INHERITED = "inherited"
    """A worker of an earlier daemon serves until the active slot has a fresh one."""
    LEFT = "left"
    """The worker accepts nothing more and lingers beside the slot."""
    CLEARED = "cleared"
    """No process of the worker is left, and none is to be started again."""
    RESTART_SCHEDULED = "restart_scheduled"
    """The worker crashed and is started again after a delay."""


class UnexpectedEventError(Exception):
    """The event has no row for this state."""


INITIAL = SlotState.EMPTY

_S, _E = SlotState, SlotEvent

TABLE: dict[tuple[SlotState, SlotEvent], SlotState] = {
    (_S.EMPTY, _E.LAUNCHED): _S.STARTING,
    (_S.EMPTY, _E.ADOPTED): _S.RUNNING,
    (_S.EMPTY, _E.INHERITED): _S.WARM,
    (_S.EMPTY, _E.RESTART_SCHEDULED): _S.BACKOFF,
    (_S.EMPTY, _E.CLEARED): _S.EMPTY,
    (_S.STARTING, _E.READY): _S.RUNNING,
    # A failed start is not a drain: the slot is starting until nothing of the worker is left.
    (_S.STARTING, _E.CLEARED): _S.EMPTY,
    (_S.RUNNING, _E.ACTIVATED): _S.RUNNING,
    (_S.RUNNING, _E.DEACTIVATED): _S.WARM,
    (_S.RUNNING, _E.DRAIN_STARTED): _S.DRAINING,
    (_S.RUNNING, _E.CLEARED): _S.EMPTY,
    (_S.WARM, _E.ACTIVATED): _S.RUNNING,
    (_S.WARM, _E.DRAIN_STARTED): _S.DRAINING,
    (_S.WARM, _E.CLEARED): _S.EMPTY,
    # A stop during a drain gives it less time, and changes nothing else.
    (_S.DRAINING, _E.DRAIN_STARTED): _S.DRAINING,
    (_S.DRAINING, _E.LEFT): _S.EMPTY,
    (_S.DRAINING, _E.CLEARED): _S.EMPTY,
    (_S.BACKOFF, _E.LAUNCHED): _S.STARTING,
    (_S.BACKOFF, _E.RESTART_SCHEDULED): _S.BACKOFF,
    (_S.BACKOFF, _E.CLEARED): _S.EMPTY,
}

SERVING = frozenset({_S.RUNNING, _S.WARM})
"""States in which the worker can take all traffic at once."""


def next_state(state: SlotState, event: SlotEvent) -> SlotState:
    """Return the state that follows. Raises UnexpectedEventError."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise UnexpectedEventError(f"{event} is not possible in {state}") from None


def possible(state: SlotState, event: SlotEvent) -> bool:
    """Return whether the event has a row for this state."""
    return (state, event) in TABLE


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {INITIAL}"]
    lines += [f"    {state} --> {target}: {event}" for (state, event), target in TABLE.items()]
    return "\n".join(lines) + "\n"


class InstanceUsage(NamedTuple):
    """What an instance uses of the machine, with its child processes; None without one."""

    memory_mb: float | None = None
    cpu_percent: float | None = None


MemoryMB = Annotated[
    float | None,
    Field(
        description="Resident memory of its worker and that one's child processes, in MiB; null "
        "without a worker."
    ),
]
CpuPercent = Annotated[
    float | None,
    Field(
        description="CPU time that they used over the last seconds, 100 being one core; null "
        "without a worker."
    ),
]


class SlotView(BaseModel, frozen=True):
    """One slot as the status shows it."""

    slot: SlotName = Field(description="The slot's name.")
    port: int = Field(description="The slot's own port, on loopback.")
    role: Role = Field(description="Roles change with the switch.")
    state: SlotState = Field(
        description="`empty`: no worker; `starting`: launched, not ready yet; `running`; `warm`: "
        "out of traffic, kept for an instant rollback; `draining`: finishing its connections; "
        "`backoff`: crashed or not ready in time, tried again after a delay."
    )
    pid: int | None = Field(description="Process id of its worker, if there is one.")
    version: str | None = Field(description="Version of its worker, if there is one.")
    started_ts: datetime | None = Field(description="When its worker was started.")
    restarts: int = Field(
        description="Number of automatic restarts of its worker since it was deployed."
    )
    last_exit: str | None = Field(
        default=None,
        description="How a worker in this slot last ended unexpectedly, or failed to start; null "
        "if none did since the daemon was started.",
    )
    memory_mb: MemoryMB = None
    cpu_percent: CpuPercent = None
    requests: RequestFigures | None = Field(
        default=None,
        description="Users' requests of the last minute, as a worker with the kit counts them, or "
        "the relay; null where neither does.",
    )
