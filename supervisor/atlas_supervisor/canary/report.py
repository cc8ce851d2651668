"""Builds the views of canaries for readers: the status, the report, and suggestions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from atlas_supervisor.canary.evidence import Evidence
from atlas_supervisor.canary.stats.comparison import (
    canary_stats,
    decision_view,
    feature_report,
    warnings_of,
)
from atlas_supervisor.canary.stats.decision import Decision
from atlas_supervisor.canary.stats.ramp import Feature, Rules, Stage, waits_for
from atlas_supervisor.canary.stats.rollups import by_epoch
from atlas_supervisor.canary.stats.sample_ratio import SampleRatios
from atlas_supervisor.model.canary import (
    CanaryReport,
    CanaryStats,
    CanaryView,
    CountsRow,
    EpochRow,
    FallbackView,
    FeatureReport,
    FeatureView,
    JudgementView,
)
from atlas_supervisor.model.status import Suggestion
from atlas_supervisor.model.verdict import Verdict

_RESET = "an operator's reset of the fallback"
_REMEDIES = {
    "canary_events_dropped": "See the daemon's log, and docs/canary-in-code.md for the bounds.",
    "canary_ring_refused": "The file is in STATE_DIR/canary with the suffix .refused: its process "
    "may be broken, or use a newer kit than this daemon. Restart it.",
    "canary_rings_waiting": "Run fewer processes with canaries, or see which ones do not exit.",
}


class RecentStats(NamedTuple):
    """The numbers of the last hour, and the reasons to distrust those of a feature."""

    minute: int
    """When it was computed, in minutes of Unix time."""
    stats: CanaryStats
    warnings: Mapping[str, list[str]]


def recent_stats(evidence: Evidence, minute: int) -> RecentStats:
    """Return the numbers of the last hour."""
    tallies = evidence.last_hour(minute * 60)
    warnings = {name: warnings_of(both, evidence.ratios(name)) for name, both in tallies.items()}
    return RecentStats(minute, canary_stats(tallies), warnings)


def feature_view(
    feature: Feature,
    share: float,
    rules: Rules,
    evidence: Evidence,
    now: float,
    *,
    warnings: list[str],
    fallback: FallbackView | None,
) -> FeatureView:
    """Return one feature's canary for the status."""
    decision = evidence.decision(feature.name)
    epoch = evidence.epoch(feature.epoch)
    calls = evidence.step_calls(feature.epoch)
    ramps = feature.stage in (Stage.RAMPING, Stage.PAUSED)
    return FeatureView(
        feature=feature.name,
        share=share,
        percentage=feature.percentage,
        stage=feature.stage.value,
        step=feature.step if ramps else None,
        steps=list(rules.steps),
        since_ts=datetime.fromisoformat(epoch.ts) if epoch else datetime.now(UTC),
        epoch=feature.epoch,
        ramp=feature.ramp,
        reason=feature.reason or (epoch.cause if epoch else ""),
        waits_for=(
            _RESET
            if fallback and feature.stage is not Stage.ROLLED_BACK
            else waits_for(feature, decision, calls, rules, now)
        ),
        judgement=_judgement(feature.name, decision, fallback),
        pending_calls=evidence.pending_calls(feature.name),
        warnings=warnings,
    )


def _judgement(name: str, decision: Decision, fallback: FallbackView | None) -> JudgementView:
    """Return the verdict, or after a fallback that no verdict is reached any more.

    A fallback counts all calls that have ended, and comes before the evidence has them.
    """
    view = decision_view(decision)
    if fallback is None:
        return view
    reason = f"{name}: all canaries are off until the fallback is reset: {fallback.reason}"
    verdict = Verdict.INCONCLUSIVE.value
    changes = {"verdict": verdict, "kind": "fallback", "reason": reason, "needs": None}
    return view.model_copy(update=changes)


def build_report(
    until: datetime,
    hours: int,
    epochs: list[EpochRow],
    counts: Iterable[CountsRow],
    decisions: Mapping[str, tuple[Decision, SampleRatios]],
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
            _report(
                feature_report(name, epochs, tallies, decision, ratios),
                _judgement(name, decision, fallback),
            )
            for name, (decision, ratios) in decisions.items()
        ],
    )


def _report(found: FeatureReport, judgement: JudgementView) -> FeatureReport:
    changes = {"verdict": judgement.verdict, "reason": judgement.reason, "judgement": judgement}
    return found.model_copy(update=changes)


def suggestions(view: CanaryView) -> Iterator[Suggestion]:
    """Yield problems, each with the operator's remedy."""
    if view.fallback is not None:
        yield Suggestion(
            code="canary_fallback",
            message=f"All canaries are off: {view.fallback.reason}.",
            action="See `atlasctl canary report`. Once the cause is fixed, run "
            "`atlasctl canary reset`.",
        )
    for feature in view.features:
        if feature.stage == Stage.ROLLED_BACK:
            yield Suggestion(
                code="canary_rolled_back",
                message=f"The canary of {feature.feature} gets no calls: {feature.reason}.",
                action=f"Once it is fixed, run `atlasctl canary ramp {feature.feature} start` or "
                f"`atlasctl canary reset {feature.feature}`.",
            )
        for warning in feature.warnings:
            yield Suggestion(
                code="canary_not_trusted",
                message=f"{feature.feature}: {warning}.",
                action="See docs/canary.md for what is compared and what invalidates it.",
            )
    for code, message in view.problems.items():
        yield Suggestion(code=code, message=f"{message}.", action=_REMEDIES[code])
