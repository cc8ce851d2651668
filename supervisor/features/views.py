"""What a reader is shown of canaries, put together from what is known."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from supervisor.canary.judgement import Judgement
from supervisor.canary.ramp import Feature, Rules, Stage, waits_for
from supervisor.canary.report import canary_stats, feature_report, judgement_view, warnings_of
from supervisor.canary.spans import Both
from supervisor.features.evidence import Evidence
from supervisor.model.canary import CanaryReport, CanaryStats, EpochRow, FeatureView


def stats(evidence: Evidence, now: float) -> CanaryStats:
    """Return the last hour's numbers; `now` is Unix time."""
    return canary_stats(evidence.last_hour(now))


def feature_view(
    feature: Feature, share: float, rules: Rules, evidence: Evidence, now: float
) -> FeatureView:
    """Return one feature's canary as it is now."""
    judgement = evidence.judgement(feature.name)
    epoch = evidence.epoch(feature.epoch)
    mine = [row for row in evidence.epochs() if row.feature == feature.name]
    calls = evidence.step_calls(feature.epoch)
    ramps = feature.stage in (Stage.RAMPING, Stage.PAUSED)
    hour = evidence.spans.last_hour(now, {row.epoch for row in mine}.__contains__)
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
        warnings=warnings_of(mine, hour),
    )


def report(
    until: datetime,
    hours: int,
    epochs: list[EpochRow],
    tallies: Mapping[int, Both],
    judgements: Mapping[str, Judgement],
) -> CanaryReport:
    """Return every feature over the last hours."""
    return CanaryReport(
        hours=hours,
        since_ts=until - timedelta(hours=hours),
        until_ts=until,
        features=[
            feature_report(name, epochs, tallies, judgement)
            for name, judgement in judgements.items()
        ],
    )
