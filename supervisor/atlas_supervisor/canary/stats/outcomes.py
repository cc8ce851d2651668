"""Tracks each call of each process from its assignment to its outcome.

Processes report single events. From them come tallies, which add up over processes and time, and
the outcomes that `windows` puts in order. A call that has not ended after 60 s, or whose process
has exited, has failed; a decision that was only asked for stays unreported.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from atlas_supervisor.canary.stats.counts import CallKey, Ended, Group, first_of
from atlas_supervisor.canary.stats.windows import SLICES_PER_SECOND, TIMEOUT_SLICES, Windows
from atlas_supervisor.model.histogram import Histogram
from atlas_worker.contract import bucket_milliseconds, latency_bucket
from atlas_worker.contract.ring import Outcome

_TIMEOUT_BUCKET = latency_bucket(TIMEOUT_SLICES / SLICES_PER_SECOND * 1000)


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

    def count(self, ended: Iterable[Ended]) -> None:
        """Add calls that have ended. A cancelled call is no failure: it took as long as it did."""
        for outcome, bucket, count in ended:
            self.calls += count
            self.errors += count if outcome == Outcome.ERROR else 0
            self.cancelled += count if outcome == Outcome.CANCELLED else 0
            self.latency.add(bucket, count)


class CallKind(NamedTuple):
    """How calls were assigned: with a decision alone (`asked`), and with a key (`keyed`)."""

    asked: bool
    keyed: bool


class CallTracker:
    """All open calls, and the tallies since the last `pop_tallies`."""

    def __init__(self) -> None:
        self.windows: Mapping[int, Windows] = {}
        """Where the calls of an epoch are evidence; there is none for other epochs."""
        self._open: dict[str, dict[tuple[Group, CallKind], int]] = {}
        """By process, named by its ring."""
        self._tallies: dict[Group, Tally] = {}
        self.late = 0
        """Outcomes of calls that had timed out before."""

    def begin(
        self, ring: str, group: Group, count: int, *, asked: bool, key: CallKey | None = None
    ) -> None:
        """Add assigned calls; with `asked`, the outcome may never be reported."""
        kind = CallKind(asked, key is not None)
        calls = self._open.setdefault(ring, {})
        calls[group, kind] = calls.get((group, kind), 0) + count
        self._tally(group).assigned += count
        if (windows := self.windows.get(group.epoch)) is not None:
            windows.assign(group, count, asked=asked, key=key)

    def end(
        self,
        ring: str,
        group: Group,
        ended: Collection[Ended],
        *,
        asked: bool,
        key: CallKey | None = None,
    ) -> None:
        """Add outcomes of calls that were assigned before; after their timeout they are late."""
        kind, calls = CallKind(asked, key is not None), self._open.get(ring, {})
        count, left = sum([each.calls for each in ended]), calls.pop((group, kind), 0)
        self.late += max(count - left, 0)
        if left > count:
            calls[group, kind] = left - count
        elif left < count:
            ended = [*first_of(ended, left)]
        if ended:
            self._tally(group).count(ended)
            if (windows := self.windows.get(group.epoch)) is not None:
                windows.end(group, ended, asked=asked, key=key)

    def record(self, group: Group, ended: Ended) -> None:
        """Add calls that were only recorded, at their end; as evidence they count at their begin.

        One that has taken as long as the timeout is evidence of a failure, as any other call.
        """
        tally = self._tally(group)
        tally.assigned += ended.calls
        tally.count([ended])
        took = math.ceil(bucket_milliseconds(ended.bucket) / 1000 * SLICES_PER_SECOND)
        began = group._replace(slice=group.slice - min(took, TIMEOUT_SLICES))
        if ended.bucket >= _TIMEOUT_BUCKET:
            ended = ended._replace(outcome=Outcome.ERROR)
        if (windows := self.windows.get(group.epoch)) is not None:
            windows.record(began, ended)

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

    def _expire(self, ring: str, group: Group, kind: CallKind, count: int, now: int) -> None:
        seconds = max(now - group.slice, 0) / SLICES_PER_SECOND
        failed = Ended(Outcome.ERROR, latency_bucket(seconds * 1000), count)
        if kind.asked:
            self._tally(group).unreported += count
        else:
            self._tally(group).count([failed])
        if (windows := self.windows.get(group.epoch)) is None:
            return
        keys: list[CallKey | None] = [None]
        if kind.keyed:
            keys = [*windows.open_units(ring, group, asked=kind.asked)]
            failed = failed._replace(calls=1)
        for key in keys:
            if kind.asked:
                windows.drop_unreported(group, failed.calls, key=key)
            else:
                windows.end(group, [failed], key=key)

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
    def from_list(cls, saved: Iterable[Any]) -> CallTracker:
        """Return the saved open calls."""
        tracker = cls()
        for ring, epoch, slice_number, canary, asked, keyed, count in saved:
            calls = tracker._open.setdefault(ring, {})
            calls[Group(epoch, slice_number, canary), CallKind(asked, keyed)] = count
        return tracker
