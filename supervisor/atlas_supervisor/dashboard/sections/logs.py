"""The last lines of the daemon's log and of both slots' workers; the script can follow them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from atlas_supervisor.cli.units import moment
from atlas_supervisor.cli.words import Record
from atlas_supervisor.dashboard.answers import Answers

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
        return {"at": None, "level": "", "text": _printable(text)}
    rest = " ".join(f"{name}={value}" for name, value in fields.items() if name not in _FIRST)
    at = fields.get("ts")
    return {
        "at": at if moment(at) else None,
        "level": _printable(str(fields.get("level") or "")),
        "text": _printable(f"{fields['event']} {rest}".rstrip()),
    }


def _printable(text: str) -> str:
    """Return a line without control characters, and halves of characters, which JSON may have."""
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)
