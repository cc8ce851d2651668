"""Builds the views of canaries for readers: the status, the report, and suggestions.

Calls of different epochs were assigned by different shares and at different times. Pooled, they
would compare the morning of one arm with the evening of the other, so the report computes the
difference within each epoch first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from atlas_supervisor.canary.evidence import Evidence
from atlas_supervisor.canary.stats.bets import exponential
from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.decision import Decision, needed_in_ramp
from atlas_supervisor.canary.stats.explain import percent, sample_ratio_mismatch, too_few_keys
from atlas_supervisor.canary.stats.intervals import (
    Interval,
    difference,
    quantile,
    stratified_difference,
    wilson,
)
from atlas_supervisor.canary.stats.outcomes import Tally
from atlas_supervisor.canary.stats.plan import FURTHER, promoted
from atlas_supervisor.canary.stats.ramp import Feature, Rules, Stage, waits_for
from atlas_supervisor.canary.stats.rollups import ArmTallies, EvidencePoint, by_epoch
from atlas_supervisor.canary.stats.sample_ratio import SampleRatios
from atlas_supervisor.config import Settings
from atlas_supervisor.model.canary import (
    ArmCounts,
    ArmReport,
    ArmView,
    BothArms,
    CanaryPolicy,
    CanaryReport,
    CanaryStats,
    CanaryView,
    CountsRow,
    EpochRow,
    EvidenceView,
    FallbackView,
    FeatureReport,
    FeatureView,
    IntervalView,
    JudgementView,
    Kills,
    LatencyView,
    SimulatedRamp,
    SimulationView,
    StratumView,
)
from atlas_supervisor.model.health import Check, CheckStatus
from atlas_supervisor.model.status import Suggestion
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.system.clock import now as wall_clock

_UNREPORTED_SHARE = 0.05
"""A larger share of decisions without an outcome is a warning."""
_LEAST_DECISIONS = 50
_REMEDIES = {
    "canary_events_dropped": "See the daemon's log, and docs/canary-in-code.md for the bounds.",
    "canary_ring_refused": "The file is in STATE_DIR/canary with the suffix .refused: its process "
    "may be broken, or use a newer kit than this daemon. Restart it.",
    "canary_rings_waiting": "Run fewer processes with canaries, or see which ones do not exit.",
}


class FeatureEvidence(NamedTuple):
    """What a report says of one feature's ramp."""

    decision: Decision
    ratios: SampleRatios
    course: Sequence[EvidencePoint]

    @classmethod
    def of(cls, evidence: Evidence, feature: Feature, rules: Rules) -> FeatureEvidence:
        """Return it as it is now."""
        decision = evidence.decision(feature.name, rules.last_share(feature))
        return cls(decision, evidence.ratios(feature.name), evidence.course(feature.name))


class RecentStats(NamedTuple):
    """The numbers of the last hour, and the reasons to distrust those of a feature."""

    minute: int
    """When it was computed, in minutes of Unix time."""
    stats: CanaryStats
    warnings: Mapping[str, list[str]]


def fallback_view(canary: Arm, stable: Arm, reason: str) -> FallbackView:
    """Return a fallback that happens now."""
    return FallbackView(
        since_ts=wall_clock(), reason=reason, canary=_arm_counts(canary), stable=_arm_counts(stable)
    )


def _arm_counts(arm: Arm) -> ArmCounts:
    return ArmCounts(calls=arm.calls, errors=arm.errors, error_rate=arm.rate or 0.0)


def counting_check(problems: Iterable[str], failure: str | None) -> Check:
    """Return whether all calls are counted; `failure` is why they can't be written."""
    found = [*problems, *([f"counts can't be written: {failure}"] if failure is not None else [])]
    if found:
        return Check(status=CheckStatus.WARN, message="; ".join(found))
    return Check(status=CheckStatus.PASS, message="all rings are read, and counts are written")


def recent_stats(evidence: Evidence, minute: int) -> RecentStats:
    """Return the numbers of the last hour."""
    tallies = evidence.last_hour(minute * 60)
    warnings = {name: _warnings_of(both, evidence.ratios(name)) for name, both in tallies.items()}
    return RecentStats(minute, _canary_stats(tallies), warnings)


def feature_view(
    feature: Feature,
    share: float,
    rules: Rules,
    evidence: Evidence,
    now: float,
    *,
    warnings: list[str],
    policy: CanaryPolicy,
) -> FeatureView:
    """Return one feature's canary for the status."""
    decision = evidence.decision(feature.name, rules.last_share(feature))
    epoch = evidence.epoch(feature.epoch)
    calls = evidence.step_calls(feature.epoch)
    short = decision.outlook.shortage if feature.ramps else None
    return FeatureView(
        feature=feature.name,
        share=share,
        percentage=feature.percentage,
        stage=feature.stage.value,
        step=feature.step if feature.ramps else None,
        steps=list(rules.steps),
        since_ts=datetime.fromisoformat(epoch.ts) if epoch else datetime.now(UTC),
        epoch=feature.epoch,
        ramp=feature.ramp,
        reason=feature.reason or (epoch.cause if epoch else ""),
        waits_for=_latched(feature, policy) or waits_for(feature, decision, calls, rules, now),
        shortage=too_few_keys(short) if short is not None else None,
        killed=policy.kills is not None and policy.kills.has_off(feature.name),
        judgement=_judgement(feature.name, decision, policy.fallback),
        pending_calls=evidence.pending_calls(feature.name),
        warnings=warnings,
    )


def _latched(feature: Feature, policy: CanaryPolicy) -> str | None:
    """Return the reset that a feature waits for; None if nothing has it off."""
    if policy.kills is not None and policy.kills.has_off(feature.name):
        return "a reset of the fleet's kill switch"
    if policy.fallback is not None and feature.stage is not Stage.ROLLED_BACK:
        return "an operator's reset of the fallback"
    return None


def _judgement(name: str, decision: Decision, fallback: FallbackView | None) -> JudgementView:
    """Return the verdict, or after a fallback that no verdict is reached any more.

    A fallback counts all calls that have ended, and comes before the evidence has them.
    """
    numbers = dict(decision.numbers)
    if fallback is not None:
        reason = f"{name}: all canaries are off until the fallback is reset: {fallback.reason}"
        verdict = Verdict.INCONCLUSIVE.value
        return JudgementView(
            verdict=verdict, kind="fallback", reason=reason, numbers=numbers, needs=None
        )
    return JudgementView(
        verdict=decision.verdict.value,
        kind=decision.kind.value,
        reason=decision.reason,
        numbers=numbers,
        needs=decision.needs,
    )


def build_report(
    until: datetime,
    hours: int,
    epochs: list[EpochRow],
    counts: Iterable[CountsRow],
    known: Mapping[str, FeatureEvidence],
    *,
    fallback: FallbackView | None,
) -> CanaryReport:
    """Return every feature over the last hours. Takes long enough to need a thread."""
    tallies = by_epoch(counts)
    return CanaryReport(
        hours=hours,
        since_ts=until - timedelta(hours=hours),
        until_ts=until,
        features=[
            _feature_report(
                name, epochs, tallies, found, _judgement(name, found.decision, fallback)
            )
            for name, found in known.items()
        ],
    )


def _fields(tally: Tally) -> dict[str, object]:
    latency = tally.latency
    p50, p95, p99 = latency.quantiles(0.5, 0.95, 0.99)
    return {
        "calls": tally.calls,
        "errors": tally.errors,
        "error_rate": tally.errors / tally.calls if tally.calls else 0.0,
        "latency_ms": LatencyView(
            avg=_rounded(latency.mean_ms),
            p50=_rounded(p50),
            p95=_rounded(p95),
            p99=_rounded(p99),
        ),
        "assigned": tally.assigned,
        "unreported": tally.unreported,
    }


def _both_arms(both: ArmTallies) -> BothArms:
    canary, stable = (ArmView(**_fields(tally)) for tally in both)
    return BothArms(canary=canary, stable=stable)


def _canary_stats(features: Mapping[str, ArmTallies]) -> CanaryStats:
    """Return the tallies of each feature and their sum."""
    total = ArmTallies.empty()
    for both in features.values():
        total.add(both)
    shown = {name: _both_arms(both) for name, both in features.items()}
    return CanaryStats(**_both_arms(total).model_dump(), features=shown)


def _arm_report(tally: Tally) -> ArmReport:
    interval = wilson(Arm(tally.calls, tally.errors))
    quantiles = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return ArmReport(
        **_fields(tally),
        error_rate_interval=_interval(interval),
        latency_intervals={
            name: _interval(quantile(tally.latency, q)) for name, q in quantiles.items()
        },
    )


def _feature_report(
    feature: str,
    epochs: Iterable[EpochRow],
    tallies: Mapping[int, ArmTallies],
    known: FeatureEvidence,
    judgement: JudgementView,
) -> FeatureReport:
    """Return one feature's report; `tallies` are by epoch."""
    mine = [epoch for epoch in epochs if epoch.feature == feature and epoch.epoch in tallies]
    total = ArmTallies.empty()
    for epoch in mine:
        total.add(tallies[epoch.epoch])
    compared = [_arms_of(tallies[epoch.epoch]) for epoch in mine]
    return FeatureReport(
        feature=feature,
        canary=_arm_report(total.canary),
        stable=_arm_report(total.stable),
        difference=_interval(stratified_difference(compared)),
        strata=[_stratum(epoch, tallies[epoch.epoch]) for epoch in mine],
        evidence=[
            EvidenceView(
                ts=datetime.fromtimestamp(point.unix, UTC),
                rollback=float(f"{exponential(point.rollback):.4g}"),
                promotion=float(f"{exponential(point.promotion):.4g}"),
                rollback_needed=float(f"{exponential(point.needed):.4g}"),
            )
            for point in known.course
        ],
        judgement=judgement,
        verdict=judgement.verdict,
        reason=judgement.reason,
        warnings=_warnings_of(total, known.ratios),
    )


def _arms_of(both: ArmTallies) -> tuple[Arm, Arm]:
    canary, stable = both
    return Arm(canary.calls, canary.errors), Arm(stable.calls, stable.errors)


def _warnings_of(total: ArmTallies, ratios: SampleRatios) -> list[str]:
    """Return the reasons to distrust the numbers: a sample ratio mismatch, unreported outcomes.

    `ratios` are of the whole ramp, where a key counts once: all its calls get the same arm.
    """
    found = [] if ratios.fit else [sample_ratio_mismatch(ratios)]
    for name, side in (("canary", total.canary), ("stable", total.stable)):
        if (
            side.assigned >= _LEAST_DECISIONS
            and side.unreported > _UNREPORTED_SHARE * side.assigned
        ):
            share = percent(side.unreported / side.assigned)
            found.append(
                f"{share} of the {name} arm's decisions were never reported; every "
                "use_canary_version needs its record_canary_call"
            )
    return found


def _stratum(epoch: EpochRow, both: ArmTallies) -> StratumView:
    return StratumView(
        epoch=epoch.epoch,
        since_ts=datetime.fromisoformat(epoch.ts),
        share=epoch.share,
        cause=epoch.cause,
        canary=_arm_report(both.canary),
        stable=_arm_report(both.stable),
        difference=_interval(difference(*_arms_of(both))),
    )


def _interval(interval: Interval | None) -> IntervalView | None:
    if interval is None:
        return None
    return IntervalView(estimate=interval.estimate, low=interval.low, high=interval.high)


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else float(f"{milliseconds:.4g}")


def suggestions(view: CanaryView) -> Iterator[Suggestion]:
    """Yield problems, each with the operator's remedy."""
    if view.fallback is not None:
        yield Suggestion(
            code="canary_fallback",
            message=f"All canaries are off: {view.fallback.reason}.",
            action="See `atlasctl canary report`. Once the cause is fixed, run "
            "`atlasctl canary reset`.",
        )
    if view.kills is not None and (off := _killed(view.kills)):
        yield Suggestion(
            code="canary_killed",
            message=f"The fleet's kill switch has {off} off, since "
            f"{view.kills.since_ts:%F %T} UTC, set by {view.kills.by}.",
            action="Once the cause is fixed, run `atlasctl fleet reset`.",
        )
    for feature in view.features:
        if feature.stage == Stage.ROLLED_BACK:
            why = str(feature.reason).removeprefix(f"{feature.feature}: ")
            yield Suggestion(
                code="canary_rolled_back",
                message=f"The canary of {feature.feature} gets no calls: {why}.",
                action=f"Once it is fixed, run `atlasctl canary ramp {feature.feature} start` or "
                f"`atlasctl canary reset {feature.feature}`.",
            )
        if feature.shortage is not None:
            yield Suggestion(
                code="canary_too_few_keys",
                message=f"{feature.feature} can't be promoted by evidence: {feature.shortage}.",
                action="Add larger shares below 1 to CANARY_RAMP and run `atlasctl reload`: the "
                "ramp goes on with its evidence. Or decide without evidence: `atlasctl canary ramp "
                f"{feature.feature} promote`.",
            )
        for warning in feature.warnings:
            yield Suggestion(
                code="canary_not_trusted",
                message=f"{feature.feature}: {warning}.",
                action="See docs/canary.md for what is compared and what invalidates it.",
            )
    for code, message in view.problems.items():
        yield Suggestion(code=code, message=f"{message}.", action=_REMEDIES[code])


def _killed(kills: Kills) -> str:
    """Return the killed features in words; empty if there are none."""
    return "every feature" if kills.every_feature else ", ".join(kills.features)


def simulation(
    settings: Settings, keys: int, error_rate: float, shares: Sequence[float]
) -> SimulationView:
    """Return how often this ramp promotes a good canary, and longer ones. Takes about a second."""
    below = [share for share in shares if share < 1]
    longer = [share for share in FURTHER if share > below[-1]]
    ramps = [below + longer[:count] for count in range(len(longer) + 1)]
    margin, needed = settings.canary_margin, needed_in_ramp(settings.canary_promote_alpha)
    return SimulationView(
        keys=keys,
        error_rate=error_rate,
        margin=margin,
        ramps=[
            SimulatedRamp(
                shares=each,
                canary_keys=round(keys * each[-1]),
                promoted=promoted(keys, each, error_rate, margin=margin, needed=needed),
            )
            for each in ramps
        ],
    )
