"""What a reader is shown of canaries, put together from what is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from supervisor.canary.judgement import Judgement
from supervisor.canary.ramp import Feature, Rules, Stage, waits_for
from supervisor.canary.ratio import Ratios
from supervisor.canary.report import canary_stats, feature_report, judgement_view, warnings_of
from supervisor.canary.spans import by_epoch
from supervisor.features.evidence import Evidence
from supervisor.model.canary import CanaryReport, CanaryStats, CountsRow, EpochRow, FeatureView


class Glance(NamedTuple):
    """The last hour's numbers, and why those of a feature are not to be trusted."""

    minute: int
    """When it was put together, in minutes of Unix time."""
    stats: CanaryStats
    warnings: Mapping[str, list[str]]


def glance(evidence: Evidence, minute: int) -> Glance:
    """Return the last hour's numbers."""
    tallies = evidence.last_hour(minute * 60)
    warnings = {name: warnings_of(both, evidence.ratios(name)) for name, both in tallies.items()}
    return Glance(minute, canary_stats(tallies), warnings)


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
    judged: Mapping[str, tuple[Judgement, Ratios]],
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
