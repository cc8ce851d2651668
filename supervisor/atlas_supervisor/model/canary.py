"""Feature canaries: the policy for workers, the counted calls, and the views for readers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from pydantic import BaseModel, Field


class FeaturePolicy(BaseModel, frozen=True, extra="ignore"):
    """What a worker needs to decide a call of one feature."""

    share: float = Field(ge=0, le=1)
    """Effective share of calls that go to the canary: 0 where canaries are off."""
    epoch: int
    """Never reused: all calls decided in one epoch had the same share."""
    ramp: int = 0
    """The first epoch whose calls count as evidence."""
    stage: str = "steady"


class ArmCounts(BaseModel, frozen=True):
    """Calls and errors of one arm."""

    calls: int = Field(description="Number of calls.")
    errors: int = Field(description="Number of calls that failed.")
    error_rate: float = Field(description="Share of calls that failed.")


class FallbackView(BaseModel, frozen=True):
    """The latch that turned all canaries off, with the numbers at that time."""

    since_ts: datetime = Field(description="When canaries were turned off.")
    reason: str = Field(description="Why, in words.")
    canary: ArmCounts = Field(description="Canary calls of the hour before, over all features.")
    stable: ArmCounts = Field(description="Stable calls of the same hour.")


class Kills(BaseModel, frozen=True, extra="ignore"):
    """The features that the fleet's kill switch has off on this machine."""

    epoch: int = Field(description="The kill switch's epoch; only a higher one changes anything.")
    every_feature: bool = Field(default=False, description="Whether all features are off.")
    features: tuple[str, ...] = Field(
        default=(), description="The features that are off; also those that this machine lacks."
    )
    since_ts: datetime = Field(description="When the kill switch was set.")
    by: str = Field(description="Who has set it.")

    def has_off(self, feature: str) -> bool:
        """Return whether a feature is off."""
        return self.every_feature or feature in self.features


class CanaryPolicy(BaseModel, frozen=True, extra="ignore"):
    """The part of `deploy_state.json` that workers read."""

    enabled: bool
    salt: str
    """Mixed into the hash of keys, so that each installation selects different keys."""
    features: dict[str, FeaturePolicy]
    fallback: FallbackView | None = None
    kills: Kills | None = None
    """None if the fleet never set its kill switch, or there is no fleet."""
    counted_from: int = 0
    """The fallback counts calls from this epoch on; a reset moves it forward."""
    ring_layout: int = 1
    """The newest layout of rings that the daemon reads; an earlier daemon did not write it."""


class CountsRow(NamedTuple):
    """Counted calls of one epoch and arm in a span of time.

    `start` is the beginning of the span (Unix time) and `span` its length, in seconds.
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
    """A period in which one feature had one policy."""

    epoch: int
    feature: str
    ramp: int
    share: float
    ts: str
    cause: str


class KeyRow(NamedTuple):
    """What is known of a key's hash in one round of a ramp: an interval that it is in."""

    ramp: int
    key: int
    round: int
    low: float
    high: float


class RingRow(NamedTuple):
    """How far the events of one process were read and counted."""

    ring: str
    tail: int
    keyed_tail: int
    dropped: int


class LatencyView(BaseModel, frozen=True):
    """Latency in milliseconds, exact to 1 %; null without calls."""

    avg: float | None = Field(default=None, description="Mean.")
    p50: float | None = Field(default=None, description="Median.")
    p95: float | None = Field(default=None, description="95th percentile.")
    p99: float | None = Field(default=None, description="99th percentile.")


class ArmView(BaseModel, frozen=True):
    """One arm's calls over a span of time; docs/canary-in-code.md says what counts."""

    calls: int = Field(default=0, description="Calls with a known outcome.")
    errors: int = Field(default=0, description="Calls that failed.")
    error_rate: float = Field(default=0.0, description="Share that failed; 0 without calls.")
    latency_ms: LatencyView = Field(default=LatencyView(), description="Latency of the calls.")
    assigned: int = Field(default=0, description="Decisions, pending ones included.")
    unreported: int = Field(default=0, description="Decisions without a reported outcome.")


class BothArms(BaseModel, frozen=True):
    """The two arms of a feature."""

    canary: ArmView = Field(description="Calls of the new code.")
    stable: ArmView = Field(description="Calls of the old code.")


class CanaryStats(BothArms):
    """The canary calls of the last hour: of all features, and of each."""

    window_seconds: int = Field(default=3600, description="Length of the window.")
    features: dict[str, BothArms] = Field(description="The same for each feature, by name.")


class JudgementView(BaseModel, frozen=True):
    """What the evidence says about a canary."""

    verdict: str = Field(description="`pass`: promote; `fail`: roll back; `inconclusive`: hold.")
    kind: str = Field(
        description="What decided: `errors`, `latency`, `promotion`, `ratio`, `fallback` or "
        "`waiting`."
    )
    reason: str = Field(description="The verdict in words.")
    numbers: dict[str, Any] = Field(description="The numbers behind it, see docs/canary.md.")
    needs: int | None = Field(
        description="About how many more canary calls a verdict needs; null if unknown."
    )


class FeatureView(BaseModel, frozen=True):
    """One feature's canary, currently."""

    feature: str = Field(description="The feature's name.")
    share: float = Field(description="Effective share of calls that go to the canary.")
    percentage: float = Field(description="The configured share, used when `steady`.")
    stage: str = Field(
        description="`steady`, `ramping`, `paused`, `promoted` (all calls) or `rolled_back` (none)."
    )
    step: int | None = Field(description="Current step of the ramp, from 0; null without a ramp.")
    steps: list[float] = Field(description="The shares of the ramp (CANARY_RAMP).")
    since_ts: datetime = Field(description="When the epoch began.")
    epoch: int = Field(description="Number of the epoch; a changed share begins a new one.")
    ramp: int = Field(description="The first epoch whose calls count as evidence.")
    reason: str = Field(description="What led to this stage, in words.")
    waits_for: str | None = Field(description="What the ramp waits for; null if for nothing.")
    shortage: str | None = Field(
        default=None,
        description="Why the ramp can't end by evidence: the keys that call are too few, and what "
        "would do; null if they can, or it is not known.",
    )
    killed: bool = Field(
        default=False,
        description="Whether the fleet's kill switch has it off. Its share or ramp is kept.",
    )
    judgement: JudgementView = Field(description="What the evidence says.")
    pending_calls: int = Field(description="Calls without an outcome that counts yet.")
    warnings: list[str] = Field(description="Reasons not to trust the numbers.")


class CanaryView(BaseModel, frozen=True):
    """Every feature's canary, currently."""

    enabled: bool = Field(description="Whether canaries are on: CANARY_ENABLED, and no fallback.")
    canary_disabled_fallback: bool = Field(description="Whether the fallback turned canaries off.")
    fallback: FallbackView | None = Field(description="When and why it did; null if it did not.")
    kills: Kills | None = Field(
        default=None, description="The fleet's kill switch as it is applied; null if never set."
    )
    dropped_events: int = Field(
        description="Calls lost because a process's ring was full or could not be created."
    )
    problems: dict[str, str] = Field(
        description="What was lost or refused within the last hour, by the code of its suggestion."
    )
    late_calls: int = Field(description="Outcomes reported after 60 s or after their window.")
    overflown_calls: int = Field(
        description="Calls of keys beyond the 100,000 of a ramp and day: counted, not evidence."
    )
    features: list[FeatureView] = Field(description="One entry for each of CANARY_FEATURES.")


class IntervalView(BaseModel, frozen=True):
    """An estimate with its 95 % interval."""

    estimate: float = Field(description="The estimate.")
    low: float = Field(description="Lower end of the interval.")
    high: float = Field(description="Upper end of the interval.")


class ArmReport(ArmView):
    """One arm in the report."""

    error_rate_interval: IntervalView | None = Field(
        description="95 % interval (Wilson); null without calls."
    )
    latency_intervals: dict[str, IntervalView | None] = Field(
        description="`p50`, `p95` and `p99` in milliseconds with 95 % intervals (order "
        "statistics); null with too few calls for one."
    )


class StratumView(BaseModel, frozen=True):
    """The calls of one epoch, all assigned by the same share."""

    epoch: int = Field(description="Number of the epoch.")
    since_ts: datetime = Field(description="When it began.")
    share: float = Field(description="Share of calls that went to the canary.")
    cause: str = Field(description="What began the epoch, in words.")
    canary: ArmReport = Field(description="Calls of the new code.")
    stable: ArmReport = Field(description="Calls of the old code.")
    difference: IntervalView | None = Field(description="Canary's error rate minus stable's.")


class EvidenceView(BaseModel, frozen=True):
    """The evidence of a ramp at one moment."""

    ts: datetime = Field(description="The moment.")
    rollback: float = Field(description="Odds to 1 for a rollback, the largest until then.")
    promotion: float = Field(description="Odds to 1 for a promotion.")
    rollback_needed: float = Field(
        description="The odds that a rollback needed then: fewer after each other feature's."
    )


class FeatureReport(BaseModel, frozen=True):
    """One feature over the span of a report."""

    feature: str = Field(description="The feature's name.")
    canary: ArmReport = Field(description="Calls of the new code.")
    stable: ArmReport = Field(description="Calls of the old code.")
    difference: IntervalView | None = Field(
        description="Canary's error rate minus stable's, stratified by epoch (Mantel-Haenszel); "
        "null if they can't be compared."
    )
    strata: list[StratumView] = Field(description="The same for each epoch.")
    evidence: list[EvidenceView] = Field(
        description="The evidence since the ramp began, oldest first; what is older is coarser. "
        "A promotion needs `judgement.numbers.evidence.promotion.needed`."
    )
    judgement: JudgementView = Field(description="What the evidence says now.")
    verdict: str = Field(description="The `verdict` of `judgement`.")
    reason: str = Field(description="The `reason` of `judgement`.")
    warnings: list[str] = Field(description="Reasons not to trust the numbers.")


class CanaryReport(BaseModel, frozen=True):
    """Every feature, over the last hours."""

    hours: int = Field(description="Length of the report's span.")
    since_ts: datetime = Field(description="Its beginning.")
    until_ts: datetime = Field(description="Its end.")
    features: list[FeatureReport] = Field(description="One entry for each feature.")


class SimulatedRamp(BaseModel, frozen=True):
    """What becomes of good canaries on a ramp."""

    shares: list[float] = Field(description="Its shares below 1.")
    canary_keys: int = Field(description="Keys that get the canary, on average.")
    promoted: float = Field(
        description="Share of good canaries that are promoted by evidence, if each key calls on "
        "each step; within some points, as a real ramp learns the error rate."
    )


class SimulationView(BaseModel, frozen=True):
    """How often ramps promote a good canary, by the number of keys that call."""

    keys: int = Field(description="Keys that call.")
    error_rate: float = Field(description="Error rate of both arms.")
    margin: float = Field(description="A promotion rules out a rate that is higher by so much.")
    ramps: list[SimulatedRamp] = Field(description="The ramp, and longer ones.")
