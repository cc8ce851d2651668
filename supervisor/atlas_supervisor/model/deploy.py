"""A deploy as it is recorded and shown."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.model.step import Step


class Mode(StrEnum):
    """Whether deploys are enabled. A fallback to `single` stays until an operator resets it."""

    SINGLE = "single"
    BLUEGREEN = "bluegreen"


class Result(StrEnum):
    """A deploy's outcome, as its caller sees it."""

    SWITCHED = "switched"
    AWAITING_SWITCH = "awaiting_switch"
    DRY_RUN_PASSED = "dry_run_passed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"


class DeployRecord(BaseModel):
    """A deploy, from its request to the end of its drain."""

    model_config = ConfigDict(frozen=True)

    deploy_id: str = Field(description="The deploy's name.")
    result: Result | None = Field(description="The outcome; null while the deploy is in progress.")
    dry_run: bool = Field(description="Whether only the gates are run, without a switch.")
    release: str | None = Field(description="The release's name; null for the worker directory.")
    version: str | None = Field(
        description="The release's version; null until preflight has determined it."
    )
    active_port: int = Field(description="Port of the active slot; changes with the switch.")
    staging_port: int = Field(description="Port of the staging slot; changes with the switch.")
    steps: list[Step] = Field(description="The steps that have ended, in order.")
    reason: str | None = Field(description="Why it had this result, in words.")
    phase: str = Field(
        description="The current phase (docs/deploy-machine.md); `ended` once nothing more happens."
    )
    started_ts: datetime = Field(description="When it was requested.")
    ended_ts: datetime | None = Field(
        description="When guard, warm time and drain were over as well; null before that."
    )

    @property
    def facts(self) -> dict[str, str]:
        """The fields of every log line about it."""
        release = self.release or self.version
        return {"deploy_id": self.deploy_id, **({"release": release} if release else {})}
