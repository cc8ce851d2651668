"""What the dashboard can do: each action is one request of the API and one `atlasctl` command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Action:
    """One action, as the API takes it and as `atlasctl` does it."""

    path: str
    command: str
    """Without `atlasctl`; `{name}` stands for a field; one in `[]` may be left out."""
    query: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the body that are always the same."""
    fields: tuple[str, ...] = ()
    """Fields of the body that its form has; an empty one is left out."""

    def command_line(self, given: Mapping[str, str]) -> str:
        """Return the command that does the same."""
        words = ["atlasctl"]
        for word in self.command.split():
            name = word.strip("[{}]")
            if word == name:
                words.append(word)
            elif given.get(name):
                words.append(shlex.quote(given[name]))
        return " ".join(words)


ACTIONS = {
    "deploy": Action("/deploy/bluegreen", "deploy [{release}]", "wait=false", fields=("release",)),
    "dry-run": Action(
        "/deploy/bluegreen",
        "deploy --dry-run [{release}]",
        "wait=false&dry_run=true",
        fields=("release",),
    ),
    "switch": Action("/deploy/switch", "switch"),
    "abort": Action("/deploy/abort", "abort"),
    "rollback": Action("/deploy/rollback", "rollback [{version}]", fields=("version",)),
    "hold": Action("/traffic/hold", "hold --max {max_seconds}", fields=("max_seconds",)),
    "release": Action("/traffic/release", "hold --release"),
    "ramp-pause": Action("/deploy/ramp", "ramp pause", body={"action": "pause"}),
    "ramp-resume": Action("/deploy/ramp", "ramp resume", body={"action": "resume"}),
    "ramp-advance": Action("/deploy/ramp", "ramp advance", body={"action": "advance"}),
    "reset": Action("/deploy/mode", "mode bluegreen", body={"mode": "bluegreen"}),
    "fleet-rollout": Action("/fleet/rollout", "fleet rollout [{release}]", fields=("release",)),
    "fleet-pause": Action("/fleet/rollout/pause", "fleet pause"),
    "fleet-resume": Action("/fleet/rollout/resume", "fleet resume"),
    "fleet-abort": Action("/fleet/rollout/abort", "fleet abort"),
    "fleet-rollback": Action("/fleet/rollout/rollback", "fleet rollback"),
    "fleet-break": Action(
        "/fleet/break",
        "fleet break {host} --generation {generation}",
        fields=("host", "generation"),
    ),
    "fleet-forget": Action("/fleet/forget", "fleet forget {host}", fields=("host",)),
    "fleet-kill": Action("/fleet/kill", "fleet kill {feature}", fields=("feature",)),
    "fleet-kill-all": Action("/fleet/kill", "fleet kill all", body={"feature": None}),
    "fleet-reset": Action("/fleet/reset", "fleet reset"),
    "reload": Action("/supervisor/reload", "reload"),
}
