"""Users' requests by version over the last hour: how many, how many failed, and how slow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from atlas_supervisor.cli.units import amount, latency, moment, percent
from atlas_supervisor.dashboard.answers import Answers, Record
from atlas_supervisor.dashboard.chart import (
    ABOVE_MOMENTS,
    Cell,
    Chart,
    Moment,
    Scale,
    Series,
    Window,
    highest,
    nice,
    stacked,
    steps,
)

REQUESTS = "/deploy/requests"
NEEDS: Mapping[str, float] = {REQUESTS: 5}

_STYLES = 6
"""Colours of versions in the style sheet: `v0` to `v5`."""
_GLARING = 0.1
"""From this share of failures on a mark is as high as it gets."""
_BAD = 0.01
"""From this share of failures on a number is red."""
_EVERY = timedelta(minutes=10)
"""What a row of the table sums up."""


def view(answers: Answers) -> Mapping[str, Any]:
    """Return the charts and the numbers that they are drawn from."""
    hour = answers[REQUESTS]
    until = moment(hour.get("until_ts"))
    if until is None:
        return {"error": answers.error(REQUESTS), "charts": [], "versions": [], "rows": []}
    window = Window.hour(until)
    minutes = [each for each in hour["minutes"] if _time(each) >= window.since]
    numbers = hour["versions"]
    styles = {each["version"]: f"v{numbers[each['version']] % _STYLES}" for each in minutes}
    moments = [_switch(each) for each in hour["switches"]]
    return {
        "error": None,
        "charts": _charts(minutes, styles, window, moments) if minutes else [],
        "versions": [_of_version(name, style, minutes) for name, style in styles.items()],
        "rows": _rows(minutes, window),
        "switches": [_in_words(each) for each in hour["switches"]],
        "uncounted": [each for each in hour["uncounted"] if each not in styles],
    }


def _switch(switch: Record) -> Moment:
    version = switch.get("version") or "?"
    at = _time(switch)
    if switch["recycled"]:
        return Moment(at, "new worker", "recycle")
    if switch["taken_back"]:
        return Moment(at, f"↩ {version}", "switch back")
    return Moment(at, version)


def _in_words(switch: Record) -> Record:
    """Return a switch for the table."""
    version = switch.get("version") or "?"
    kind = (
        "a new worker of" if switch["recycled"] else "back from" if switch["taken_back"] else "to"
    )
    return {"text": f"{kind} {version}", "ts": switch["ts"]}


def _charts(
    minutes: Sequence[Record], styles: Mapping[str, str], window: Window, moments: list[Moment]
) -> list[Chart]:
    rates = _series(minutes, styles, lambda each: each["requests"] / each["seconds"])
    errors = _series(minutes, styles, lambda each: each["error_share"])
    slow = _series(minutes, styles, lambda each: each["p95_ms"])
    per_second = Scale(
        nice(highest(rates), 1), height=110, above=ABOVE_MOMENTS, text=lambda rate: f"{rate:,g}/s"
    )
    shares = Scale(min(nice(_peak(errors), 0.01), 1), height=60, text=percent)
    times = Scale(nice(_peak(slow), 1), height=60, text=latency)
    alike: dict[str, Any] = {"times": window.ticks(), "lines": window.lines(moments)}
    return [
        Chart(
            name="chart-requests",
            title="Requests per second",
            description=_description(minutes, styles),
            scale=per_second,
            paths=stacked(rates, window, per_second),
            marks=_marks(minutes, window),
            **alike,
        ),
        Chart(
            name="chart-errors",
            title="Failed requests",
            description=f"The share by version and minute, at most {percent(_peak(errors))}.",
            scale=shares,
            paths=[steps(each, window, shares) for each in errors],
            **alike,
        ),
        Chart(
            name="chart-p95",
            title="p95 latency",
            description=f"By version and minute, at most {latency(_peak(slow))}.",
            scale=times,
            paths=[steps(each, window, times) for each in slow],
            **alike,
        ),
    ]


def _marks(minutes: Sequence[Record], window: Window) -> list[tuple[float, float, float]]:
    """Return a mark for each minute with failures: the higher, the larger their share."""
    worst: dict[datetime, float] = {}
    for each in minutes:
        if each["failed"]:
            share = each["error_share"] or 0.0
            worst[_time(each)] = max(worst.get(_time(each), 0.0), share)
    width = window.place(window.since + timedelta(minutes=1))
    return [
        (window.place(at), width, round(1 + 5 * min(math.sqrt(share / _GLARING), 1), 1))
        for at, share in worst.items()
    ]


def _series(minutes: Sequence[Record], styles: Mapping[str, str], value: Any) -> list[Series]:
    """Return a number of each version in each minute; minutes without requests are gaps."""
    return [
        Series(
            version,
            style,
            [
                Cell(_time(each), _time(each) + timedelta(seconds=each["seconds"]), value(each))
                for each in minutes
                if each["version"] == version
            ],
        )
        for version, style in styles.items()
    ]


def _peak(series: Iterable[Series]) -> float:
    return max((cell.value or 0.0 for each in series for cell in each.cells), default=0.0)


def _description(minutes: Sequence[Record], styles: Mapping[str, str]) -> str:
    return " ".join(
        f"{version}: {amount(found['requests'])} requests, {amount(found['failed'])} failed."
        for version in styles
        for found in [_of_version(version, "", minutes)]
    )


def _of_version(version: str, style: str, minutes: Sequence[Record]) -> Record:
    """Return the numbers of one version over all minutes."""
    mine = [each for each in minutes if each["version"] == version]
    slow = [each["p95_ms"] for each in mine if each["p95_ms"] is not None]
    requests, failed = (sum(each[name] for each in mine) for name in ("requests", "failed"))
    return {
        "version": version,
        "style": style,
        "requests": requests,
        "failed": failed,
        "error_share": failed / requests if requests else None,
        "is_bad": failed >= _BAD * requests > 0,
        "p95": _range(slow),
        "slowest_p95_ms": max(slow, default=None),
        "since": mine[0]["ts"],
        "until": mine[-1]["ts"],
    }


def _range(latencies: Sequence[float]) -> str:
    """Return the lowest and the highest of the minutes' latencies in words."""
    if not latencies:
        return "none ended"
    low, high = latency(min(latencies)), latency(max(latencies))
    if low.split()[-1] == high.split()[-1]:
        low = low.split()[0]
    return high if min(latencies) == max(latencies) else f"{low} to {high}"


def _rows(minutes: Sequence[Record], window: Window) -> list[Record]:
    """Return the same numbers as a table: each version in each ten minutes, the newest first."""
    parts: dict[tuple[datetime, str], list[Record]] = {}
    for each in minutes:
        at = window.until - _EVERY * (-(-(window.until - _time(each)) // _EVERY))
        parts.setdefault((at, each["version"]), []).append(each)
    newest_first = sorted(parts.items(), key=lambda part: part[0][0], reverse=True)
    return [
        {"ts": at.isoformat(), **_of_version(version, "", found)}
        for (at, version), found in newest_first
    ]


def _time(each: Record) -> datetime:
    at = moment(each["ts"])
    if at is None:
        raise ValueError(f"{each['ts']!r} is no time")
    return at
