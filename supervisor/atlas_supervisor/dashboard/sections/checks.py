"""Health: the score, and each check with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_supervisor.cli.answer_words import applicable, value_in_words
from atlas_supervisor.cli.words import mapping
from atlas_supervisor.dashboard.answers import Answers

HEALTH = "/health"
NEEDS: Mapping[str, float] = {HEALTH: 2}

_WORST_FIRST = ("fail", "warn", "pass", "skipped")


def view(answers: Answers) -> Mapping[str, Any]:
    """Return the score, and the checks that apply, the worst first."""
    health = answers[HEALTH]
    checks = [
        {
            "name": name.replace("_", " "),
            "status": str(check.get("status")),
            "value": value_in_words(check),
            "message": check.get("message") or "",
        }
        for name, check in applicable(mapping(health.get("checks"))).items()
    ]
    return {
        "error": answers.error(HEALTH),
        "score": health.get("score"),
        "status": health.get("status"),
        "about": health.get("slot"),
        "version": health.get("version"),
        "checks": sorted(checks, key=lambda each: _WORST_FIRST.index(each["status"])),
    }
