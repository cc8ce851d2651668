"""Counts the requests that the relay sees in plain HTTP/1, for a worker that does not count. Pure.

As in a request file, a request belongs to the second in which it began.
"""

from __future__ import annotations

from typing import NamedTuple

from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.requests import RequestCounts, RequestTotals
from atlas_worker.contract import latency_bucket
from atlas_worker.contract.request_file import CLASSES, SLOW_SECONDS


class Tallied(NamedTuple):
    """What was counted since the last time."""

    totals: RequestTotals
    seconds: dict[int, RequestCounts]


class RequestTally:
    """The requests of one slot. Times are `time.monotonic()`."""

    def __init__(self) -> None:
        self._new = Tallied(RequestTotals(), {})

    def begin(self, now: float) -> float:
        """Count a request that begins; return the time to end it with. 0 stands for uncounted."""
        self._add(now, RequestCounts(begun=1))
        return now

    def end(self, began: float, now: float, status: int) -> None:
        """Count a response that has ended."""
        if not began:
            return
        classes = [0] * CLASSES
        classes[min(max(status // 100, 1), CLASSES) - 1] = 1
        self._add(began, RequestCounts(classes=tuple(classes)), slow=now - began >= SLOW_SECONDS)
        self._new.totals.latency.add(latency_bucket((now - began) * 1000))

    def lose(self, began: float, now: float, *, by_client: bool) -> None:
        """Count a request whose connection was closed before its response had ended."""
        if not began:
            return
        lost = RequestCounts(left=1) if by_client else RequestCounts(cut=1)
        self._add(began, lost, slow=now - began >= SLOW_SECONDS)

    def take(self) -> Tallied:
        """Return the counts since the last call."""
        taken, self._new = self._new, Tallied(RequestTotals(RequestCounts(), Histogram()), {})
        return taken

    def _add(self, began: float, counts: RequestCounts, *, slow: bool = False) -> None:
        self._new.totals.counts += counts
        if not slow:
            seconds, second = self._new.seconds, int(began)
            seconds[second] = seconds.get(second, RequestCounts()) + counts
