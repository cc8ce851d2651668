"""The sentence on top: whether users are served, by which version, and with how many errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_supervisor.dashboard.answers import Answers

STATUS = "/deploy/status"
NEEDS: Mapping[str, float] = {STATUS: 1}


def view(answers: Answers) -> Mapping[str, Any]:
    """Return the sentence and how serious it is."""
    status = answers[STATUS]
    return {"sentence": f"{status.get('version')} serves all traffic", "tone": "good"}
