"""Renders the ramp of a deploy: its steps so far, and what it does now."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import RenderableType
from rich.table import Table

from atlas_supervisor.cli.terminal import EVENT, OK, Screen, safe
from atlas_supervisor.cli.units import MISSING, SECOND, amount, duration, latency, moment, percent
from atlas_supervisor.cli.words import Record, mapping, objects


def ramp_lines(
    screen: Screen, ramp: Record, *, ended: bool = False, after: int = 0
) -> Iterator[RenderableType]:
    """Yield a line for each step after the first `after`; with `ended`, only those that ended."""
    for step in objects(ramp.get("steps"))[after:]:
        until = moment(step.get("until_ts"))
        if ended and until is None:
            return
        since = moment(step.get("since_ts"))
        took = ((until or datetime.now(UTC)) - since).total_seconds() if since else 0.0
        line = Table.grid(padding=(0, 1))
        line.add_row(
            screen.sign(OK if until else EVENT),
            safe(f"{percent(step.get('share'))} for {duration(took * SECOND)}"),
            safe(f"new: {_figures(step.get('new'))}"),
            safe(f"old: {_figures(step.get('old'))}", "dim"),
        )
        yield line


def ended_steps(ramp: object) -> int:
    """Return how many steps have ended."""
    return sum(bool(step.get("until_ts")) for step in objects(mapping(ramp).get("steps")))


def _figures(figures: object) -> str:
    found = mapping(figures)
    if not found:
        return "not counted"
    counts = f"{amount(found.get('requests'))} requests, {amount(found.get('failed'))} failed"
    p95 = latency(found.get("p95_ms"))
    return counts if p95 == MISSING else f"{counts}, p95 {p95}"
