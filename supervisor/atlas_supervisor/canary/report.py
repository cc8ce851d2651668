"""What a reader is shown of canaries, put together from what is known.

What an operator should do about canaries as they are, if anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from atlas_supervisor.canary.evidence import Evidence
from atlas_supervisor.canary.stats.comparison import (
    canary_stats,
    feature_report,
    judgement_view,
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
    FeatureView,
)
from atlas_supervisor.model.status import Suggestion


class RecentStats(NamedTuple):
    """The last hour's numbers, and why those of a feature are not to be trusted."""

    minute: int
    """When it was put together, in minutes of Unix time."""
    stats: CanaryStats
    warnings: Mapping[str, list[str]]


def glance(evidence: Evidence, minute: int) -> RecentStats:
    """Return the last hour's numbers."""
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
) -> FeatureView:
    """Return one feature's canary as it is now."""
    judgement = evidence.judgement(feature.name)
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
        waits_for=waits_for(feature, judgement, calls, rules, now),
        judgement=judgement_view(judgement),
        pending_calls=evidence.pending(feature.ramp),
        warnings=warnings,
    )


def report(
    until: datetime,
    hours: int,
    epochs: list[EpochRow],
    counts: Iterable[CountsRow],
    judged: Mapping[str, tuple[Decision, SampleRatios]],
) -> CanaryReport:
    """Return every feature over the last hours. It takes its time: to be run in a thread."""
    tallies = by_epoch(counts)
    return CanaryReport(
        hours=hours,
        since_ts=until - timedelta(hours=hours),
        until_ts=until,
        features=[
            feature_report(name, epochs, tallies, judgement, ratios)
            for name, (judgement, ratios) in judged.items()
        ],
    )


def suggestions(view: CanaryView) -> Iterator[Suggestion]:
    """Yield what is wrong and what would mend it; nothing when all is well."""
    if view.fallback is not None:
        yield Suggestion(
            code="canary_fallback",
            message=f"All canaries are off: {view.fallback.reason}.",
            action="Look at `atlasctl canary report`; once the cause is mended, reset it: "
            "`atlasctl canary reset`.",
        )
    for feature in view.features:
        if feature.stage == Stage.ROLLED_BACK:
            yield Suggestion(
                code="canary_rolled_back",
                message=f"The canary of {feature.feature} gets no calls: {feature.reason}.",
                action="Once it is mended: `atlasctl canary ramp "
                f"{feature.feature} start`, or `atlasctl canary reset {feature.feature}`.",
            )
        for warning in feature.warnings:
            yield Suggestion(
                code="canary_not_trusted",
                message=f"{feature.feature}: {warning}.",
                action="docs/canary.md tells what is compared, and what spoils it.",
            )
    if view.dropped_events:
        yield Suggestion(
            code="canary_events_dropped",
            message=f"Worker processes had no room for {view.dropped_events} events of canary "
            "calls: they are missing from all numbers.",
            action="The daemon was away for long, or its disk takes no writes: see its log.",
        )
