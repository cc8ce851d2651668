"""Health of the active worker and the daemon, as `GET /health` answers it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, Field

from atlas_supervisor.model.slot import SlotName


class CheckStatus(StrEnum):
    """The result of a check."""

    PASS = "pass"  # noqa: S105 - a finding, not a password
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"
    """It does not apply or could not run: no evidence either way."""


class Check(BaseModel, frozen=True):
    """The result of one check."""

    status: CheckStatus = Field(
        description="`skipped`: it does not apply or could not run; it does not lower the score."
    )
    value: float | None = Field(default=None, description="The measured value, if any.")
    unit: str | None = Field(default=None, description="Its unit.")
    message: str = Field(default="", description="The result in words.")


class HealthStatus(StrEnum):
    """Overall health."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class Health(BaseModel, frozen=True):
    """Every check, and the score over all of them."""

    score: int = Field(ge=0, le=100, description="Over the checks that apply; 100: all pass.")
    status: HealthStatus = Field(description="The score in a word.")
    checks: dict[str, Check] = Field(description="By name; docs/health.md explains each.")
    slot: SlotName = Field(description="The active slot.")
    version: str | None = Field(description="Version of the active worker; null if there is none.")
    age_seconds: float | None = Field(
        description="Time since the active worker was checked; null before the first check and "
        "without a worker."
    )
