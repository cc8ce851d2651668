"""Feature canaries: what workers are told, what is counted, and what a reader is shown."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class FeaturePolicy(BaseModel):
    """What workers need to decide a call of one feature, and how it came to that."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    share: float = Field(ge=0, le=1)
    """Share of calls that go to the canary, all told: 0 where canaries are off."""
    epoch: int
    """Given once: all that is decided under one epoch has one share."""
    ramp: int = 0
    """The first epoch that its evidence counts from."""
    stage: str = "steady"


class ArmCounts(BaseModel):
    """Calls of one arm, and how many of them failed."""

    model_config = ConfigDict(frozen=True)

    calls: int
    errors: int
    error_rate: float


class FallbackView(BaseModel):
    """The latch that turned all canaries off, with the numbers of that moment."""

    model_config = ConfigDict(frozen=True)

    since_ts: datetime
    reason: str
    canary: ArmCounts = Field(description="All canary calls of the hour before, over all features.")
    stable: ArmCounts = Field(description="The stable arm's at the same time.")


class CanaryPolicy(BaseModel):
    """The part of `deploy_state.json` that workers go by."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    enabled: bool
    salt: str
    """Mixed into the hash of keys, so that another installation draws other keys."""
    features: dict[str, FeaturePolicy]
    fallback: FallbackView | None = None
    counted_from: int = 0
    """The fallback looks at calls of this epoch and later ones: a reset forgets what was before."""


class CountsRow(NamedTuple):
    """What is known of the calls of one epoch and arm in a span of time.

    `span` is its length and `start` its beginning, in seconds (Unix time).
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
    """A span of one policy of one feature."""

    epoch: int
    feature: str
    ramp: int
    share: float
    ts: str
    cause: str


class RingRow(NamedTuple):
    """How far the events of one process were read, and are accounted for."""

    ring: str
    tail: int
    keyed_tail: int
    dropped: int


class LatencyView(BaseModel):
    """Milliseconds, within 1 %; null without calls."""

    model_config = ConfigDict(frozen=True)

    avg: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class ArmView(BaseModel):
    """One arm over a span of time."""

    model_config = ConfigDict(frozen=True)

    calls: int = Field(default=0, description="Calls whose outcome is known.")
    errors: int = 0
    error_rate: float = Field(default=0.0, description="Of the calls; 0 without calls.")
    latency_ms: LatencyView = LatencyView()
    assigned: int = Field(default=0, description="Decisions, those that wait included.")
    unreported: int = Field(
        default=0, description="Decisions that were asked for and whose outcome nobody told."
    )


class BothArms(BaseModel):
    """The two arms of a feature."""

    model_config = ConfigDict(frozen=True)

    canary: ArmView
    stable: ArmView


class CanaryStats(BothArms):
    """All canary calls of the last hour, and those of each feature."""

    window_seconds: int = 3600
    features: dict[str, BothArms]


class JudgementView(BaseModel):
    """What the evidence says."""

    model_config = ConfigDict(frozen=True)

    verdict: str = Field(description="`pass`: promote, `fail`: roll back, `inconclusive`: hold.")
    kind: str = Field(description="`errors`, `latency`, `promotion`, `ratio` or `waiting`.")
    reason: str
    numbers: dict[str, Any]
    needs: int | None = Field(description="About how many more canary calls it takes, if known.")


class FeatureView(BaseModel):
    """One feature's canary as it is now."""

    model_config = ConfigDict(frozen=True)

    feature: str
    share: float = Field(description="Share of calls that go to the canary, all told.")
    percentage: float = Field(description="The share it has when it is steady.")
    stage: str = Field(
        description="`steady`, `ramping`, `paused`, `promoted` (all calls) or `rolled_back` (none)."
    )
    step: int | None = Field(description="The step of its ramp, from 0; null without one.")
    steps: list[float] = Field(description="The shares of a ramp (CANARY_RAMP).")
    since_ts: datetime = Field(description="When the epoch began.")
    epoch: int
    ramp: int = Field(description="The epoch that its evidence counts from.")
    reason: str = Field(description="Why it came to this, in words.")
    waits_for: str | None = Field(description="What a ramp waits for; null if for nothing.")
    judgement: JudgementView
    pending_calls: int = Field(description="Calls that are not part of the evidence yet.")
    warnings: list[str] = Field(description="Why the numbers are not to be trusted, if so.")


class CanaryView(BaseModel):
    """All of it at a glance."""

    model_config = ConfigDict(frozen=True)

    enabled: bool = Field(description="CANARY_ENABLED, and no fallback.")
    canary_disabled_fallback: bool
    fallback: FallbackView | None = Field(description="Why the fallback turned canaries off.")
    dropped_events: int = Field(description="Events that processes had no room for.")
    late_calls: int = Field(description="Outcomes after 60 s, or too late for their window.")
    overflown_calls: int = Field(
        description="Calls of keys beyond the 100,000 that a ramp remembers: counted, no evidence."
    )
    features: list[FeatureView]


class IntervalView(BaseModel):
    """An estimate with its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    estimate: float
    low: float
    high: float


class ArmReport(ArmView):
    """One arm in the report."""

    error_rate_interval: IntervalView | None = Field(description="95 %, Wilson; null: no calls.")


class StratumView(BaseModel):
    """The calls of one epoch: all were assigned by one share."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    since_ts: datetime
    share: float
    cause: str
    canary: ArmReport
    stable: ArmReport
    difference: IntervalView | None = Field(description="Canary's error rate minus stable's.")


class FeatureReport(BaseModel):
    """One feature over the span of a report."""

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
