"""Turns the cells of a request file into counts by the second in which requests began. Pure.

Theory. The cells of a second are used again after `SECONDS`, and only grow. So what is new in them
since the last reading belongs to the latest second that has these cells, provided that the reading
before was not too long ago: a request that began in an earlier second with the same cells has ended
in those of slow requests, or was written off as slow.

What was open when a process died is cut. In seconds, that are requests without an outcome; of those
that were slow already it is known only that there were so many.
"""

from __future__ import annotations

from collections.abc import Iterator

from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.requests import SEALED_AFTER_SECONDS, RequestCounts, RequestTotals
from atlas_worker.contract.request_file import (
    BEGUN,
    CLASSES,
    LATENCIES,
    LEFT,
    RECORD_CELLS,
    SECONDS,
    SLOW_RECORD,
)

LATE_SECONDS = SECONDS - SEALED_AFTER_SECONDS
"""After so long without a reading the new counts belong to no known second."""

Cells = tuple[int, ...]


def added(before: Cells, cells: Cells, now: int) -> Iterator[tuple[int | None, RequestCounts]]:
    """Yield the new counts by second; None stands for the outcomes of slow requests.

    `now` is the second of the reading: not earlier than any second that cells were changed in.
    """
    for place in range(0, SLOW_RECORD + RECORD_CELLS, RECORD_CELLS):
        old, new = before[place : place + RECORD_CELLS], cells[place : place + RECORD_CELLS]
        if old != new:
            second = None
            if place != SLOW_RECORD:
                second = now - (now - place // RECORD_CELLS) % SECONDS
            yield second, _counts([late - early for early, late in zip(old, new, strict=True)])


def added_latency(before: Cells, cells: Cells) -> Histogram:
    """Return the latencies of what has ended between two readings."""
    pairs = zip(before[LATENCIES:], cells[LATENCIES:], strict=True)
    return Histogram((bucket, new - old) for bucket, (old, new) in enumerate(pairs) if new != old)


def totals_of(before: Cells, cells: Cells) -> RequestTotals:
    """Return everything that was added between two readings."""
    counts = RequestCounts.sum(counts for _, counts in added(before, cells, 0))
    return RequestTotals(counts, added_latency(before, cells))


def left_open(cells: Cells) -> int:
    """Return how many requests have begun and have no outcome."""
    counts = _counts([sum(cells[cell:LATENCIES:RECORD_CELLS]) for cell in range(RECORD_CELLS)])
    return counts.open


def _counts(record: list[int]) -> RequestCounts:
    return RequestCounts(
        begun=record[BEGUN], classes=tuple(record[1 : CLASSES + 1]), left=record[LEFT]
    )
