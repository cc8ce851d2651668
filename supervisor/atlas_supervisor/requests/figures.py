"""Figures of an instance's last minute, and its counts by second."""

from __future__ import annotations

from collections import deque

from atlas_supervisor.model.requests import (
    SEALED_AFTER_SECONDS,
    RequestCounts,
    RequestFigures,
    RequestSecond,
    RequestTotals,
)

WINDOW_SECONDS = 60
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
        self._seconds: dict[int, RequestCounts] = {}
        self._recent: deque[tuple[float, RequestTotals]] = deque()

    def add(self, more: RequestTotals, now: float) -> None:
        """Add what was read now."""
        self.totals.add(more)
        self.added_at = now
        self._recent.append((now, more))
        while self._recent[0][0] <= now - WINDOW_SECONDS:
            self._recent.popleft()

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
