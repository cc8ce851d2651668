"""The daemon's current status, as `GET /deploy/status` answers it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, Field

from atlas_supervisor.model.canary import CanaryStats
from atlas_supervisor.model.deploy import DeployRecord, Mode
from atlas_supervisor.model.drain import DrainingView
from atlas_supervisor.model.requests import RecentRequests
from atlas_supervisor.model.slot import SlotView
from atlas_supervisor.model.state import Hold


class Suggestion(BaseModel, frozen=True):
    """A condition that an operator should know about, and what to do."""

    code: str = Field(description="Stable, snake_case.")
    message: str = Field(description="What is wrong.")
    action: str = Field(description="What to do about it.")


class HoldView(Hold):
    """A hold, with what waits."""

    waiting: int = Field(
        description="Connections that wait; of a hold that has ended, those that were handed on "
        "at once."
    )


class Traffic(BaseModel, frozen=True):
    """How connections to the public port reach the slots."""

    plane: str = Field(
        description="`kernel`: workers accept connections themselves; `relay`: the daemon relays "
        "them; `none`: there is no public port."
    )
    weights: dict[str, float] = Field(
        description="Share of new connections, by slot; in a hold, once it is over."
    )
    held: HoldView | None = Field(
        default=None, description="Set while new connections wait (`POST /traffic/hold`)."
    )


class SplitView(BaseModel, frozen=True):
    """How the traffic is split between two versions."""

    deploy_id: str = Field(description="The deploy that waits.")
    version: str | None = Field(description="Its version.")
    active_version: str | None = Field(
        description="Version of the active worker; null if there is none."
    )
    staging_slot: str = Field(description="Slot of the waiting version.")
    staging_weight: float = Field(description="Its share of new connections, from 0 to 1.")
    weights: dict[str, float] = Field(description="Share of new connections, by slot.")
    sticky: str = Field(
        description="The setting TRAFFIC_STICKY. `connection`: each connection is drawn; "
        "`address`: a client address keeps its version while the share grows."
    )
    testers: list[str] = Field(
        description="Networks that always get the waiting version (TRAFFIC_TESTERS)."
    )


class RecycleView(BaseModel, frozen=True):
    """The limits of a worker, and how far the active one is from them."""

    max_rss_mb: float | None = Field(
        description="The setting WORKER_MAX_RSS_MB, for the `memory_mb` of a slot; null if there "
        "is no limit."
    )
    max_age_seconds: float | None = Field(
        description="The setting WORKER_MAX_AGE_SECONDS; null if there is no limit."
    )
    due_ts: datetime | None = Field(
        description="When the active worker reaches that age; null without a limit or a worker."
    )
    due: str | None = Field(
        description="Why it is to be recycled now, in words; null if it is within its limits."
    )
    waits: str | None = Field(
        description="What a recycle that is due waits for, in words; null if nothing."
    )
    failure: str | None = Field(
        description="Why the active worker could not be recycled, the last time; null if that "
        "did not happen."
    )
    attempts: int = Field(
        description="Attempts to recycle it in vain, those that gave way to a request included."
    )


class Start(StrEnum):
    """How a daemon began."""

    FRESH = "fresh"
    RELOAD = "reload"
    ADOPTED = "adopted"


class DaemonView(BaseModel, frozen=True):
    """The daemon itself."""

    version: str = Field(description="Version of ATLAS Supervisor.")
    pid: int = Field(description="Its process; a reload keeps it.")
    started_ts: datetime = Field(description="When it was started, or reloaded.")
    start: Start = Field(
        description="`reload`: a reload, in the same process; `adopted`: workers of an earlier "
        "daemon were taken over; `fresh`: neither."
    )
    settings_pending: bool = Field(
        description="Whether the active worker was launched with other worker settings than there "
        "are now; they apply at the next deploy."
    )


class ReloadView(BaseModel, frozen=True):
    """A reload that was accepted."""

    version: str = Field(description="Version of the program that is about to run.")
    before: DaemonView = Field(description="The daemon that is replaced.")
    changed: list[str] = Field(description="The keys of settings that change, in their order.")


class Status(BaseModel, frozen=True):
    """The daemon's current status."""

    mode: Mode = Field(description="`bluegreen`: deploys are enabled; `single`: disabled.")
    active_port: int = Field(description="Port of the active slot.")
    staging_port: int = Field(description="Port of the staging slot.")
    public_port: int | None = Field(description="The public port; null with `PUBLIC_PORT=0`.")
    health_score: int = Field(ge=0, le=100, description="The `score` of `GET /health`.")
    version: str | None = Field(description="Version of the active worker; null if there is none.")
    channel: str = Field(description="The setting CHANNEL.")
    last_deploy: DeployRecord | None = Field(
        description="The latest deploy; null before the first."
    )
    canary_stats: CanaryStats = Field(description="Canary calls of the last hour.")
    fallback_suggestions: list[Suggestion] = Field(
        description="What an operator should look into; empty when all is well."
    )
    slots: list[SlotView] = Field(description="The two slots, blue first.")
    draining: list[DrainingView] = Field(
        default=[],
        description="Workers that finish their connections, oldest first; up to four besides those "
        "in the slots.",
    )
    requests: RecentRequests | None = Field(
        default=None,
        description="Users' requests of the last five minutes; null if no worker in a slot counts "
        "them.",
    )
    traffic: Traffic = Field(description="How connections to the public port are split.")
    daemon: DaemonView = Field(description="What answers here, and how it was started.")
    recycle: RecycleView | None = Field(
        default=None, description="The limits of a worker; null if there are none."
    )
    deploy_in_progress: bool = Field(
        description="Whether a deploy is in progress; it is `last_deploy`."
    )
