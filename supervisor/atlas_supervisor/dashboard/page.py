"""The page: its sections in order, and how they are rendered."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from atlas_supervisor.cli import units
from atlas_supervisor.dashboard.actions import ACTIONS
from atlas_supervisor.dashboard.answers import Answers
from atlas_supervisor.dashboard.sections import (
    actions,
    audit,
    canary,
    change,
    checks,
    deploy,
    fleet,
    headline,
    history,
    logs,
    slots,
    traffic,
)

FORM_TOKEN = f"@{secrets.token_hex(16)}@"
"""Stands in forms for the token of the session, which sections do not know: they are shared.

It is a secret: a worker that printed it would have the token shown there."""
STATIC = Path(__file__).parent / "static"


class Section(Protocol):
    """A module of `sections`."""

    NEEDS: Mapping[str, float]
    """The requests whose answers it uses, with how old they may be, in seconds."""

    def view(self, answers: Answers) -> Mapping[str, Any]:
        """Return the values for its template. Pure."""


SECTIONS: dict[str, Section] = {
    "headline": headline,
    "actions": actions,
    "change": change,
    "deploy": deploy,
    "slots": slots,
    "fleet": fleet,
    "traffic": traffic,
    "history": history,
    "canary": canary,
    "checks": checks,
    "logs": logs,
    "audit": audit,
}
"""In the order of the page; a section's template is `NAME.html`."""


def needs() -> dict[str, float]:
    """Return every request that the page needs, with how old its answer may be, in seconds."""
    found: dict[str, float] = {}
    for section in SECTIONS.values():
        for request, seconds in section.NEEDS.items():
            found[request] = min(seconds, found.get(request, seconds))
    return found


def render_section(name: str, view: Mapping[str, Any], answers: Answers) -> str:
    """Return the HTML inside of a section."""
    template = _environment().get_template(f"{name}.html")
    return template.render(view, audience=answers.audience, form_token=FORM_TOKEN)


def without(name: str, why: str) -> str:
    """Return the HTML inside of a section that can't be shown."""
    return str(Markup('<h2>{}</h2>\n<p class="remark">{}</p>').format(name.capitalize(), why))


def render_page(sections: Mapping[str, str] | None, *, form_token: str, **values: Any) -> str:
    """Return the page around its sections, which are HTML; None: its reader must sign in first."""
    marked = {name: Markup(html) for name, html in (sections or {}).items()}  # noqa: S704 # ours
    template = _environment().get_template("page.html")
    labels = {name: name.capitalize() for name in SECTIONS}
    at = datetime.now(UTC).isoformat(timespec="seconds")
    html = template.render(sections=marked, labels=labels, at=at, form_token=FORM_TOKEN, **values)
    return html.replace(FORM_TOKEN, form_token)


def compile_templates() -> None:
    """Compile every template, so that the first page need not."""
    for name in _environment().list_templates():
        _environment().get_template(name)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("atlas_supervisor.dashboard"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        ago=_ago,
        until=_until,
        at=_at,
        clock=_clock,
        took=units.duration,
        amount=units.amount,
        percent=units.percent,
        latency=units.latency,
        size=units.size,
        change=units.change,
        boots_in=change.boots_in,
        commands=_commands,
        rate=headline.rate,
    )
    environment.globals["command_line"] = lambda name, given: ACTIONS[name].command_line(given)
    return environment


def _commands(text: object) -> Markup:
    """Return text with what stands in backticks as code, as `atlasctl` writes it."""
    parts = (escape(part) for part in str(text or "").split("`"))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else part
        for index, part in enumerate(parts)
    )


def _ago(timestamp: str | None) -> str:
    """Return how long ago it was, as an element whose text the script keeps right."""
    return _time(timestamp, "age", units.age(timestamp))


def _until(timestamp: str | None) -> str:
    """Return how long it is until then, as such an element."""
    then = units.moment(timestamp)
    left = (then - datetime.now(then.tzinfo)).total_seconds() if then else 0
    return _time(timestamp, "left", units.duration(max(round(left), 0) * units.SECOND))


def _clock(timestamp: object) -> str:
    """Return the time of day in the daemon's time zone, in whole minutes if it is one."""
    then = units.moment(timestamp)
    return (
        f"{then.astimezone():{'%H:%M:%S' if then.second else '%H:%M'}}" if then else units.MISSING
    )


def _at(timestamp: str | None) -> str:
    """Return the moment in the daemon's time zone; the script shows it in the reader's."""
    return _time(timestamp, "at", units.local_time(timestamp))


def _time(timestamp: str | None, kind: str, text: str) -> str:
    if units.moment(timestamp) is None:
        return units.MISSING
    element = Markup('<time datetime="{0}" data-{1} title="{0}">{2}</time>')
    return element.format(timestamp, kind, text)
