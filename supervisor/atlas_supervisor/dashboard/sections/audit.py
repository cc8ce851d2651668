"""The audit trail: who did what, when, with which outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_supervisor.cli.answer_words import BAD_OUTCOMES, detail_in_words
from atlas_supervisor.cli.words import objects
from atlas_supervisor.dashboard.answers import Answers

AUDIT = "/deploy/audit?limit=50"  # as `change` asks
NEEDS: Mapping[str, float] = {AUDIT: 3}

_MOST = 15


def view(answers: Answers) -> Mapping[str, Any]:
    """Return the newest entries."""
    entries = objects(answers[AUDIT].get("entries"))[:_MOST]
    return {
        "error": answers.error(AUDIT),
        "entries": [
            {
                **{name: each[name] for name in ("id", "ts", "actor", "origin", "action")},
                "outcome": each["outcome"],
                "is_bad": each["outcome"] in BAD_OUTCOMES,
                "subject": each["subject"] or "",
                "detail": detail_in_words(each["detail"]),
            }
            for each in entries
        ],
    }
