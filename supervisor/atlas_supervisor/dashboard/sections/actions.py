"""What can be done now, besides the way back and what a deploy in progress offers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from atlas_supervisor.cli.words import Record, mapping, objects
from atlas_supervisor.dashboard.answers import Answers

STATUS, RELEASES = "/deploy/status", "/deploy/releases"
NEEDS: Mapping[str, float] = {STATUS: 1, RELEASES: 10}


def view(answers: Answers) -> Mapping[str, Any]:
    """Return the names of the actions, and what their forms offer."""
    status = answers[STATUS]
    releases = objects(answers[RELEASES].get("releases"))
    held = mapping(mapping(status.get("traffic")).get("held"))
    return {
        "names": list(_names(status, held=bool(held))) if answers.audience.may_change else [],
        "releases": [each.get("name") for each in releases],
        "held": held or None,
        "settings_pending": bool(mapping(status.get("daemon")).get("settings_pending")),
        "mode": status.get("mode"),
    }


def _names(status: Record, *, held: bool) -> Iterator[str]:
    if status.get("mode") == "single":
        yield "reset"
    elif not status.get("deploy_in_progress"):
        yield "deploy"
        yield "dry-run"
    if held:
        yield "release"
    elif status.get("public_port"):
        yield "hold"
    yield "reload"
