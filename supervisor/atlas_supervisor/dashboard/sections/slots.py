"""One line for each slot, and for each worker that drains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_supervisor.cli.words import Record, mapping, objects
from atlas_supervisor.dashboard.answers import Answers

STATUS = "/deploy/status"
NEEDS: Mapping[str, float] = {STATUS: 1}


def view(answers: Answers) -> Mapping[str, Any]:
    """Return the rows of the table."""
    status = answers[STATUS]
    weights = mapping(mapping(status.get("traffic")).get("weights"))
    rows = [_row(slot, weights) for slot in objects(status.get("slots"))]
    draining = [_draining(each) for each in objects(status.get("draining"))]
    return {"rows": rows + draining, "settings_pending": _pending(status)}


def _pending(status: Record) -> bool:
    return bool(mapping(status.get("daemon")).get("settings_pending"))


def _row(slot: Record, weights: Mapping[str, Any]) -> Record:
    requests = mapping(slot.get("requests"))
    return {
        "name": slot.get("slot"),
        "role": slot.get("role"),
        "share": weights.get(str(slot.get("slot"))),
        "state": slot.get("state"),
        "version": slot.get("version"),
        "port": slot.get("port"),
        "pid": slot.get("pid"),
        "started_ts": slot.get("started_ts"),
        "restarts": slot.get("restarts") or 0,
        "last_exit": slot.get("last_exit"),
        "memory_mb": slot.get("memory_mb"),
        "cpu_percent": _rounded(slot.get("cpu_percent")),
        "per_second": requests.get("per_second"),
        "error_share": requests.get("error_share"),
        "p95_ms": requests.get("p95_ms"),
    }


def _draining(drain: Record) -> Record:
    left = mapping(drain.get("left")) or {"connections": drain.get("connections")}
    words = [f"{count} {kind.replace('_', ' ')}" for kind, count in left.items() if count]
    return {
        **_row({**drain, "started_ts": drain.get("since_ts"), "state": "draining"}, {}),
        "role": "leaving",
        "last_exit": ", ".join(words) or None,
    }


def _rounded(value: object) -> int | None:
    return round(value) if isinstance(value, int | float) else None
