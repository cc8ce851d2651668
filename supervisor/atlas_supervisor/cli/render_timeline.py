"""A deploy as a story: what happened when, why, how long it took, and what was found.

The transitions of the record tell it. A daemon from before they were told has steps alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.client import Record, objects
from atlas_supervisor.cli.hints import hint
from atlas_supervisor.cli.render_deploy import brief, findings, step_line
from atlas_supervisor.cli.render_findings import hint_line
from atlas_supervisor.cli.terminal import BAD, EVENT, NOTE, OK, Screen, printable, safe
from atlas_supervisor.cli.units import SECOND, duration, moment

ROOM = 60
"""Columns that are enough for a long reason beside its line; else that stands below it."""

_STEPS = {"drain_reverted": "drain"}  # phases whose step has another name
_PASSED = {
    "switch": "switched",
    "warm": "warm time over",
    "drain": "old version drained",
    "revert": "went back",
    "drain_reverted": "new version drained",
    "unstage": "staging stopped",
}
_FAILED = {"revert": "could not go back", "unstage": "staging not stopped"}
_HAPPENINGS = {
    "staging_died": (BAD, "staging died"),
    "active_died": (BAD, "new version died"),
    "switch_requested": (EVENT, "switch requested"),
    "abort_requested": (EVENT, "abort requested"),
    "rollback_requested": (EVENT, "rollback requested"),
    "superseded": (EVENT, "next deploy begun"),
    "supervisor_stopped": (NOTE, "daemon stopped"),
}


def story(
    screen: Screen, record: Record, least: Sequence[int] = (0, 0, 0)
) -> Iterator[RenderableType]:
    """Yield each transition with what its step found; without transitions, each step.

    `least` are the smallest widths of its columns, for a story that is told in parts.
    """
    steps = objects(record.get("steps"))
    transitions = objects(record.get("transitions"))
    lines = [_Line(screen, record, transition) for transition in transitions]
    widths = [max([least[n], *(len(line.cells[n]) for line in lines)]) for n in range(3)]
    for line in lines:
        before, step = _take(steps, line.step_name)
        for earlier in before:
            yield from _step(screen, earlier)
        yield line.shown(widths, line.cause if step is None else brief(step) or line.cause)
        if step is not None:
            yield from findings(screen, step, everything=True)
        elif words := hint(line.cause):
            yield hint_line(words)
    for step in steps:
        yield from _step(screen, step)


class _Line:
    """One transition in words."""

    def __init__(self, screen: Screen, record: Record, transition: Record) -> None:
        self._screen = screen
        source, event = transition.get("source"), transition.get("event")
        self.sign, what = _happening(source, event)
        self.step_name = _STEPS.get(str(source), source)
        self.cause = str(transition.get("cause") or "")
        took = transition.get("duration_ms")
        self.cells = (
            _since(record.get("started_ts"), transition.get("ts")),
            printable(what),
            duration(took) if isinstance(took, int | float) else "",
        )

    def shown(self, widths: Sequence[int], why: str) -> RenderableType:
        """Return the line, its cells as wide as those of the other lines."""
        since, what, took = self.cells
        style = "red" if self.sign == BAD else ""
        reason = safe(why, style)
        room = self._screen.console.width - sum(widths) - 6
        beside = len(reason) <= room or room >= ROOM
        line = Table.grid(padding=(0, 1))
        line.add_column()
        line.add_column(min_width=widths[0], justify="right", no_wrap=True)
        line.add_column(min_width=widths[1])
        line.add_column(min_width=widths[2], justify="right", no_wrap=True)
        line.add_column(overflow="fold")
        line.add_row(
            self._screen.sign(self.sign),
            Text(since, style="dim"),
            Text(what, style=style, overflow="fold"),
            Text(took, style="dim"),
            Text(" ") + reason if beside and why else "",
        )
        if beside:
            return line
        return Group(line, Padding(reason, (0, 0, 0, widths[0] + 3), expand=False))


def _happening(source: Any, event: Any) -> tuple[str, str]:
    """Return the sign and the words for what ended the phase `source`."""
    phase = str(source)
    if source is None:
        return EVENT, str(event)
    if event == "passed":
        return OK, _PASSED.get(phase, phase)
    if event == "failed":
        return BAD, _FAILED.get(phase, f"{phase} failed".replace("_", " "))
    return _HAPPENINGS.get(str(event), (EVENT, f"{phase}: {event}".replace("_", " ")))


def _since(started: Any, timestamp: Any) -> str:
    begin, then = moment(started), moment(timestamp)
    if begin is None or then is None:
        return ""
    return f"+{duration((then - begin).total_seconds() * SECOND)}"


def _take(steps: list[Record], name: Any) -> tuple[list[Record], Record | None]:
    """Take the next step of this name out of `steps`, and what stands before it."""
    for index, step in enumerate(steps):
        if step.get("name") == name:
            before = steps[:index]
            del steps[: index + 1]
            return before, step
    return [], None


def _step(screen: Screen, step: Record) -> Iterator[RenderableType]:
    yield step_line(screen, step)
    yield from findings(screen, step, everything=True)
