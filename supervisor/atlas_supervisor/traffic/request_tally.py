"""Counts the requests that the relay sees in plain HTTP/1, for a worker that does not count. Pure.

As in a request file, a request belongs to the second in which it began.
"""

from __future__ import annotations

from typing import NamedTuple

from atlas_supervisor.model.requests import FirstRequests, RequestCounts, RequestTotals
from atlas_worker.contract import latency_bucket
from atlas_worker.contract.addresses import Drawn, address_key
from atlas_worker.contract.request_file import (
    ADDRESS_FAILED,
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
    addresses: dict[int, dict[int, int]]
    """Where addresses are drawn: the outcome of the first request of each, as a file lists them."""


def _nothing() -> Tallied:
    return Tallied(RequestTotals(), {}, {}, {})


class RequestTally:
    """The requests of one slot. Times are `time.monotonic()`."""

    def __init__(self) -> None:
        self.secret = b""
        """What addresses are hashed with, if they are drawn, and not connections."""
        self._listed: tuple[int, set[int]] = (0, set())
        self.drawn = True
        """False if some connections are not drawn between two versions, but a tester's."""
        self._new = _nothing()

    def connected(self, since: float, client: str) -> float:
        """Return the beginning of a connection with its address, for `begin`."""
        key = address_key(client, self.secret)
        return Drawn(since, key) if key else 0.0

    def begin(self, now: float, since: float = 0.0) -> float:
        """Count a request that begins; return the time to end it with. 0 stands for uncounted.

        `since` is when its connection began, if it is the first request of one that was drawn. The
        time of a first request is negative, as in the kit's counter.
        """
        self._add(now, RequestCounts(begun=1))
        if not self.drawn or now - since > FIRST_WITHIN_SECONDS:
            return now
        if isinstance(since, Drawn):
            return self._begin_address(now, since.key)
        self._first(now).begun += 1
        return -now

    def _begin_address(self, now: float, key: int) -> float:
        second = int(now)
        if self._listed[0] != second:
            self._listed = (second, set())
        if key in self._listed[1]:
            return now
        self._listed[1].add(key)
        self._new.addresses.setdefault(second, {})[key] = 0
        return Drawn(-now, key)

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
            latency = latency_class(latency_bucket((now + began) * 1000))
            if isinstance(began, Drawn):
                outcome = latency + 1 + ADDRESS_FAILED * failed
                self._new.addresses.setdefault(int(-began), {})[began.key] = outcome
            else:
                self._first(-began).end(latency, failed=int(failed))
        return abs(began)

    def _add(self, began: float, counts: RequestCounts, *, slow: bool = False) -> None:
        self._new.totals.counts += counts
        if not slow:
            seconds, second = self._new.seconds, int(began)
            seconds[second] = seconds.get(second, RequestCounts()) + counts
