"""Follows every call of every process from its assignment to its outcome. Pure.

Processes tell single events; what comes of them here are tallies, which add up over processes and
over time, and the outcomes that `windows` puts in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.canary.stats.windows import Group, RingKey, Windows
from atlas_worker.contract import latency_bucket

SLICES_PER_SECOND = 2
TIMEOUT_SLICES = 60 * SLICES_PER_SECOND
"""A call that has not ended so long after its slice has failed."""


class CallOutcome(Enum):
    """How a call ended."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"
    """No failure; it would have taken at least as long as it did."""


@dataclass
class Tally:
    """What is known of the calls of one group, or of many added up."""

    assigned: int = 0
    """Decisions, those that nobody reported included."""
    unreported: int = 0
    """Decisions that were asked for, and whose outcome was never told."""
    calls: int = 0
    errors: int = 0
    cancelled: int = 0
    latency: Histogram = field(default_factory=Histogram)

    def add(self, other: Tally) -> None:
        """Add what the other one has."""
        self.assigned += other.assigned
        self.unreported += other.unreported
        self.calls += other.calls
        self.errors += other.errors
        self.cancelled += other.cancelled
        self.latency.merge(other.latency)


class CallKind(NamedTuple):
    """How a call came about: whether it only asked, and whether it has a key."""

    asked: bool
    keyed: bool


class CallTracker:
    """All calls that are known and not over, and the tallies since they were last taken."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._open: dict[str, dict[tuple[Group, CallKind], int]] = {}
        """For each process, by the name of its ring."""
        self._news: dict[Group, Tally] = {}
        self.late = 0
        """Outcomes of calls that had been given up before."""

    @property
    def open(self) -> int:
        """How many calls have begun, or were asked for, and have no outcome yet."""
        return sum(sum(each.values()) for each in self._open.values())

    def begin(
        self, ring: str, group: Group, count: int, *, asked: bool, key: int | None = None
    ) -> None:
        """Note calls that were assigned; with `asked` it may stay a question."""
        kind = CallKind(asked, key is not None)
        there = self._open.setdefault(ring, {})
        there[group, kind] = there.get((group, kind), 0) + count
        self._tally(group).assigned += count
        self._windows.assign(group, count, asked=asked, key=_of(ring, key))

    def end(
        self,
        ring: str,
        group: Group,
        count: int,
        outcome: CallOutcome,
        bucket: int,
        *,
        asked: bool,
        key: int | None = None,
    ) -> None:
        """Note the outcome of calls that were assigned before; what was given up is late."""
        known = self._close(ring, group, CallKind(asked, key is not None), count)
        self.late += count - known
        if known:
            self._count(group, known, outcome, bucket)
            failed = outcome is CallOutcome.ERROR
            self._windows.end(group, known, bucket, failed=failed, key=_of(ring, key))

    def record(self, group: Group, count: int, outcome: CallOutcome, bucket: int) -> None:
        """Note calls that are told as a whole: assigned and over."""
        self._tally(group).assigned += count
        self._count(group, count, outcome, bucket)
        self._windows.assign(group, count)
        self._windows.end(group, count, bucket, failed=outcome is CallOutcome.ERROR)

    def gone(self, ring: str, now: int) -> None:
        """Give up what is open in a process that is gone: what had begun has failed."""
        for (group, kind), count in self._open.pop(ring, {}).items():
            self._give_up(ring, group, kind, count, now)

    def expire(self, now: int) -> None:
        """Give up what is open for too long; `now` is the slice that is not over yet."""
        for ring, there in self._open.items():
            for (group, kind), count in list(there.items()):
                if group.slice + 1 + TIMEOUT_SLICES <= now:
                    del there[group, kind]
                    self._give_up(ring, group, kind, count, now)

    def take(self) -> dict[Group, Tally]:
        """Return what is new since it was last taken."""
        news, self._news = self._news, {}
        return news

    def _close(self, ring: str, group: Group, kind: CallKind, count: int) -> int:
        """Return how many of these were open, and take them off."""
        there = self._open.get(ring, {})
        left = there.get((group, kind), 0)
        known = min(left, count)
        if known == left:
            there.pop((group, kind), None)
        else:
            there[group, kind] = left - known
        return known

    def _give_up(self, ring: str, group: Group, kind: CallKind, count: int, now: int) -> None:
        seconds = max(now - group.slice, 0) / SLICES_PER_SECOND
        bucket = latency_bucket(seconds * 1000)
        if kind.asked:
            self._tally(group).unreported += count
        else:
            self._count(group, count, CallOutcome.ERROR, bucket)
        if kind.keyed:
            self._windows.give_up_keys(ring, group, bucket, asked=kind.asked)
        elif kind.asked:
            self._windows.forget(group, count)
        else:
            self._windows.end(group, count, bucket, failed=True)

    def _count(self, group: Group, count: int, outcome: CallOutcome, bucket: int) -> None:
        tally = self._tally(group)
        tally.calls += count
        tally.errors += count if outcome is CallOutcome.ERROR else 0
        tally.cancelled += count if outcome is CallOutcome.CANCELLED else 0
        tally.latency.add(bucket, count)

    def _tally(self, group: Group) -> Tally:
        return self._news.setdefault(group, Tally())

    def to_list(self) -> list[Any]:
        """Return what is open as JSON has it; the tallies are to be taken before."""
        return [[ring, *group, *kind, count] for ring, group, kind, count in self._entries()]

    def _entries(self) -> Iterator[tuple[str, Group, CallKind, int]]:
        for ring, there in self._open.items():
            for (group, kind), count in there.items():
                yield ring, group, kind, count

    @classmethod
    def from_list(cls, windows: Windows, kept: Iterable[Any]) -> CallTracker:
        """Return what was kept."""
        calls = cls(windows)
        for ring, epoch, piece, canary, asked, keyed, count in kept:
            there = calls._open.setdefault(ring, {})
            there[Group(epoch, piece, canary), CallKind(asked, keyed)] = count
        return calls


def _of(ring: str, key: int | None) -> RingKey | None:
    return None if key is None else (ring, key)
