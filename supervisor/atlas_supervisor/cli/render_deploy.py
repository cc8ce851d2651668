"""Renders a deploy: its steps, their findings, and its outcome.

Used by `deploy` as things happen, and by `show` afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.hints import hint
from atlas_supervisor.cli.render_findings import (
    check_lines,
    hint_line,
    indented,
    probe_lines,
    quoted,
)
from atlas_supervisor.cli.terminal import (
    BAD,
    DURATION_WIDTH,
    NOTE,
    OK,
    STEP_WIDTH,
    Screen,
    safe,
    spaced,
)
from atlas_supervisor.cli.units import duration
from atlas_supervisor.cli.words import (
    RECYCLED,
    Record,
    advice_of,
    brief,
    detail_of,
    doing,
    headline,
    in_words,
    is_recycle,
    objects,
    reason,
)

_SHOWN_APART = frozenset({"message", "checks", "output", "probes", "failed_probe", "comparison"})
_UNITS = {"_us": 0.001, "_ms": 1.0, "_seconds": 1000.0}
_RESULT_STYLES = {"failed": "red", "rolled_back": "red", "aborted": "yellow"}


def title(record: Record) -> Text:
    """Return the deploy's title: its id, and what it deploys."""
    parts = [safe(record.get("deploy_id"), "bold")]
    if record.get("release"):
        parts.append(safe(f"release {record['release']}"))
    if record.get("dry_run"):
        parts.append(safe("dry run", "yellow"))
    if is_recycle(record):
        parts.append(safe(RECYCLED, "dim"))
    return spaced(*parts)


def result_text(record: Record) -> Text:
    """Return a deploy's result in its colour, or its current phase."""
    result = record.get("result")
    text = safe(result, _RESULT_STYLES.get(str(result), "green"))
    if result is None:
        text = safe(doing(record), "cyan")
    return spaced(text, safe(RECYCLED, "dim")) if is_recycle(record) else text


def step_line(screen: Screen, step: Record) -> RenderableType:
    """Return a step that has ended: sign, name, duration and message."""
    line = Table.grid(padding=(0, 1))
    line.add_column()
    line.add_column(width=STEP_WIDTH)
    line.add_column(width=DURATION_WIDTH, justify="right")
    line.add_column(overflow="fold")
    message = brief(step)
    line.add_row(
        screen.sign(OK if step.get("ok") else BAD),
        safe(step.get("name")),
        Text(duration(step.get("duration_ms", 0)), style="dim"),
        safe("" if message is None else f" {message}", "" if step.get("ok") else "red"),
    )
    return line


def findings(screen: Screen, step: Record, *, everything: bool = False) -> Iterator[RenderableType]:
    """Yield a step's findings: failed checks and probes, and the worker's last output.

    With `everything`, also what passed, and the step's other fields.
    """
    detail = detail_of(step)
    if everything:
        yield from _fields(detail)
    if not step.get("ok") and (words := hint(brief(step))):
        yield hint_line(words)
    for probe in [*objects(detail.get("probes")), *objects([detail.get("failed_probe")])]:
        if everything or (probe.get("verdict") != "pass" and probe.get("excerpt")):
            yield indented(probe_lines(screen, probe))
    for check in objects(detail.get("checks")):
        if everything or not check.get("ok"):
            yield indented(check_lines(screen, check))
    if detail.get("output") == []:
        yield indented(safe("the worker printed nothing", "dim"))
    elif output := detail.get("output"):
        yield indented(quoted("last output of the worker", output))


def outcome(screen: Screen, record: Record, *, ok: bool) -> RenderableType:
    """Return the deploy's result and its reason, with a tick if `ok`."""
    grid = Table.grid(padding=(0, 1))
    text = safe(headline(record), "bold")
    grid.add_row(screen.sign(OK if ok else BAD), text)
    if record.get("reason"):
        grid.add_row("", safe(reason(record), "" if ok else "red"))
    if advice := advice_of(record):
        grid.add_row("", safe(advice, "dim"))
    return grid


def suggestions(screen: Screen, status: Record) -> Iterator[RenderableType]:
    """Yield the daemon's suggestions, each with its action."""
    for suggestion in objects(status.get("fallback_suggestions")):
        yield note(screen, suggestion.get("message"), suggestion.get("action"))


def note(screen: Screen, message: object, action: object) -> RenderableType:
    """Return a message and, below it, what to do."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(screen.sign(NOTE), safe(message))
    if action:
        grid.add_row("", safe(action, "dim"))
    return grid


def _fields(detail: Record) -> Iterator[RenderableType]:
    further = [
        _field(name, value)
        for name, value in detail.items()
        if name not in _SHOWN_APART and value is not None
    ]
    if further:
        yield indented(safe(", ".join(further), "dim"))


def _field(name: str, value: Any) -> str:
    """Return a field of a step's detail in words: `pid 77`, `waited 12 ms`."""
    for unit, milliseconds in _UNITS.items():
        if name.endswith(unit) and isinstance(value, int | float):
            return f"{name.removesuffix(unit).replace('_', ' ')} {duration(value * milliseconds)}"
    return f"{name.replace('_', ' ')} {in_words(value)}"
