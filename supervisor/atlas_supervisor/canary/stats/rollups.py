"""Tallies per minute and per hour, as the store keeps them, and the sum of the last hour. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.canary.stats.outcomes import Tally
from atlas_supervisor.model.canary import CountsRow

MINUTE, HOUR = 60, 3600

_LIVELY = 2 * MINUTE  # a call is assigned in a minute, and over a minute later at the most


class ArmTallies(NamedTuple):
    """The tallies of both arms."""

    canary: Tally
    stable: Tally

    @classmethod
    def none(cls) -> ArmTallies:
        """Return two empty ones."""
        return cls(Tally(), Tally())

    def side(self, *, canary: bool) -> Tally:
        """Return one of them."""
        return self.canary if canary else self.stable

    def add(self, other: ArmTallies) -> None:
        """Add what the other two have."""
        self.canary.add(other.canary)
        self.stable.add(other.stable)


class _Key(NamedTuple):
    span: int
    start: int
    epoch: int
    canary: bool


class Rollups:
    """The spans that may still change, and those of the last hour. Times are Unix seconds."""

    def __init__(self, rows: Iterable[CountsRow] = ()) -> None:
        self._tallies = {_Key(*row[:4]): tally_of(row) for row in rows}
        self._changed: set[_Key] = set()
        self._older: tuple[int, int, dict[int, ArmTallies]] = (0, 0, {})
        """From one minute to another, which hardly change any more: their sum by epoch."""

    def add(self, at: float, now: float, epoch: int, tally: Tally, *, canary: bool) -> None:
        """Add calls that were assigned at `at`; what is older than is held here counts as now."""
        for span in (MINUTE, HOUR):
            start = _start(at if at >= now - HOUR else now, span)
            key = _Key(span, start, epoch, canary)
            self._tallies.setdefault(key, Tally()).add(tally)
            self._changed.add(key)
            if span == MINUTE and start < self._older[1]:
                self._older = (0, 0, {})

    def changed(self) -> list[CountsRow]:
        """Return what has changed since `written` was last called, whole."""
        return [row_of(key, self._tallies[key]) for key in sorted(self._changed)]

    def written(self, rows: Iterable[CountsRow]) -> None:
        """Note that these rows are written; what has changed since then is still to be."""
        for row in rows:
            key = _Key(*row[:4])
            if key in self._changed and row_of(key, self._tallies[key]) == row:
                self._changed.discard(key)

    def forget(self, now: float) -> None:
        """Forget what is older than an hour and written."""
        oldest = {MINUTE: _start(now - HOUR, MINUTE), HOUR: _start(now - HOUR, HOUR)}
        for key in [key for key in self._tallies if key.start < oldest[key.span]]:
            if key not in self._changed:
                del self._tallies[key]

    def last_hour(self, now: float) -> Mapping[int, ArmTallies]:
        """Return the tallies of the last 60 minutes by epoch."""
        since = _start(now, MINUTE) - HOUR + MINUTE
        until = _start(now, MINUTE) - _LIVELY
        if self._older[:2] != (since, until):
            self._older = (since, until, self._sum(since, until))
        found = self._sum(until, _start(now, MINUTE) + HOUR)
        for epoch, both in self._older[2].items():
            found.setdefault(epoch, ArmTallies.none()).add(both)
        return found

    def _sum(self, since: int, until: int) -> dict[int, ArmTallies]:
        """Return the tallies of the minutes that begin in `[since, until)`, by epoch."""
        found: dict[int, ArmTallies] = {}
        for key, tally in self._tallies.items():
            if key.span == MINUTE and since <= key.start < until:
                both = found.setdefault(key.epoch, ArmTallies.none())
                both.side(canary=key.canary).add(tally)
        return found

    def arms(self, now: float, counted_from: int) -> tuple[Arm, Arm]:
        """Return the last hour's calls and errors, from an epoch on: the canary's and stable's."""
        since = _start(now, MINUTE) - HOUR + MINUTE
        counts = {True: [0, 0], False: [0, 0]}
        for key, tally in self._tallies.items():
            if key.span == MINUTE and key.start >= since and key.epoch >= counted_from:
                side = counts[bool(key.canary)]
                side[0] += tally.calls
                side[1] += tally.errors
        return Arm(*counts[True]), Arm(*counts[False])


def row_of(key: _Key, tally: Tally) -> CountsRow:
    """Return a tally as the store keeps it."""
    return CountsRow(
        *key,
        tally.assigned,
        tally.unreported,
        tally.calls,
        tally.errors,
        tally.cancelled,
        tally.latency.to_bytes(),
    )


def tally_of(row: CountsRow) -> Tally:
    """Return what the store has kept."""
    return Tally(
        assigned=row.assigned,
        unreported=row.unreported,
        calls=row.calls,
        errors=row.errors,
        cancelled=row.cancelled,
        latency=Histogram.from_bytes(row.latency),
    )


def by_epoch(rows: Iterable[CountsRow]) -> dict[int, ArmTallies]:
    """Return the sum of what the store has kept, by epoch."""
    found: dict[int, ArmTallies] = {}
    for row in rows:
        found.setdefault(row.epoch, ArmTallies.none()).side(canary=bool(row.canary)).add(
            tally_of(row)
        )
    return found


def _start(at: float, span: int) -> int:
    return int(at) // span * span
