"""Feature canaries: the policy for workers, the rows of the database, the views of the API."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class FeaturePolicy(BaseModel):
    """The policy of one feature: what workers need to decide a call, and its stage."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    share: float = Field(ge=0, le=1)
    """The effective share of calls that go to the canary: 0 while canaries are off."""
    epoch: int
    """Unique; all decisions under one epoch have one share."""
    ramp: int = 0
    """The first epoch of its evidence."""
    stage: str = "steady"


class ArmCounts(BaseModel):
    """Calls and errors of one arm."""

    model_config = ConfigDict(frozen=True)

    calls: int
    errors: int
    error_rate: float


class FallbackView(BaseModel):
    """The fallback that turned all canaries off, with the numbers at that time."""

    model_config = ConfigDict(frozen=True)

    since_ts: datetime
    reason: str
    canary: ArmCounts = Field(description="All canary calls of the hour before, over all features.")
    stable: ArmCounts = Field(description="All stable calls of the same hour.")


class CanaryPolicy(BaseModel):
    """The canary section of `deploy_state.json`, which workers read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    enabled: bool
    salt: str
    """Part of the hash of keys, so that each installation draws other keys."""
    features: dict[str, FeaturePolicy]
    fallback: FallbackView | None = None
    counted_from: int = 0
    """The first epoch that the fallback counts; a reset of the fallback moves it."""


class CountsRow(NamedTuple):
    """The counts of one epoch and arm in a span of time.

    `span` is its length and `start` its start, in seconds (Unix time).
    """

    span: int
    start: int
    epoch: int
    canary: bool
    assigned: int
    unreported: int
    calls: int
    errors: int
    cancelled: int
    latency: bytes
    """A packed histogram."""


class EpochRow(NamedTuple):
    """An epoch: the time in which a feature has one share."""

    epoch: int
    feature: str
    ramp: int
    share: float
    ts: str
    cause: str


class RingRow(NamedTuple):
    """The position up to which the events of one ring are in the database."""

    ring: str
    tail: int
    keyed_tail: int
    dropped: int


class LatencyView(BaseModel):
    """Latencies in milliseconds, accurate within 1 %; null without calls."""

    model_config = ConfigDict(frozen=True)

    avg: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class ArmView(BaseModel):
    """One arm over a span of time."""

    model_config = ConfigDict(frozen=True)

    calls: int = Field(default=0, description="Calls with an outcome.")
    errors: int = 0
    error_rate: float = Field(default=0.0, description="Of the calls; 0 without calls.")
    latency_ms: LatencyView = LatencyView()
    assigned: int = Field(default=0, description="Decisions, those without an outcome included.")
    unreported: int = Field(default=0, description="Decisions whose outcome was never reported.")


class BothArms(BaseModel):
    """The two arms of a feature."""

    model_config = ConfigDict(frozen=True)

    canary: ArmView
    stable: ArmView


class CanaryStats(BothArms):
    """The calls of the last hour, of each feature and in total."""

    window_seconds: int = 3600
    features: dict[str, BothArms]


class JudgementView(BaseModel):
    """The verdict of the evidence."""

    model_config = ConfigDict(frozen=True)

    verdict: str = Field(description="`pass`: promote, `fail`: roll back, `inconclusive`: hold.")
    kind: str = Field(description="`errors`, `latency`, `promotion`, `ratio` or `waiting`.")
    reason: str
    numbers: dict[str, Any]
    needs: int | None = Field(
        description="A forecast of the canary calls until a verdict, if there is one."
    )


class FeatureView(BaseModel):
    """The present state of one feature's canary."""

    model_config = ConfigDict(frozen=True)

    feature: str
    share: float = Field(description="Effective share of calls that go to the canary.")
    percentage: float = Field(description="The share while steady.")
    stage: str = Field(
        description="`steady`, `ramping`, `paused`, `promoted` (all calls) or `rolled_back` (none)."
    )
    step: int | None = Field(description="The step of its ramp, from 0; null without a ramp.")
    steps: list[float] = Field(description="The shares of a ramp (CANARY_RAMP).")
    since_ts: datetime = Field(description="When the epoch began.")
    epoch: int
    ramp: int = Field(description="The first epoch of its evidence.")
    reason: str = Field(description="The reason for this stage or share.")
    waits_for: str | None = Field(
        description="The condition of the ramp's next step; null without one."
    )
    judgement: JudgementView
    pending_calls: int = Field(description="Calls that are not evidence yet.")
    warnings: list[str] = Field(description="Reasons to distrust the numbers.")


class CanaryView(BaseModel):
    """The present state of all canaries."""

    model_config = ConfigDict(frozen=True)

    enabled: bool = Field(description="CANARY_ENABLED, and no fallback.")
    canary_disabled_fallback: bool
    fallback: FallbackView | None = Field(description="The fallback that turned canaries off.")
    dropped_events: int = Field(description="Events that found no room in a ring.")
    late_calls: int = Field(description="Outcomes after 60 s, or after their window was closed.")
    overflown_calls: int = Field(
        description="Calls of keys beyond the 100,000 that a ramp remembers: counted, not evidence."
    )
    features: list[FeatureView]


class IntervalView(BaseModel):
    """An estimate with its 95 % confidence interval."""

    model_config = ConfigDict(frozen=True)

    estimate: float
    low: float
    high: float


class ArmReport(ArmView):
    """One arm in a report."""

    error_rate_interval: IntervalView | None = Field(description="95 %, Wilson; null: no calls.")


class StratumView(BaseModel):
    """The calls of one epoch, all assigned by one share."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    since_ts: datetime
    share: float
    cause: str
    canary: ArmReport
    stable: ArmReport
    difference: IntervalView | None = Field(description="Canary's error rate minus stable's.")


class FeatureReport(BaseModel):
    """One feature in a report."""

    model_config = ConfigDict(frozen=True)

    feature: str
    canary: ArmReport
    stable: ArmReport
    difference: IntervalView | None = Field(
        description="Canary's error rate minus stable's, stratified by epoch (Mantel-Haenszel); "
        "null where they can't be compared."
    )
    strata: list[StratumView]
    judgement: JudgementView
    verdict: str
    reason: str
    warnings: list[str]


class CanaryReport(BaseModel):
    """Every feature over the last hours."""

    model_config = ConfigDict(frozen=True)

    hours: int
    since_ts: datetime
    until_ts: datetime
    features: list[FeatureReport]
