"""The last lines of the daemon's log and of both slots' workers; the script can follow them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from atlas_supervisor.cli.units import moment
from atlas_supervisor.cli.words import Record
from atlas_supervisor.dashboard.answers import Answers
from atlas_supervisor.system.text import escaped

SOURCES = ("supervisor", "blue", "green")
_LINES = 12
NEEDS: Mapping[str, float] = {f"/deploy/logs/{each}?lines={_LINES}": 3 for each in SOURCES}

_FIRST = ("ts", "level", "event")


def view(answers: Answers) -> Mapping[str, Any]:
    """Return the last lines of each log."""
    requests = dict(zip(SOURCES, NEEDS, strict=True))
    return {
        "error": answers.error(requests["supervisor"]),
        "logs": [
            {"source": source, "lines": [_line(text) for text in answers[request].get("lines", ())]}
            for source, request in requests.items()
        ],
    }


def _line(text: str) -> Record:
    """Return a line: one of the daemon's own in parts, one of a worker as it is."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or "event" not in fields:
        return {"at": None, "level": "", "text": escaped(text, keep="\t")}
    rest = " ".join(f"{name}={value}" for name, value in fields.items() if name not in _FIRST)
    at = fields.get("ts")
    return {
        "at": at if moment(at) else None,
        "level": escaped(str(fields.get("level") or "")),
        # JSON has halves of characters, too, which no page can be encoded with.
        "text": escaped(f"{fields['event']} {rest}".rstrip(), keep="\t"),
    }
