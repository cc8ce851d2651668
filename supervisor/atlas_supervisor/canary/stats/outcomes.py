"""Tracks each call of each process from its assignment to its outcome.

Processes report single events. From them come tallies, which add up over processes and time, and
the outcomes that `windows` puts in order. A call that has not ended after 60 s, or whose process
has exited, has failed; a decision that was only asked for stays unreported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.canary.stats.windows import (
    SLICES_PER_SECOND,
    TIMEOUT_SLICES,
    CallKey,
    Group,
    Windows,
)
from atlas_worker.contract import bucket_milliseconds, latency_bucket

_TIMEOUT_BUCKET = latency_bucket(TIMEOUT_SLICES / SLICES_PER_SECOND * 1000)


class CallOutcome(Enum):
    """The outcome of a call."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"
    """Not a failure; it would have taken at least as long as it did."""


@dataclass
class Tally:
    """Counts of the calls of one group, or of several groups added up."""

    assigned: int = 0
    """Decisions, those without an outcome included."""
    unreported: int = 0
    """Decisions whose outcome was never reported."""
    calls: int = 0
    errors: int = 0
    cancelled: int = 0
    latency: Histogram = field(default_factory=Histogram)

    def add(self, other: Tally) -> None:
        """Add another tally to this one."""
        self.assigned += other.assigned
        self.unreported += other.unreported
        self.calls += other.calls
        self.errors += other.errors
        self.cancelled += other.cancelled
        self.latency.merge(other.latency)


class CallKind(NamedTuple):
    """How calls were assigned: with a decision alone (`asked`), and with a key (`keyed`)."""

    asked: bool
    keyed: bool


class CallTracker:
    """All open calls, and the tallies since the last `pop_tallies`."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._open: dict[str, dict[tuple[Group, CallKind], int]] = {}
        """By process, named by its ring."""
        self._tallies: dict[Group, Tally] = {}
        self.late = 0
        """Outcomes of calls that had timed out before."""

    @property
    def open(self) -> int:
        """How many calls have no outcome yet."""
        return sum(sum(each.values()) for each in self._open.values())

    def begin(
        self, ring: str, group: Group, count: int, *, asked: bool, key: CallKey | None = None
    ) -> None:
        """Add assigned calls; with `asked`, the outcome may never be reported."""
        kind = CallKind(asked, key is not None)
        calls = self._open.setdefault(ring, {})
        calls[group, kind] = calls.get((group, kind), 0) + count
        self._tally(group).assigned += count
        self._windows.assign(group, count, asked=asked, key=key)

    def end(
        self,
        ring: str,
        group: Group,
        count: int,
        outcome: CallOutcome,
        bucket: int,
        *,
        asked: bool,
        key: CallKey | None = None,
    ) -> None:
        """Add the outcome of calls that were assigned before; after their timeout it is late."""
        known = self._close(ring, group, CallKind(asked, key is not None), count)
        self.late += count - known
        if known:
            self._count(group, known, outcome, bucket)
            failed = outcome is CallOutcome.ERROR
            self._windows.end(group, known, bucket, failed=failed, asked=asked, key=key)

    def record(self, group: Group, count: int, outcome: CallOutcome, bucket: int) -> None:
        """Add calls that were only recorded, at their end; as evidence they count at their begin.

        One that has taken as long as the timeout is evidence of a failure, as any other call.
        """
        self._tally(group).assigned += count
        self._count(group, count, outcome, bucket)
        took = math.ceil(bucket_milliseconds(bucket) / 1000 * SLICES_PER_SECOND)
        began = group._replace(slice=group.slice - min(took, TIMEOUT_SLICES))
        failed = outcome is CallOutcome.ERROR or bucket >= _TIMEOUT_BUCKET
        self._windows.record(began, count, bucket, failed=failed)

    def process_exited(self, ring: str, now: int) -> None:
        """Close the open calls of a process that has exited; `now` is the current slice."""
        for (group, kind), count in self._open.pop(ring, {}).items():
            self._expire(ring, group, kind, count, now)

    def expire(self, now: int) -> None:
        """Close calls that have been open for too long; `now` is the current slice."""
        for ring, calls in self._open.items():
            for (group, kind), count in list(calls.items()):
                if group.slice + 1 + TIMEOUT_SLICES <= now:
                    del calls[group, kind]
                    self._expire(ring, group, kind, count, now)

    def pop_tallies(self) -> dict[Group, Tally]:
        """Return the tallies since the last call."""
        tallies, self._tallies = self._tallies, {}
        return tallies

    def _close(self, ring: str, group: Group, kind: CallKind, count: int) -> int:
        """Remove open calls; return how many of them were open."""
        calls = self._open.get(ring, {})
        left = calls.get((group, kind), 0)
        known = min(left, count)
        if known == left:
            calls.pop((group, kind), None)
        else:
            calls[group, kind] = left - known
        return known

    def _expire(self, ring: str, group: Group, kind: CallKind, count: int, now: int) -> None:
        seconds = max(now - group.slice, 0) / SLICES_PER_SECOND
        bucket = latency_bucket(seconds * 1000)
        if kind.asked:
            self._tally(group).unreported += count
        else:
            self._count(group, count, CallOutcome.ERROR, bucket)
        keys: list[CallKey | None] = [None]
        if kind.keyed:
            keys, count = list(self._windows.open_units(ring, group, asked=kind.asked)), 1
        for key in keys:
            if kind.asked:
                self._windows.drop_unreported(group, count, key=key)
            else:
                self._windows.end(group, count, bucket, failed=True, key=key)

    def _count(self, group: Group, count: int, outcome: CallOutcome, bucket: int) -> None:
        tally = self._tally(group)
        tally.calls += count
        tally.errors += count if outcome is CallOutcome.ERROR else 0
        tally.cancelled += count if outcome is CallOutcome.CANCELLED else 0
        tally.latency.add(bucket, count)

    def _tally(self, group: Group) -> Tally:
        tally = self._tallies.get(group)
        if tally is None:
            tally = self._tallies[group] = Tally()
        return tally

    def to_list(self) -> list[Any]:
        """Return the open calls as JSON values; `pop_tallies` comes first."""
        return [
            [ring, *group, *kind, count]
            for ring, calls in self._open.items()
            for (group, kind), count in calls.items()
        ]

    @classmethod
    def from_list(cls, windows: Windows, saved: Iterable[Any]) -> CallTracker:
        """Return the saved open calls."""
        tracker = cls(windows)
        for ring, epoch, slice_number, canary, asked, keyed, count in saved:
            calls = tracker._open.setdefault(ring, {})
            calls[Group(epoch, slice_number, canary), CallKind(asked, keyed)] = count
        return tracker
