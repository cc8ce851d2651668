"""Compares the arms for status and report: rates with intervals, latencies, the difference.

Calls of different epochs were assigned by different shares and at different times. Pooled, they
would compare the morning of one arm with the evening of the other, so the difference is computed
within each epoch first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.decision import Decision
from atlas_supervisor.canary.stats.explain import percent, sample_ratio_mismatch
from atlas_supervisor.canary.stats.intervals import (
    Interval,
    difference,
    stratified_difference,
    wilson,
)
from atlas_supervisor.canary.stats.outcomes import Tally
from atlas_supervisor.canary.stats.rollups import ArmTallies
from atlas_supervisor.canary.stats.sample_ratio import SampleRatios
from atlas_supervisor.model.canary import (
    ArmReport,
    ArmView,
    BothArms,
    CanaryStats,
    EpochRow,
    FeatureReport,
    IntervalView,
    JudgementView,
    LatencyView,
    StratumView,
)

_UNREPORTED_SHARE = 0.05
"""A larger share of decisions without an outcome is a warning."""
_LEAST_DECISIONS = 50


def arm_view(tally: Tally) -> ArmView:
    """Return one arm for the status."""
    return ArmView(**_fields(tally))


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


def both_arms(both: ArmTallies) -> BothArms:
    """Return both arms for the status."""
    return BothArms(canary=arm_view(both.canary), stable=arm_view(both.stable))


def canary_stats(features: Mapping[str, ArmTallies]) -> CanaryStats:
    """Return the tallies of each feature and their sum."""
    total = ArmTallies.empty()
    for both in features.values():
        total.add(both)
    shown = {name: both_arms(both) for name, both in features.items()}
    return CanaryStats(**both_arms(total).model_dump(), features=shown)


def arm_report(tally: Tally) -> ArmReport:
    """Return one arm for the report."""
    interval = wilson(Arm(tally.calls, tally.errors))
    return ArmReport(**_fields(tally), error_rate_interval=_interval(interval))


def feature_report(
    feature: str,
    epochs: Iterable[EpochRow],
    tallies: Mapping[int, ArmTallies],
    decision: Decision,
    ratios: SampleRatios,
) -> FeatureReport:
    """Return one feature's report; `tallies` are by epoch."""
    mine = [epoch for epoch in epochs if epoch.feature == feature and epoch.epoch in tallies]
    total = ArmTallies.empty()
    for epoch in mine:
        total.add(tallies[epoch.epoch])
    compared = [arms_of(tallies[epoch.epoch]) for epoch in mine]
    return FeatureReport(
        feature=feature,
        canary=arm_report(total.canary),
        stable=arm_report(total.stable),
        difference=_interval(stratified_difference(compared)),
        strata=[_stratum(epoch, tallies[epoch.epoch]) for epoch in mine],
        judgement=decision_view(decision),
        verdict=decision.verdict.value,
        reason=decision.reason,
        warnings=warnings_of(total, ratios),
    )


def arms_of(both: ArmTallies) -> tuple[Arm, Arm]:
    """Return the counts of canary and stable."""
    canary, stable = both
    return Arm(canary.calls, canary.errors), Arm(stable.calls, stable.errors)


def warnings_of(total: ArmTallies, ratios: SampleRatios) -> list[str]:
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


def decision_view(decision: Decision) -> JudgementView:
    """Return a decision for the API."""
    return JudgementView(
        verdict=decision.verdict.value,
        kind=decision.kind.value,
        reason=decision.reason,
        numbers=dict(decision.numbers),
        needs=decision.needs,
    )


def _stratum(epoch: EpochRow, both: ArmTallies) -> StratumView:
    return StratumView(
        epoch=epoch.epoch,
        since_ts=datetime.fromisoformat(epoch.ts),
        share=epoch.share,
        cause=epoch.cause,
        canary=arm_report(both.canary),
        stable=arm_report(both.stable),
        difference=_interval(difference(*arms_of(both))),
    )


def _interval(interval: Interval | None) -> IntervalView | None:
    if interval is None:
        return None
    return IntervalView(estimate=interval.estimate, low=interval.low, high=interval.high)


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else float(f"{milliseconds:.4g}")
