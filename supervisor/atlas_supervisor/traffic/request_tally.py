"""Counts the requests that the relay sees in plain HTTP/1, for a worker that does not count. Pure.

As in a request file, a request belongs to the second in which it began.
"""

from __future__ import annotations

from typing import NamedTuple

from atlas_supervisor.model.requests import FirstRequests, RequestCounts, RequestTotals
from atlas_worker.contract import latency_bucket
from atlas_worker.contract.request_file import (
    CLASSES,
    FIRST_WITHIN_SECONDS,
    SLOW_SECONDS,
    latency_class,
)


class Tallied(NamedTuple):
    """What was counted since the last time."""

    totals: RequestTotals
    seconds: dict[int, RequestCounts]
    firsts: dict[int, FirstRequests]


def _nothing() -> Tallied:
    return Tallied(RequestTotals(), {}, {})


class RequestTally:
    """The requests of one slot. Times are `time.monotonic()`."""

    def __init__(self) -> None:
        self.drawn = True
        """False if some connections are not drawn between two versions, but a tester's."""
        self._new = _nothing()

    def begin(self, now: float, since: float = 0.0) -> float:
        """Count a request that begins; return the time to end it with. 0 stands for uncounted.

        `since` is when its connection began, if it is the first request of one that was drawn. The
        time of a first request is negative, as in the kit's counter.
        """
        self._add(now, RequestCounts(begun=1))
        if not self.drawn or now - since > FIRST_WITHIN_SECONDS:
            return now
        self._first(now).begun += 1
        return -now

    def end(self, began: float, now: float, status: int) -> None:
        """Count a response that has ended."""
        if not began:
            return
        began = self._end_first(began, now, failed=status >= 100 * CLASSES)
        classes = [0] * CLASSES
        classes[min(max(status // 100, 1), CLASSES) - 1] = 1
        self._add(began, RequestCounts(classes=tuple(classes)), slow=now - began >= SLOW_SECONDS)
        self._new.totals.latency.add(latency_bucket((now - began) * 1000))

    def lose(self, began: float, now: float, *, by_client: bool) -> None:
        """Count a request whose connection was closed before its response had ended."""
        if not began:
            return
        began = self._end_first(began, now, failed=not by_client)
        lost = RequestCounts(left=1) if by_client else RequestCounts(cut=1)
        self._add(began, lost, slow=now - began >= SLOW_SECONDS)

    def take(self) -> Tallied:
        """Return the counts since the last call."""
        taken, self._new = self._new, _nothing()
        return taken

    def _first(self, began: float) -> FirstRequests:
        return self._new.firsts.setdefault(int(began), FirstRequests())

    def _end_first(self, began: float, now: float, *, failed: bool) -> float:
        """Count the end of a request if it was a first one; return when it began."""
        if began < 0 and now + began < SLOW_SECONDS:
            bucket = latency_bucket((now + began) * 1000)
            self._first(-began).end(latency_class(bucket), failed=int(failed))
        return abs(began)

    def _add(self, began: float, counts: RequestCounts, *, slow: bool = False) -> None:
        self._new.totals.counts += counts
        if not slow:
            seconds, second = self._new.seconds, int(began)
            seconds[second] = seconds.get(second, RequestCounts()) + counts
