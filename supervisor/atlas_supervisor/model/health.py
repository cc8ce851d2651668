"""How well everything is, as `GET /health` answers it: a word and a number per check."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.model.slot import SlotName


class CheckStatus(StrEnum):
    """What a check found."""

    PASS = "pass"  # noqa: S105 - a finding, not a password
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"
    """It does not apply here, or nobody can tell: no evidence either way."""


class Check(BaseModel):
    """One check's finding."""

    model_config = ConfigDict(frozen=True)

    status: CheckStatus = Field(
        description="`skipped`: it does not apply, or nobody can tell; it does not lower the score."
    )
    value: float | None = None
    unit: str | None = None
    message: str = ""


class HealthStatus(StrEnum):
    """The whole, in one word."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class Health(BaseModel):
    """Every check, and what they come to."""

    model_config = ConfigDict(frozen=True)

    score: int = Field(ge=0, le=100, description="Over the checks that apply; 100 is all well.")
    status: HealthStatus
    checks: dict[str, Check] = Field(description="By name; docs/health.md tells what each means.")
    slot: SlotName = Field(description="The active slot, whose instance was looked at.")
    version: str | None = Field(description="Of the active instance; null if there is none.")
    age_seconds: float | None = Field(
        description="How long ago the active instance was looked at; null if that was not yet, or "
        "none is there."
    )
