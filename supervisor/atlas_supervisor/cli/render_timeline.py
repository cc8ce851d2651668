"""Renders a deploy's timeline: its transitions with their times, causes and findings.

An older daemon's record has no transitions; then the steps are shown alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.hints import hint
from atlas_supervisor.cli.render_deploy import findings, step_line
from atlas_supervisor.cli.render_findings import hint_line
from atlas_supervisor.cli.terminal import BAD, EVENT, NOTE, OK, Screen, printable, safe
from atlas_supervisor.cli.units import SECOND, duration, moment
from atlas_supervisor.cli.words import Record, brief, objects

ROOM = 60
"""Minimum columns for a long reason on the same line; with less room it goes below."""

_STEPS = {"drain_reverted": "drain"}  # a phase whose step has another name
_PASSED = {
    "ramp": "ramp passed",
    "switch": "switched",
    "warm": "warm time over",
    "drain": "old version drained",
    "revert": "reverted",
    "drain_reverted": "new version drained",
    "unstage": "staging stopped",
}
_FAILED = {"revert": "revert failed", "unstage": "staging not stopped"}
_BEGINNING = {"begun": "started"}
_HAPPENINGS = {
    "staging_died": (BAD, "staging died"),
    "active_died": (BAD, "new version died"),
    "step_passed": (OK, "ramp step passed"),
    "split_requested": (EVENT, "split by hand"),
    "pause_requested": (EVENT, "ramp paused"),
    "resume_requested": (EVENT, "ramp resumed"),
    "advance_requested": (EVENT, "ramp advanced"),
    "switch_requested": (EVENT, "switch requested"),
    "abort_requested": (EVENT, "abort requested"),
    "rollback_requested": (EVENT, "rollback requested"),
    "superseded": (EVENT, "next deploy started"),
    "supervisor_stopped": (NOTE, "daemon stopped"),
}


def timeline(
    screen: Screen, record: Record, least: Sequence[int] = (0, 0, 0)
) -> Iterator[RenderableType]:
    """Yield each transition with the findings of its step; without transitions, each step.

    `least` are minimum column widths, for a timeline that is printed in parts.
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
    """One transition as a line."""

    def __init__(self, screen: Screen, record: Record, transition: Record) -> None:
        self._screen = screen
        source, event = transition.get("source"), transition.get("event")
        self.sign, what = _happening(source, event)
        self.step_name = _STEPS.get(str(source), source)
        if source == "ramp":  # a step only if no switch follows
            ends = transition.get("target") in {"unstage", "ended"}
            self.step_name = "switch" if ends else None
        self.cause = str(transition.get("cause") or "")
        took = transition.get("duration_ms")
        self.cells = (
            _since(record.get("started_ts"), transition.get("ts")),
            printable(what),
            duration(took) if isinstance(took, int | float) else "",
        )

    def shown(self, widths: Sequence[int], why: str) -> RenderableType:
        """Return the line in columns of these widths."""
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
    """Return the sign and the words for the event that ended the phase `source`."""
    phase = str(source)
    if source is None:
        return EVENT, _BEGINNING.get(str(event), str(event))
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
    """Remove the next step of this name from `steps`; return it and the steps before it."""
    for index, step in enumerate(steps):
        if step.get("name") == name:
            before = steps[:index]
            del steps[: index + 1]
            return before, step
    return [], None


def _step(screen: Screen, step: Record) -> Iterator[RenderableType]:
    yield step_line(screen, step)
    yield from findings(screen, step, everything=True)
