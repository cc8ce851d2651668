"""The health as `GET /health` answers it: a status and a value per check."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from atlas_supervisor.model.slot import SlotName


class CheckStatus(StrEnum):
    """The result of a check."""

    PASS = "pass"  # noqa: S105 - a finding, not a password
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"
    """It does not apply here, or could not be made: no evidence either way."""


class Check(BaseModel):
    """One check's result."""

    model_config = ConfigDict(frozen=True)

    status: CheckStatus = Field(
        description="`skipped`: it does not apply, or could not be made; the score is not lowered."
    )
    value: float | None = None
    unit: str | None = None
    message: str = ""


class HealthStatus(StrEnum):
    """The overall health, in one word."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class Health(BaseModel):
    """Every check, and the score that follows."""

    model_config = ConfigDict(frozen=True)

    score: int = Field(ge=0, le=100, description="Over the checks that apply; 100 is all well.")
    status: HealthStatus
    checks: dict[str, Check] = Field(description="By name; docs/health.md describes each.")
    slot: SlotName = Field(description="The active slot, whose instance was checked.")
    version: str | None = Field(description="Of the active instance; null if there is none.")
    age_seconds: float | None = Field(
        description="How long ago the active instance was checked; null if it was not yet, or "
        "there is none."
    )
