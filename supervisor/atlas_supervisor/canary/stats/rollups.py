"""What is kept over time: tallies per minute and hour, for the database, and evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.outcomes import Tally
from atlas_supervisor.model.canary import CountsRow
from atlas_supervisor.model.histogram import Histogram

MINUTE, HOUR = 60, 3600

_CHANGING = 2 * MINUTE  # a call has an outcome at most a minute after its assignment


class EvidencePoint(NamedTuple):
    """The evidence of a ramp at one moment, as natural logarithms of odds."""

    unix: float
    rollback: float
    """The largest so far: what a rollback goes by."""
    promotion: float
    needed: float
    """What a rollback needed then; it falls when another feature is rolled back."""


class Course:
    """The course of a ramp's evidence from its start: the older, the coarser, and bounded."""

    MOST = 100
    EVERY_SECONDS = 2.0

    def __init__(self, points: Iterable[Iterable[float]] = ()) -> None:
        self.points = [EvidencePoint(*each) for each in points]

    def is_due(self, unix: float) -> bool:
        """Return whether it is time for another point."""
        return not self.points or not 0 <= unix - self.points[-1].unix < self.EVERY_SECONDS

    def add(self, point: EvidencePoint) -> None:
        """Add a point; if there are too many, drop the one that is missed least for its age."""
        now = point.unix
        # A clock that was ahead at an earlier start has left points of the future.
        self.points = points = [*(each for each in self.points if each.unix < now), point]
        if len(points) > self.MOST:
            gaps = (
                (points[at + 1].unix - points[at - 1].unix) / (now - points[at].unix)
                for at in range(1, len(points) - 1)
            )
            del points[min(enumerate(gaps, 1), key=lambda each: each[1])[0]]


class ArmTallies(NamedTuple):
    """The tallies of both arms."""

    canary: Tally
    stable: Tally

    @classmethod
    def empty(cls) -> ArmTallies:
        """Return two empty tallies."""
        return cls(Tally(), Tally())

    def side(self, *, canary: bool) -> Tally:
        """Return the tally of one arm."""
        return self.canary if canary else self.stable

    def add(self, other: ArmTallies) -> None:
        """Add the tallies of both arms."""
        self.canary.add(other.canary)
        self.stable.add(other.stable)


class _Key(NamedTuple):
    span: int
    start: int
    epoch: int
    canary: bool


class Rollups:
    """The minutes and hours that may still change. Times are Unix seconds."""

    def __init__(self, rows: Iterable[CountsRow] = ()) -> None:
        self._tallies = {_Key(*row[:4]): tally_of(row) for row in rows}
        self._changed: set[_Key] = set()
        self._settled: tuple[int, int, dict[int, ArmTallies]] = (0, 0, {})
        """A cached sum by epoch of the minutes from one time to another that rarely change."""

    def add(self, at: float, now: float, epoch: int, tally: Tally, *, canary: bool) -> None:
        """Add calls that were assigned at `at`; if that is over an hour ago, they count as now."""
        for span in (MINUTE, HOUR):
            start = _start(at if at >= now - HOUR else now, span)
            key = _Key(span, start, epoch, canary)
            self._tallies.setdefault(key, Tally()).add(tally)
            self._changed.add(key)
            if span == MINUTE and start < self._settled[1]:
                self._settled = (0, 0, {})

    def unwritten(self) -> list[CountsRow]:
        """Return the rows that have changed since they were written."""
        return [row_of(key, self._tallies[key]) for key in sorted(self._changed)]

    def mark_written(self, rows: Iterable[CountsRow]) -> None:
        """Mark rows as written, unless they have changed again."""
        for row in rows:
            key = _Key(*row[:4])
            if key in self._changed and row_of(key, self._tallies[key]) == row:
                self._changed.discard(key)

    def forget_old(self, now: float) -> None:
        """Forget written tallies that are over an hour old."""
        oldest = {MINUTE: _start(now - HOUR, MINUTE), HOUR: _start(now - HOUR, HOUR)}
        for key in [key for key in self._tallies if key.start < oldest[key.span]]:
            if key not in self._changed:
                del self._tallies[key]

    def last_hour(self, now: float) -> Mapping[int, ArmTallies]:
        """Return the tallies of the last 60 minutes by epoch."""
        since = _start(now, MINUTE) - HOUR + MINUTE
        until = _start(now, MINUTE) - _CHANGING
        if self._settled[:2] != (since, until):
            self._settled = (since, until, self._sum(since, until))
        found = self._sum(until, _start(now, MINUTE) + HOUR)
        for epoch, both in self._settled[2].items():
            found.setdefault(epoch, ArmTallies.empty()).add(both)
        return found

    def _sum(self, since: int, until: int) -> dict[int, ArmTallies]:
        """Return the tallies of the minutes that start in `[since, until)`, by epoch."""
        found: dict[int, ArmTallies] = {}
        for key, tally in self._tallies.items():
            if key.span == MINUTE and since <= key.start < until:
                both = found.setdefault(key.epoch, ArmTallies.empty())
                both.side(canary=key.canary).add(tally)
        return found

    def arms(self, now: float, counted_from: int) -> tuple[Arm, Arm]:
        """Return canary and stable of the last hour, without the epochs before `counted_from`."""
        since = _start(now, MINUTE) - HOUR + MINUTE
        counts = {True: [0, 0], False: [0, 0]}
        for key, tally in self._tallies.items():
            if key.span == MINUTE and key.start >= since and key.epoch >= counted_from:
                side = counts[bool(key.canary)]
                side[0] += tally.calls
                side[1] += tally.errors
        return Arm(*counts[True]), Arm(*counts[False])


def row_of(key: _Key, tally: Tally) -> CountsRow:
    """Return a tally as a row of the database."""
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
    """Return the tally of a row of the database."""
    return Tally(
        assigned=row.assigned,
        unreported=row.unreported,
        calls=row.calls,
        errors=row.errors,
        cancelled=row.cancelled,
        latency=Histogram.from_bytes(row.latency),
    )


def by_epoch(rows: Iterable[CountsRow]) -> dict[int, ArmTallies]:
    """Return the sum of these rows by epoch."""
    found: dict[int, ArmTallies] = {}
    for row in rows:
        both = found.setdefault(row.epoch, ArmTallies.empty())
        both.side(canary=bool(row.canary)).add(tally_of(row))
    return found


def _start(at: float, span: int) -> int:
    return int(at) // span * span
