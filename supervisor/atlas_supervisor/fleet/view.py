"""The fleet as `GET /fleet` answers it; `overview` makes it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, Field

from atlas_supervisor.fleet.documents import (
    ArmCount,
    Direction,
    Halt,
    HostDeploy,
    HostState,
    Purpose,
    RolloutState,
)
from atlas_supervisor.fleet.outliers import Outlier
from atlas_supervisor.model.status import Suggestion


class RolloutAction(StrEnum):
    """What an operator does to the rollout."""

    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLLBACK = "rollback"


class EngineView(BaseModel, frozen=True):
    """Whether the fleet's etcd answers."""

    connected: bool = Field(description="Whether it answers.")
    since_ts: datetime | None = Field(description="Since when it does not; null if it does.")
    error: str | None = Field(description="Why it does not; null if it does.")


class SlotHeld(BaseModel, frozen=True):
    """A slot that a host holds: it may be unavailable meanwhile."""

    purpose: Purpose = Field(description="`deploy` or `reboot`.")
    since_ts: datetime = Field(description="When it was taken.")
    generation: int = Field(description="The semaphore's generation then; breaking it names this.")


class HolderView(SlotHeld, frozen=True):
    """A slot with the host that holds it."""

    host: str = Field(description="The host.")


class HostPart(BaseModel, frozen=True):
    """How far a host is with the rollout."""

    state: HostState = Field(description="`deploying`, `passed` or `failed`.")
    started_ts: datetime = Field(description="When it took its slot.")
    ended_ts: datetime | None = Field(description="When it ended, its guard included.")
    deploy_id: str | None = Field(description="The deploy on that host.")
    version: str | None = Field(description="The version that it deployed.")
    reason: str = Field(description="Why it failed; else empty.")


class HostView(BaseModel, frozen=True):
    """A host of the fleet. Much is null of one that was not seen since this daemon's start."""

    name: str = Field(description="Its FLEET_HOST.")
    version: str | None = Field(description="The version that it serves.")
    health_score: int | None = Field(description="Its health, 0 to 100.")
    mode: str | None = Field(description="Its mode: `bluegreen` or `single`.")
    last_deploy: HostDeploy | None = Field(description="Its last deploy.")
    fresh: bool | None = Field(
        description="Whether it announces itself; null if the engine is away: then it may."
    )
    seen_ts: datetime | None = Field(
        description="When it announced itself last; null if not since this daemon's start."
    )
    serves: bool | None = Field(
        description="Whether it serves a version and is not `unhealthy`; null if `fresh` is."
    )
    daemon_version: str | None = Field(description="The version of its supervisor.")
    slot: SlotHeld | None = Field(description="The slot that it holds.")
    waits_for: str = Field(
        description="Why it takes no slot; empty if it waits for none, or is lost."
    )
    part: HostPart | None = Field(description="Its part in the rollout; null before it begins.")
    kill_epoch: int | None = Field(description="The kill switch's epoch that it has applied.")


class WaveView(BaseModel, frozen=True):
    """A wave of a rollout: its hosts begin once those of the wave before have passed."""

    hosts: list[str] = Field(description="Its hosts, in their order.")
    waiting: int = Field(description="How many have not begun.")
    deploying: int = Field(description="How many deploy.")
    passed: int = Field(description="How many have passed.")
    failed: int = Field(description="How many have failed.")


class HostsByState(BaseModel, frozen=True):
    """A rollout's hosts, in their order."""

    waiting: list[str] = Field(description="Those that have not begun.")
    deploying: list[str] = Field(description="Those that deploy, their guard included.")
    passed: list[str] = Field(description="Those that have passed.")
    failed: list[str] = Field(description="Those that have failed.")


class RolloutView(BaseModel, frozen=True):
    """The last rollout that was begun."""

    rollout_id: str = Field(description="Its id.")
    release: str = Field(description="The release that it deploys, or takes back.")
    direction: Direction = Field(
        description="`forward`, or `back` to the version before the release."
    )
    state: RolloutState = Field(
        description="`running`: hosts may take slots; `paused`; `halted` by a failure; `aborted`; "
        "`passed`."
    )
    now: str = Field(
        description="What happens, or what it waits for, in words; empty once it has ended."
    )
    max_unavailable: int = Field(description="How many hosts may be unavailable at a time.")
    waves: list[WaveView] = Field(description="Its waves, in their order.")
    hosts: HostsByState = Field(description="Its hosts, by state.")
    excused: list[str] = Field(
        description="Hosts whose failed last deploy stops no other host: they are tried first."
    )
    halt: Halt | None = Field(description="The host that halted it, and why.")
    started_ts: datetime = Field(description="When it was begun.")
    started_by: str = Field(description="Who has begun it.")
    ended_ts: datetime | None = Field(description="When it passed or was aborted.")
    undoes: str | None = Field(description="The rollout whose hosts go back, if this one does.")


class SemaphoreView(BaseModel, frozen=True):
    """The budget of hosts that may be unavailable at a time."""

    slots: int = Field(description="How many.")
    generation: int = Field(description="Grows with every change.")
    holders: list[HolderView] = Field(description="The hosts that hold a slot, by name.")


class KillsView(BaseModel, frozen=True):
    """The kill switch: features that are off in the whole fleet."""

    epoch: int = Field(description="Grows with every kill and every reset; 0 if there was none.")
    every_feature: bool = Field(description="Whether all features are off.")
    features: list[str] = Field(description="The features that are off.")
    set_ts: datetime | None = Field(description="When it was set last.")
    set_by: str | None = Field(description="Who has set it.")
    acknowledged: int = Field(description="How many hosts have this epoch applied and on disk.")
    hosts: int = Field(description="How many hosts there are.")
    behind: list[str] = Field(description="The hosts that have not acknowledged it.")
    former: list[str] = Field(
        description="Features that this host has off by a kill of the fleet that it was in before; "
        "the first kill or reset of this fleet takes its place."
    )
    unknown: list[str] = Field(
        description="Those of them that this host does not have and no host has counted calls of."
    )
    engine_epoch: int | None = Field(
        description="The epoch in etcd; null if there is none. One below `epoch` is ignored: no "
        "loss of data in etcd switches a feature on."
    )


class FeatureEvidence(BaseModel, frozen=True):
    """A feature's calls on all hosts that report them, since each began to count."""

    canary: ArmCount = Field(description="Calls of the new code.")
    stable: ArmCount = Field(description="Calls of the old code.")
    hosts: int = Field(description="How many hosts report them.")
    outliers: list[Outlier] = Field(
        description="Hosts whose calls fail more often than the others', beyond chance."
    )


class FleetView(BaseModel, frozen=True):
    """The fleet, as the host that answers knows it."""

    fleet: str = Field(description="The setting FLEET_NAME.")
    host: str = Field(description="The host that answers: its FLEET_HOST.")
    has_double: bool = Field(
        default=False,
        description="Whether another supervisor announces itself under this host's name; this one "
        "takes no part then.",
    )
    engine: EngineView = Field(description="The fleet's etcd.")
    hosts: list[HostView] = Field(description="Every host, by name.")
    rollout: RolloutView | None = Field(description="The last rollout; null if there was none.")
    semaphore: SemaphoreView = Field(description="Who may be unavailable now.")
    kills: KillsView = Field(description="The kill switch.")
    evidence: dict[str, FeatureEvidence] = Field(description="Canary calls, by feature.")
    unreadable: list[str] = Field(description="Documents that can't be read, with their errors.")
    suggestions: list[Suggestion] = Field(
        description="Conditions that an operator should know about; the most urgent first."
    )
