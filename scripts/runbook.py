"""`docs/runbook.md`: what to do about each alert and each error of the API.

The steps are `scripts/templates/runbook.md`; when an alert fires is read from the rules, and an
error's message and remedy from the catalogue.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # its types are a package of their own

from atlas_supervisor.errors import CATALOGUE, ErrorSpec
from scripts.markdown import wrapped

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = Path(__file__).parent / "templates/runbook.md"
ALERTS = ROOT / "docs/monitoring/alerts.yml"

STATUSES = {
    0: "Other statuses",
    400: "The request can't be read (400)",
    401: "Without permission (401)",
    403: "Not allowed (403)",
    404: "There is no such thing (404)",
    405: "Wrong method (405)",
    408: "Too slow (408)",
    409: "Not now (409)",
    413: "Too large (413)",
    415: "Wrong content (415)",
    417: "Unknown expectation (417)",
    421: "Wrong host (421)",
    422: "Refused or failed (422)",
    500: "A bug (500)",
    503: "Not possible at the moment (503)",
}


def runbook() -> str:
    """Return the text of `docs/runbook.md`. Raises KeyError for a placeholder of no alert."""
    rules = {rule["alert"]: rule for rule in alert_rules()}
    text = TEMPLATE.read_text(encoding="utf-8")
    text = re.sub(
        r"^\{(Atlas\w+)\}$", lambda found: _alert(rules[found[1]]), text, flags=re.MULTILINE
    )
    return text.replace("{errors}", "\n\n".join(_errors()))


def alert_rules() -> Iterator[dict[str, Any]]:
    """Yield each rule of the alerts, in their order."""
    for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]:
        yield from group["rules"]


def _alert(rule: dict[str, Any]) -> str:
    """Return when an alert fires, and what it says."""
    lasts = f" for {rule['for']}" if "for" in rule else ""
    summary = re.sub(r"\{\{ \$(?:labels\.)?(\w+) \}\}", r"*\1*", rule["annotations"]["summary"])
    return (
        f"*{rule['labels']['severity'].capitalize()}: {summary}* It fires{lasts} on\n\n"
        f"```promql\n{rule['expr'].strip()}\n```"
    )


def _errors() -> Iterator[str]:
    ordered = sorted(CATALOGUE, key=lambda spec: (spec.status or 999, spec.code))
    for status, found in groupby(ordered, key=lambda spec: spec.status):
        yield f"### {STATUSES[status]}"
        for code, specs in groupby(found, key=lambda spec: spec.code):
            yield "\n".join([f"#### `{code}`", *map(_case, specs)])


def _case(spec: ErrorSpec) -> str:
    error = spec.documented()
    return f"\n{wrapped(f'“{error.message}”')}\n\n→ {wrapped(error.hint)}"
