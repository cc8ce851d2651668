"""What changed last, when and by whom, and the way back: to what, how fast, how safe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from atlas_supervisor.cli import units
from atlas_supervisor.cli.words import Record, headline, mapping, objects
from atlas_supervisor.dashboard.answers import Answers

STATUS, EARLIER = "/deploy/status", "/deploy/rollback"
HISTORY, AUDIT = "/deploy/history?limit=50", "/deploy/audit?limit=50"
NEEDS: Mapping[str, float] = {STATUS: 1, EARLIER: 5, HISTORY: 2, AUDIT: 2}

_SWITCHES = {"switched", "rolled_back"}


def view(answers: Answers) -> Mapping[str, Any]:
    """Return the last change of what serves, and the version to go back to."""
    status = answers[STATUS]
    deploys = objects(answers[HISTORY].get("deploys"))
    changed = next((d for d in deploys if d.get("result") in _SWITCHES), None)
    entries = objects(answers[AUDIT].get("entries"))
    return {
        "changed": changed and _change(changed, entries),
        "back": _back(status, answers, deploys),
        "active_version": status.get("version"),
        "mode": status.get("mode"),
    }


def _change(record: Record, entries: Iterable[Record]) -> Record:
    """Return a deploy as the last change."""
    id_, reverted = record.get("deploy_id"), record.get("result") == "rolled_back"
    wanted = {"rollback"} if reverted else {"deploy", "rollback"}
    own = [e for e in entries if e.get("subject") == id_ and e.get("action") in wanted]
    people = (each for each in own if each.get("actor") != "supervisor")
    by = next(people, own[0] if own else None)
    steps = objects(record.get("steps"))
    return {
        "id": id_,
        "text": f"{record.get('version')} was reverted" if reverted else headline(record),
        "reason": record.get("reason") if reverted else None,
        "ts": (record.get("ended_ts") if reverted else None) or record.get("started_ts"),
        "by": by and {"actor": by.get("actor"), "origin": by.get("origin")},
        "requested": None if reverted else record.get("requested"),
        "irreversible": any(mapping(s.get("detail")).get("irreversible") for s in steps),
    }


def _back(status: Record, answers: Answers, deploys: list[Record]) -> Record:
    """Return where one can go back to; without a `version` why one can't."""
    if error := answers.error(EARLIER):
        return {"why_not": error.get("message")}
    versions = objects(answers[EARLIER].get("versions"))
    # None is next if the version before is the active one, deployed once more.
    there = [each for each in versions if not each.get("gone")] or versions
    target = next((each for each in versions if each.get("next")), there[0] if there else None)
    if target is None:
        return {"why_not": "No earlier version has served yet."}
    if target.get("gone"):
        return {"why_not": f"{target.get('version')} can't be launched again: {target['gone']}"}
    if status.get("deploy_in_progress"):
        return {"why_not": "A deploy is in progress: abort it first."}
    version = str(target.get("version"))
    return {
        "version": version,
        "warm": bool(target.get("warm")),
        "boots_ms": None if target.get("warm") else _boot_time(version, deploys),
        "past_irreversible": list(target.get("past_irreversible") or []),
        "others": [each.get("version") for each in versions if each is not target],
    }


def _boot_time(version: str, deploys: Iterable[Record]) -> float | None:
    """Return how long its gates took the last time, in ms; of another version if it has none."""
    found = {
        record.get("version"): sum(step.get("duration_ms", 0) for step in _gates(record))
        for record in reversed(list(deploys))
        if record.get("result") in _SWITCHES and _gates(record)
    }
    return found.get(version, max(found.values(), default=None))


def _gates(record: Record) -> list[Record]:
    gates = {"preflight", "launch", "smoke", "health"}
    return [step for step in objects(record.get("steps")) if step.get("name") in gates]


def boots_in(milliseconds: float | None) -> str:
    """Return how long a launch takes, in words."""
    if milliseconds is None:
        return "has to be launched first"
    return f"boots in about {units.duration(max(round(milliseconds / 1000), 1) * units.SECOND)}"
