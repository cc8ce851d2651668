"""The deploy in progress, step by step, with what it waits for; of one that failed, why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from atlas_supervisor.cli.hints import hint
from atlas_supervisor.cli.words import (
    Record,
    advice_of,
    awaits_switch,
    brief,
    detail_of,
    doing,
    failed_check,
    failed_checks,
    headline,
    is_recycle,
    mapping,
    objects,
    reason,
)
from atlas_supervisor.dashboard.answers import Answers

STATUS = "/deploy/status"
NEEDS: Mapping[str, float] = {STATUS: 1}

_STEPS = ("preflight", "launch", "smoke", "health", "ramp", "switch", "guard", "warm", "drain")
_SHOWN = {
    "preflight": "the release can be launched",
    "launch": "the new version starts beside the old one",
    "smoke": "smoke tests",
    "health": "health probes",
    "ramp": "growing shares of the traffic",
    "switch": "all new connections go to it",
    "guard": "watched, and reverted if it harms users",
    "warm": "the old version stays for an instant rollback",
    "drain": "the old version ends its connections",
}
_PHASE_OF = {"awaiting_switch": "switch", "drain_reverted": "drain"}
_BAD = {"failed", "rolled_back"}
_OUTPUT_LINES = 40


def view(answers: Answers) -> Mapping[str, Any]:
    """Return the latest deploy, if it is under way or has something to say."""
    status = answers[STATUS]
    record = mapping(status.get("last_deploy"))
    if not record:
        return {"deploy": None}
    phase = str(record.get("phase"))
    live = phase != "ended"
    failed = record.get("result") in _BAD
    return {
        "deploy": {
            "id": record.get("deploy_id"),
            "title": record.get("release") or record.get("version") or "worker directory",
            "version": record.get("version"),
            "live": live,
            "in_progress": bool(status.get("deploy_in_progress")),
            "dry_run": bool(record.get("dry_run")),
            "recycle": is_recycle(record),
            "result": record.get("result"),
            "headline": headline(record) if record.get("result") else None,
            "advice": advice_of(record),
            "awaits_switch": awaits_switch(record),
            "started_ts": record.get("started_ts"),
            "ended_ts": record.get("ended_ts"),
            "until_ts": record.get("until_ts"),
            "steps": list(_steps(record, phase)),
            "ramp": _ramp(record, phase),
            "guard": _guard(record, phase),
            "actions": list(_actions(status, record, phase)),
        },
        "stopped": _stopped(record) if failed or _refused(record) else None,
    }


def _steps(record: Record, phase: str) -> Iterator[Record]:
    """Yield every step that has ended, the one that runs, and those that are to come."""
    ended = {str(step.get("name")): step for step in objects(record.get("steps"))}
    current = _PHASE_OF.get(phase, phase)
    over = phase == "ended" or record.get("result") in _BAD or phase in {"revert", "unstage"}
    for name in _STEPS:
        step = ended.get(name)
        if step is not None and not (name == current and phase == "awaiting_switch"):
            yield {
                "name": name,
                "state": "ok" if step.get("ok") else "failed",
                "took_ms": step.get("duration_ms"),
                "text": brief(step) or "",
            }
        elif name == current:
            yield {"name": name, "state": "now", "took_ms": None, "text": _now(record, phase)}
        elif not over and _comes(name, record, current):
            yield {"name": name, "state": "next", "took_ms": None, "text": _SHOWN[name]}


def _comes(name: str, record: Record, current: str) -> bool:
    """Return whether a step without a record is still to come."""
    if record.get("dry_run") and _STEPS.index(name) > _STEPS.index("health"):
        return False
    if name == "ramp" and not mapping(record.get("ramp")):
        return False
    return current not in _STEPS or _STEPS.index(name) > _STEPS.index(current)


def _now(record: Record, phase: str) -> str:
    if phase == "awaiting_switch":
        return "passed its gates, and waits for you"
    if phase == "ramp" and (ramp := mapping(record.get("ramp"))):
        return f"step {ramp.get('step')} of {ramp.get('of')}"
    if phase == "guard" and (message := mapping(record.get("guard")).get("message")):
        return str(message)
    return _SHOWN.get(_PHASE_OF.get(phase, phase), doing(record))


def _ramp(record: Record, phase: str) -> Record | None:
    """Return the ramp of a deploy that ramps: its shares, and what the next step needs."""
    ramp = mapping(record.get("ramp"))
    if not ramp or phase != "ramp":
        return None
    steps = objects(ramp.get("steps"))
    new, old = (mapping(steps[-1].get(arm)) if steps else {} for arm in ("new", "old"))
    judgement = mapping(ramp.get("judgement"))
    return {
        "share": ramp.get("share"),
        "shares": list(ramp.get("shares") or []),
        "step": ramp.get("step"),
        "of": ramp.get("of"),
        "paused": bool(ramp.get("paused")),
        "next_share": ramp.get("next_share"),
        "next_ts": ramp.get("next_ts"),
        "since_ts": ramp.get("since_ts"),
        "needed": ramp.get("requests_needed"),
        "new": new,
        "old": old,
        "verdict": judgement.get("verdict"),
        "why": judgement.get("why"),
    }


def _guard(record: Record, phase: str) -> Record | None:
    guard = mapping(record.get("guard"))
    if phase != "guard" or not guard:
        return None
    names = ("requests", "failed", "error_rate", "allowed_error_rate", "odds", "odds_needed")
    return {name: guard.get(name) for name in names}


def _actions(status: Record, record: Record, phase: str) -> Iterator[str]:
    """Yield what can be done to it now."""
    if not status.get("deploy_in_progress"):
        return
    ramping = phase == "ramp"
    if ramping:
        yield "ramp-resume" if mapping(record.get("ramp")).get("paused") else "ramp-pause"
        yield "ramp-advance"
    if ramping or awaits_switch(record):
        yield "switch"
    if phase not in {"switch", "revert", "unstage"}:
        yield "abort"


def _refused(record: Record) -> bool:
    """Return whether a step failed without an outcome of its own: a switch, a preflight."""
    return any(not step.get("ok") for step in objects(record.get("steps")))


def _stopped(record: Record) -> Record:
    """Return why it stopped: what was expected, what came, and the last output."""
    step: Record = next((s for s in objects(record.get("steps")) if not s.get("ok")), {})
    detail = detail_of(step)
    checks = [
        {"name": check.get("name"), **failed_check(check)._asdict()}
        for check in failed_checks(step)
    ]
    probes = [*objects(detail.get("probes")), *objects([detail.get("failed_probe")])]
    bad = [probe for probe in probes if probe.get("verdict") != "pass"]
    output = detail.get("output")
    cause = str(reason(record)) if record.get("reason") else brief(step)
    return {
        "id": record.get("deploy_id"),
        "version": record.get("version"),
        "step": step.get("name"),
        "reason": cause,
        "hint": hint(cause),
        "checks": checks,
        "probes": [{k: p.get(k) for k in ("message", "excerpt")} for p in bad],
        "output": output[-_OUTPUT_LINES:] if isinstance(output, list) else None,
        "withheld": "[withheld]" in str(record.get("reason")),
    }
