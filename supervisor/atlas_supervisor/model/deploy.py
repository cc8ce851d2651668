"""A deploy as it is recorded, answered and shown."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.model.step import Step


class Mode(StrEnum):
    """Whether deploys are taken. The fallback to `single` stays until an operator resets it."""

    SINGLE = "single"
    BLUEGREEN = "bluegreen"


class Result(StrEnum):
    """How a deploy came out, as far as its caller is concerned."""

    SWITCHED = "switched"
    AWAITING_SWITCH = "awaiting_switch"
    DRY_RUN_PASSED = "dry_run_passed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"


class DeployRecord(BaseModel):
    """A deploy from its request on; the answer to every call that concerns one."""

    model_config = ConfigDict(frozen=True)

    deploy_id: str
    result: Result | None = Field(description="null while the deploy is in progress.")
    dry_run: bool
    release: str | None = Field(description="The named release, or null for the worker directory.")
    version: str | None = Field(description="null until preflight has looked it up.")
    active_port: int
    staging_port: int
    steps: list[Step]
    reason: str | None = Field(description="Why it came out as it did, in words.")
    phase: str = Field(description="Where it is now; `ended` once nothing more will happen.")
    started_ts: datetime
    ended_ts: datetime | None = Field(
        description="When the last of it (guard, warm time and drain included) was over."
    )

    @property
    def facts(self) -> dict[str, str]:
        """What every log line about it says."""
        release = self.release or self.version
        return {"deploy_id": self.deploy_id, **({"release": release} if release else {})}
