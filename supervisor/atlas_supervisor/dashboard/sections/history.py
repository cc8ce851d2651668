"""The last deploys: how each ended, how long its steps took, who asked for it, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_supervisor.cli.hints import hint
from atlas_supervisor.cli.units import duration
from atlas_supervisor.cli.words import (
    AFTERWARDS,
    Record,
    brief,
    detail_of,
    failed_check,
    failed_checks,
    headline,
    objects,
    reason,
    succeeded,
    took,
)
from atlas_supervisor.dashboard.answers import Answers

HISTORY = "/deploy/history?limit=50"  # as `change` asks
NEEDS: Mapping[str, float] = {HISTORY: 3}

_MOST = 12

_MOST_LINES = 12
_LEAST_WIDTH = 1.5
"""Of a failed step in its bar, in percent."""


def view(answers: Answers) -> Mapping[str, Any]:
    """Return each deploy with its steps."""
    known = objects(answers[HISTORY].get("deploys"))
    deploys = known[:_MOST]
    longest = max((_milliseconds(record) for record in deploys), default=0.0)
    return {
        "error": answers.error(HISTORY),
        "deploys": [_deploy(record, longest) for record in deploys],
        "more": len(known) > _MOST,
    }


def _timed(record: Record) -> list[Record]:
    """Return the steps up to the deploy's result."""
    return [step for step in objects(record.get("steps")) if step["name"] not in AFTERWARDS]


def _milliseconds(record: Record) -> float:
    return float(sum(step["duration_ms"] for step in _timed(record)))


def _deploy(record: Record, longest: float) -> Record:
    result = record.get("result")
    steps = objects(record.get("steps"))
    return {
        "deploy_id": record["deploy_id"],
        "what": record.get("version") or record.get("release") or "not known yet",
        "release": record.get("release")
        if record.get("release") != record.get("version")
        else None,
        "dry_run": record["dry_run"],
        "result": str(result or record.get("phase")).replace("_", " "),
        "tone": _tone(record),
        "headline": headline(record) if result else "",  # `deploy` has what it does now
        "why": reason(record) if record.get("reason") else "",
        "requested": record.get("requested") or "",
        "started_ts": record["started_ts"],
        "took": took(record),
        "steps": [_step(step) for step in steps],
        "durations": ", ".join(
            f"{step['name']} {duration(step['duration_ms'])}" for step in _timed(record)
        ),
        "bar": _bar(record, longest),
    }


def _tone(record: Record) -> str:
    if record.get("result") is None:
        return "busy"
    if succeeded(record):
        return "good"
    return "muted" if record["result"] == "aborted" else "bad"


def _bar(record: Record, longest: float) -> list[tuple[str, float, float]]:
    """Return the steps as parts of a bar: style, place and width in percent of the longest one."""
    found, place = [], 0.0
    for number, step in enumerate(_timed(record)):
        width = 100 * step["duration_ms"] / longest if longest else 0.0
        style = ("even", "odd")[number % 2]
        if not step["ok"]:  # however short
            style, width = "failed", max(width, _LEAST_WIDTH)
        found.append((style, round(place, 2), round(width, 2)))
        place += width
    return found


def _step(step: Record) -> Record:
    """Return a step; of one that failed also what was expected, what came, and the last output."""
    ok, detail = bool(step["ok"]), detail_of(step)
    return {
        "name": step["name"],
        "ok": ok,
        "duration_ms": step["duration_ms"],
        "message": brief(step) or "",
        "hint": None if ok else hint(detail.get("message")),
        "checks": [
            {"name": check.get("name"), **failed_check(check)._asdict()}
            for check in failed_checks(step)
        ],
        "output": [] if ok else [str(line) for line in (detail.get("output") or [])][-_MOST_LINES:],
    }
