"""What a benchmark takes and gives, and the few statistics that all of them share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Options:
    """What the command line may ask for; None leaves it to the benchmark.

    `count` is of deploys, rollbacks, hosts or simulated runs, `rounds` of repetitions, `seconds`
    the length of one.
    """

    count: int | None = None
    rounds: int | None = None
    seconds: float | None = None


@dataclass
class Result:
    """Tables for people, the same as data, and what a reader must know besides."""

    tables: list[Table]
    data: dict[str, Any]
    notes: list[str] = field(default_factory=list)


Benchmark = Callable[[Options], Coroutine[Any, Any, Result]]


class CannotRunError(Exception):
    """Something that the benchmark needs is not on this machine; the text says what."""


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of all lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return median, p99 and maximum, rounded to three decimals."""
    return {
        "median": round(statistics.median(values), 3),
        "p99": round(quantile(values, 0.99), 3),
        "max": round(max(values), 3),
    }


def summary_table(title: str, unit: str, rows: dict[str, dict[str, float]]) -> Table:
    """Show named summaries, one a row."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("median", "p99", "max"):
        table.add_column(f"{column}, {unit}", justify="right")
    for name, values in rows.items():
        table.add_row(name, *(f"{value:,.2f}" for value in values.values()))
    return table
