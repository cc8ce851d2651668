"""What each pane of `atlasctl top` shows, by the renderers of the other verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from rich.console import RenderableType
from rich.text import Text

from atlas_supervisor.cli.audit import audit_table
from atlas_supervisor.cli.canary_report import report_view
from atlas_supervisor.cli.canary_status import canaries
from atlas_supervisor.cli.health import health_view
from atlas_supervisor.cli.render_deploy import findings, outcome, step_line, title
from atlas_supervisor.cli.render_ramp import ramp_lines
from atlas_supervisor.cli.render_timeline import timeline
from atlas_supervisor.cli.show import already, facts
from atlas_supervisor.cli.status import draining, overview
from atlas_supervisor.cli.terminal import BAD, OK, Screen, safe, spaced
from atlas_supervisor.cli.top.watch import AUDIT, CANARY, HEALTH, HISTORY, REPORT, STATUS, Watch
from atlas_supervisor.cli.units import SECOND, duration, moment
from atlas_supervisor.cli.words import Record, doing, guarded, mapping, objects, settled, succeeded

_STEPS = ("preflight", "launch", "smoke", "health", "switch", "guard", "drain")
_STEP_OF = {"awaiting_switch": "switch", "ramp": "switch", "warm": "drain"}
"""Phases during which the next step has not begun."""


class Shown(NamedTuple):
    """A pane: its name, what it needs besides what is always read, and its content."""

    name: str
    needs: tuple[str, ...]
    content: Callable[[Screen, Watch], Iterator[RenderableType]]


def deploy(screen: Screen, watch: Watch) -> Iterator[RenderableType]:
    """Yield a deploy: where it is, why it stopped, then its timeline."""
    record = watch.chosen or watch.deploy
    if not record:
        yield safe("no deploy yet; d starts one", "dim")
        return
    chosen = [safe("from the history", "dim")] if watch.chosen else []
    yield spaced(title(record), *chosen)
    yield _progress(screen, record)
    if record.get("phase") != "ended":
        yield from _now(screen, record)
        yield from draining(watch.status)
    if settled(record):
        yield Text()
        yield outcome(screen, record, ok=succeeded(record))
    failed = [step for step in objects(record.get("steps")) if not step.get("ok")]
    for step in failed:
        yield step_line(screen, step)
        yield from findings(screen, step)
    yield Text()
    yield facts(record)
    passed = [step for step in objects(record.get("steps")) if step.get("ok")]
    yield from timeline(screen, {**record, "steps": passed})
    if record.get("phase") != "ramp" and (ramp := mapping(record.get("ramp"))):
        yield Text()
        yield from ramp_lines(screen, ramp)


def _progress(screen: Screen, record: Record) -> Text:
    """Return all steps on one line: ended, in progress, and still to come."""
    done = {step.get("name"): bool(step.get("ok")) for step in objects(record.get("steps"))}
    phase = str(record.get("phase"))
    is_over = phase == "ended"
    parts = []
    for name in _STEPS:
        if name in done:
            parts.append(screen.sign(OK if done[name] else BAD) + safe(f" {name}"))
        elif not is_over and name == _STEP_OF.get(phase, phase):
            parts.append(safe(f"> {doing(record) if phase != 'ramp' else 'ramp'}", "bold cyan"))
        elif not is_over:
            parts.append(safe(f"· {name}", "dim"))
    return spaced(*parts)


def _now(screen: Screen, record: Record) -> Iterator[RenderableType]:
    """Yield what a deploy does now, for how long, and what it waits for."""
    since = f"for {duration(already(record) * SECOND)}"
    end = moment(record.get("until_ts"))
    left = (end - datetime.now(UTC)).total_seconds() if end else 0.0
    until = [safe(f"{duration(left * SECOND)} left")] if left > 0 else []
    yield spaced(safe(doing(record), "cyan"), safe(since, "dim"), *until)
    if seen := guarded(record):
        yield safe(seen)
    if record.get("phase") == "ramp" and (ramp := mapping(record.get("ramp"))):
        yield from ramp_lines(screen, ramp)
        if ramp.get("waits_for"):
            yield safe(f"the next step waits for {ramp['waits_for']}", "dim")


def history(_screen: Screen, _watch: Watch) -> Iterator[RenderableType]:
    """Yield nothing: the history is a list to choose from."""
    yield from ()


def canary(screen: Screen, watch: Watch) -> Iterator[RenderableType]:
    """Yield each feature's canary, and both arms compared over the last day."""
    if found := watch.answers.get(CANARY):
        yield canaries(screen, found)
    if report := watch.answers.get(REPORT):
        yield Text()
        yield report_view(screen, report, feature=None, everything=False)


def checks(screen: Screen, watch: Watch) -> Iterator[RenderableType]:
    """Yield the health score and each check."""
    if found := watch.answers.get(HEALTH):
        yield health_view(screen, found)


def log(_screen: Screen, watch: Watch) -> Iterator[RenderableType]:
    """Yield the last lines of the log."""
    yield from watch.log.lines


def audit(screen: Screen, watch: Watch) -> Iterator[RenderableType]:
    """Yield the audit trail."""
    if found := watch.answers.get(AUDIT):
        yield audit_table(screen, found)


def status(screen: Screen, watch: Watch) -> Iterator[RenderableType]:
    """Yield all of the status."""
    yield overview(screen, watch.answers[STATUS])


DEPLOY, PAST, LOG = 0, 1, 4
PANES = (
    Shown("deploy", (), deploy),
    Shown("history", (HISTORY,), history),
    Shown("canary", (CANARY, REPORT), canary),
    Shown("checks", (HEALTH,), checks),
    Shown("log", (), log),
    Shown("audit", (AUDIT,), audit),
    Shown("status", (), status),
)
"""The panes in the order of their keys, from 1 on."""
