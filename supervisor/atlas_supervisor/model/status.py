"""The daemon's state at one moment, as `GET /deploy/status` answers it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.model.canary import CanaryStats
from atlas_supervisor.model.deploy import DeployRecord, Mode
from atlas_supervisor.model.drain import DrainingView
from atlas_supervisor.model.slot import SlotView


class Suggestion(BaseModel):
    """Something an operator should know about, and what to do about it."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    action: str


class Traffic(BaseModel):
    """Who carries the public port's connections, and to which slot."""

    model_config = ConfigDict(frozen=True)

    plane: str = Field(
        description="`kernel`: workers accept by themselves; `relay`: the daemon copies bytes; "
        "`none`: there is no public port."
    )
    weights: dict[str, float] = Field(description="Share of new connections per slot.")


class Status(BaseModel):
    """Everything at a glance."""

    model_config = ConfigDict(frozen=True)

    mode: Mode
    active_port: int
    staging_port: int
    public_port: int | None = Field(description="null when `PUBLIC_PORT=0` turned it off.")
    health_score: int = Field(ge=0, le=100, description="The `score` of `GET /health`.")
    version: str | None = Field(description="The version of the active instance.")
    channel: str
    last_deploy: DeployRecord | None
    canary_stats: CanaryStats = Field(description="Feature canaries, over the last hour.")
    fallback_suggestions: list[Suggestion]
    slots: list[SlotView]
    draining: list[DrainingView] = Field(
        default=[],
        description="Instances that finish what they have, oldest first. Up to four linger beside "
        "the instances in the slots.",
    )
    traffic: Traffic
    deploy_in_progress: bool = Field(
        description="Whether a deploy holds the place; `last_deploy` is the one."
    )
