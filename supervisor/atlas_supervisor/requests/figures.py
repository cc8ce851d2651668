"""Figures of requests: of an instance by second and of late, of versions by minute for an hour.

The minutes of earlier daemons are read from the database when they are first asked for. A minute
that is over never changes, so its figures are computed once; only those of the present one are
computed each time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import count

from atlas_supervisor.model.requests import (
    SEALED_AFTER_SECONDS,
    RecentRequests,
    RequestCounts,
    RequestFigures,
    RequestHour,
    RequestMinute,
    RequestSecond,
    RequestTotals,
    VersionMinute,
)
from atlas_supervisor.store.requests import RequestStore
from atlas_supervisor.system.clock import steady_time

WINDOW_SECONDS = 60
RECENT_SECONDS = 300
KEPT_SECONDS = 600


class InstanceCounts:
    """What one instance has counted: in all, by second, and of late."""

    def __init__(self, slot: str, version: str, totals: RequestTotals, since: float) -> None:
        self.slot = slot
        self.version = version
        self.totals = totals
        self.added_at = since
        """When the last file of it was read."""
        self._since = since
        self._has_gap = bool(totals.counts.begun)
        """Whether an earlier daemon has counted: what it did not save came at no known time."""
        self._gap_read_at: float | None = None
        self._seconds: dict[int, RequestCounts] = {}
        self._recent: deque[tuple[float, RequestTotals]] = deque()

    def add(self, more: RequestTotals, now: float) -> bool:
        """Add what was read now; return whether it came of late, not while no daemon looked."""
        self.totals.add(more)
        self.added_at = now
        if self._has_gap and self._gap_read_at in {None, now}:
            self._gap_read_at = now
            return False
        self._recent.append((now, more))
        while self._recent[0][0] <= now - WINDOW_SECONDS:
            self._recent.popleft()
        return True

    def add_second(self, second: int, counts: RequestCounts) -> None:
        """Add to the requests that began in a second."""
        self._seconds[second] = self._seconds.get(second, RequestCounts()) + counts
        if len(self._seconds) > KEPT_SECONDS:
            del self._seconds[min(self._seconds)]

    def seconds(self, since: int, now: float) -> list[RequestSecond]:
        """Return the seconds from `since` on in which requests have begun, oldest first."""
        return [
            RequestSecond(second, counts, sealed=second + SEALED_AFTER_SECONDS <= now)
            for second, counts in sorted(self._seconds.items())
            if second >= since
        ]

    def figures(self, now: float) -> RequestFigures:
        """Return the figures of the last minute, or of the time since the first reading."""
        last = RequestTotals()
        for moment, more in self._recent:
            if moment > now - WINDOW_SECONDS:
                last.add(more)
        p50, p95, p99 = (
            None if value is None else round(value, 3)
            for value in last.latency.quantiles(0.5, 0.95, 0.99)
        )
        share = last.counts.error_share
        seconds = min(max(now - self._since, 1.0), WINDOW_SECONDS)
        return RequestFigures(
            per_second=round(last.counts.begun / seconds, 2),
            error_share=None if share is None else round(share, 4),
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
        )


class RecentCounts:
    """What all instances have counted in the last five minutes, those that are gone too."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._readings: deque[tuple[float, RequestCounts]] = deque()

    def add(self, counts: RequestCounts, now: float) -> None:
        """Add what one instance has counted since the reading before."""
        if self._readings and self._readings[-1][0] == now:
            counts += self._readings.pop()[1]
        self._readings.append((now, counts))

    def view(self, now: float) -> RecentRequests:
        """Return the sum, with the time that it is about."""
        while self._readings and self._readings[0][0] <= now - RECENT_SECONDS:
            self._readings.popleft()
        counts = sum((each for _, each in self._readings), RequestCounts())
        return RecentRequests(
            seconds=min(max(round(now - self._since), 1), RECENT_SECONDS),
            requests=counts.begun,
            failed=counts.failed,
        )


MINUTE_SECONDS, HOUR_SECONDS = 60, 3600

_Key = tuple[int, str]
"""A minute's beginning in Unix time, and a version: which slot had it does not matter."""


class RequestHistory:
    """The minutes of the last hour, and what belongs to the present one."""

    def __init__(self, store: RequestStore) -> None:
        self._store = store
        self._began = steady_time()
        """When that which is not written yet began."""
        self._unwritten: dict[tuple[str, str], RequestTotals] = {}
        """By slot and version."""
        self._totals: dict[_Key, RequestTotals] | None = None
        """What is written; None until it is asked for."""
        self._views: dict[_Key, VersionMinute] = {}
        self._numbers: dict[str, int] = {}

    # Writing.

    def note(self, slot: str, version: str, more: RequestTotals) -> None:
        """Add what was read just now."""
        self._unwritten.setdefault((slot, version), RequestTotals()).add(more)

    def take(self) -> list[RequestMinute]:
        """Return the counts to be written, as rows of the minute in which they began.

        A write comes early for a new instance: the minute goes on after it, in another row.
        """
        minute, unwritten = self._present, self._unwritten
        self._began, self._unwritten = steady_time(), {}
        return [
            RequestMinute(minute, slot, version, totals)
            for (slot, version), totals in unwritten.items()
        ]

    def give_back(self, rows: Iterable[RequestMinute]) -> None:
        """Take rows back that could not be written: they are written with the next ones."""
        for row in rows:
            self.note(row.slot, row.version, row.totals)

    def written(self, rows: Iterable[RequestMinute]) -> None:
        """Note that rows were written."""
        if self._totals is not None:
            for row in rows:
                self._totals.setdefault((row.minute, row.version), RequestTotals()).add(row.totals)
                self._views.pop((row.minute, row.version), None)

    def unwritten(self, version: str) -> RequestTotals:
        """Return the counts of a version since the last write."""
        total = RequestTotals()
        for (_, of_version), totals in self._unwritten.items():
            if of_version == version:
                total.add(totals)
        return total

    @property
    def _present(self) -> int:
        return int(self._began) // MINUTE_SECONDS * MINUTE_SECONDS

    # The last hour.

    async def last_hour(self, uncounted: list[str]) -> RequestHour:
        """Return the last hour by version, with its switches. Raises StoreError."""
        now = steady_time()
        since = int(now - HOUR_SECONDS) // MINUTE_SECONDS * MINUTE_SECONDS
        if self._totals is None:
            rows = await self._store.minutes(None, since, int(now) + MINUTE_SECONDS)
            self._totals = {}
            self.written(rows)
        for key in [key for key in self._totals if key[0] < since]:
            del self._totals[key]
            self._views.pop(key, None)
        present = dict.fromkeys((self._present, version) for _, version in self._unwritten)
        keys = sorted(dict.fromkeys([*self._totals, *present]), key=lambda key: key[0])
        self._number({version: None for _, version in keys})
        since_ts = datetime.fromtimestamp(since, UTC)
        return RequestHour(
            since_ts=since_ts,
            until_ts=datetime.fromtimestamp(now, UTC),
            minutes=[
                self._changing(key, now) if key in present else self._settled(key, now)
                for key in keys
            ],
            versions=self._numbers.copy(),
            switches=await self._store.switches(since_ts),
            uncounted=uncounted,
        )

    def _number(self, versions: Iterable[str]) -> None:
        """Give each version a number that it keeps, and take it from those that are gone."""
        known = {name: self._numbers[name] for name in versions if name in self._numbers}
        free = (number for number in count() if number not in self._numbers.values())
        self._numbers = {name: known[name] if name in known else next(free) for name in versions}

    def _settled(self, key: _Key, now: float) -> VersionMinute:
        if (found := self._views.get(key)) is None:
            found = _view(key, (self._totals or {})[key], now)
            if found.seconds == MINUTE_SECONDS:
                self._views[key] = found
        return found

    def _changing(self, key: _Key, now: float) -> VersionMinute:
        totals = self.unwritten(key[1])
        if (written := (self._totals or {}).get(key)) is not None:
            totals.add(written)
        return _view(key, totals, now)


def _view(key: _Key, totals: RequestTotals, now: float) -> VersionMinute:
    minute, version = key
    share = totals.counts.error_share
    p50, p95, p99 = (
        None if value is None else round(value, 3)
        for value in totals.latency.quantiles(0.5, 0.95, 0.99)
    )
    return VersionMinute(
        ts=datetime.fromtimestamp(minute, UTC),
        seconds=round(min(max(now - minute, 1.0), MINUTE_SECONDS), 1),
        version=version,
        requests=totals.counts.begun,
        failed=totals.counts.failed,
        error_share=None if share is None else round(share, 5),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
    )
