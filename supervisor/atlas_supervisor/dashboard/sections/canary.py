"""Feature canaries: both arms, the evidence with its bounds over time, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from atlas_supervisor.cli.canary_words import (
    ARMS,
    NO_FEATURES,
    OFF,
    ON_A_STEP,
    VERDICTS,
    WAY_OUT,
    difference_in_words,
    own_words,
    share_in_words,
    stage_in_words,
    steps_in_words,
    unreported,
    waits,
)
from atlas_supervisor.cli.units import amount, latency, moment, percent
from atlas_supervisor.cli.words import Record, mapping, objects
from atlas_supervisor.dashboard.answers import Answers
from atlas_supervisor.dashboard.chart import (
    ABOVE_MOMENTS,
    Cell,
    Chart,
    Moment,
    Scale,
    Series,
    Tick,
    Window,
    polyline,
    steps,
)

CANARY = "/deploy/canary"
REPORT = "/deploy/canary/report?hours=24"
NEEDS: Mapping[str, float] = {CANARY: 5, REPORT: 15}

_MOST = 30
"""Features that are shown; of more, those that changed last."""
_QUANTILES = ("p50", "p95", "p99")
_TONES = {"green": "good", "red": "bad", "yellow": "muted"}
_ENDS = ("low", "estimate", "high")
_LEAST_SPAN = 0.3
"""Of the highest value: a picture of intervals spans so much, so small differences look small."""
_BY_ITSELF = {
    "steady": "it stays at this share until an operator changes it, or the evidence rolls it back",
    "promoted": "all calls stay with the canary",
    "rolled_back": "no calls, until an operator starts a ramp or resets it",
}
"""What the daemon does with a feature that waits for nothing, by stage."""
_LEAST_ODDS = 0.1
_EDGE = 3.0
"""The share that evidence began with needs no line, in percent of the width."""


def view(answers: Answers) -> Mapping[str, Any]:
    """Return each feature with its arms, its evidence and what it waits for."""
    now, report = answers[CANARY], answers[REPORT]
    reports = {each["feature"]: each for each in objects(report.get("features"))}
    fallback = mapping(now.get("fallback"))
    off = None if now.get("enabled") or fallback else OFF
    listed = features = objects(now.get("features"))
    if off:  # nothing is to be expected of those that have no calls
        features = [each for each in listed if _has_calls(reports.get(each["feature"], {}))]
    if len(features) > _MOST:
        features = sorted(features, key=lambda each: str(each["since_ts"]), reverse=True)
    return {
        "error": answers.error(CANARY) or answers.error(REPORT),
        "off": off,
        "fallback": fallback,
        "way_out": WAY_OUT,
        "none": "" if listed else NO_FEATURES,
        "features": [
            _feature(each, reports.get(each["feature"], {}), report) for each in features[:_MOST]
        ],
        "more": max(len(features) - _MOST, 0),
    }


def _feature(feature: Record, report: Record, whole: Record) -> Record:
    name, judgement = feature["feature"], mapping(feature.get("judgement"))
    reason = judgement.get("reason")
    has_calls = _has_calls(report)
    why = feature.get("reason")
    verdict, colour = VERDICTS.get(str(judgement.get("verdict")), ("", ""))
    return {
        "name": name,
        "share": share_in_words(feature),
        "stage": stage_in_words(feature),
        "since_ts": feature["since_ts"],
        "why": own_words(name, why) if why and why != reason else "",
        "ramp": steps_in_words(feature) if feature.get("stage") in ON_A_STEP else "",
        "verdict": verdict,
        "tone": _TONES.get(colour, ""),
        "evidence": own_words(name, reason or ""),
        "next": waits(feature, judgement) or _BY_ITSELF.get(str(feature.get("stage")), ""),
        "pending": feature.get("pending_calls"),
        "warnings": [each for each in feature.get("warnings", []) if each not in str(reason)],
        "unreported": ", ".join(unreported(report)),
        "difference": difference_in_words(mapping(report.get("difference"))) if has_calls else "",
        "calls": [mapping(report.get(arm)).get("calls") for arm in ARMS],
        "rows": _rows({arm: mapping(report.get(arm)) for arm in ARMS}) if has_calls else [],
        "chart": _chart(name, report, whole) if has_calls else None,
    }


def _has_calls(report: Record) -> bool:
    return any(mapping(report.get(arm)).get("calls") for arm in ARMS)


def _rows(arms: Mapping[str, Record]) -> list[Record]:
    """Return errors and quantiles of both arms, in words and on a scale that both share."""
    rates = {name: mapping(arm.get("error_rate_interval")) for name, arm in arms.items()}
    rows = [_row("errors", rates, percent)]
    for quantile in _QUANTILES:
        found = {name: _quantile(arm, quantile) for name, arm in arms.items()}
        rows.append(_row(quantile, found, latency))
    return rows


def _row(name: str, intervals: Mapping[str, Record], text: Any) -> Record:
    values = [value for each in intervals.values() for value in each.values()]
    high = max(values, default=0.0)
    low = min([*values, high * (1 - _LEAST_SPAN)])
    return {
        "name": name,
        "cells": [
            {
                "text": text(each.get("estimate")),
                "span": f"{text(each['low'])} to {text(each['high'])}" if "low" in each else "",
            }
            for each in intervals.values()
        ],
        "whiskers": [
            {
                "arm": arm,
                **{
                    end: round(2 + 96 * (each[end] - low) / (high - low), 1)
                    for end in _ENDS
                    if end in each
                },
            }
            for arm, each in intervals.items()
            if high
        ],
    }


def _quantile(arm: Record, quantile: str) -> Record:
    """Return a quantile with its interval; without one if there are too few calls."""
    found = mapping(mapping(arm.get("latency_intervals")).get(quantile))
    estimate = mapping(arm.get("latency_ms")).get(quantile)
    return found or ({"estimate": estimate} if estimate is not None else {})


def _chart(name: str, report: Record, whole: Record) -> Chart | None:
    """Return the evidence over time; None as long as there is none."""
    until, since = moment(whole.get("until_ts")), moment(whole.get("since_ts"))
    points = [(moment(each["ts"]), each) for each in objects(report.get("evidence"))]
    known = [(at, each) for at, each in points if at is not None and since and at >= since]
    if until is None or not known:
        return None
    window = Window(min(known[0][0], until - timedelta(minutes=1)), until)
    numbers = mapping(mapping(mapping(report.get("judgement")).get("numbers")).get("evidence"))
    needed = {each: mapping(numbers.get(each)).get("needed") for each in ("rollback", "promotion")}
    before = [each["rollback_needed"] for _, each in known]
    most = max([10.0, *(each for each in needed.values() if each), *before])
    high = 10.0 ** math.ceil(math.log10(most * 1.5))
    scale = Scale(high, _LEAST_ODDS, height=110, above=ABOVE_MOMENTS, text=_odds)
    ends = [at for at, _ in known[1:]] + [until]
    paths = []
    for values in (before, [needed["promotion"]] * len(known)):
        cells = [Cell(*each) for each in zip((at for at, _ in known), ends, values, strict=True)]
        paths.append(steps(Series("bound", "bound", cells), window, scale))
    for kind, style in (("promotion", "promotion"), ("rollback", "rollback")):
        cells = [Cell(at, end, each[kind]) for (at, each), end in zip(known, ends, strict=True)]
        cells.append(Cell(until, until, cells[-1].value))
        paths.append(polyline(Series(kind, style, cells), window, scale))
    words = {"rollback": "roll back", "promotion": "promote"}
    levels = [
        Tick(scale.place(value), f"{words[kind]} at {_odds(value)}")
        for kind, value in needed.items()
        if value
    ]
    last = known[-1][1]
    return Chart(
        name=f"evidence-{name}",
        title=f"Evidence about {name}",
        description=f"Odds for a rollback {_odds(last['rollback'])}, for a promotion "
        f"{_odds(last['promotion'])}; " + ", ".join(each.label for each in levels) + ".",
        scale=scale,
        times=window.ticks(),
        paths=paths,
        lines=window.lines(each for each in _shares(report) if window.place(each.at) > _EDGE),
        levels=levels,
    )


def _shares(report: Record) -> list[Moment]:
    """Return when the share changed."""
    strata = [(moment(each.get("since_ts")), each) for each in objects(report.get("strata"))]
    return [Moment(at, percent(each.get("share"))) for at, each in strata if at is not None]


def _odds(value: float) -> str:
    return f"{amount(value)} to 1" if value >= 1 else f"1 to {amount(1 / max(value, 1e-9))}"
