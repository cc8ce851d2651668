"""Counts by second, against requests that are counted one by one."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from atlas_supervisor.model.requests import SEALED_AFTER_SECONDS, RequestCounts
from atlas_supervisor.requests.count_file import NO_CELLS
from atlas_supervisor.requests.seconds import (
    LATE_SECONDS,
    Cells,
    added,
    left_open,
    totals_of,
)
from atlas_worker.contract import latency_bucket
from atlas_worker.contract import request_file as layout


class Request(NamedTuple):
    began: int
    took: int
    outcome: int


REQUESTS = st.lists(
    st.builds(Request, st.integers(1000, 1400), st.integers(0, 200), st.integers(1, 6)), max_size=60
)
PAUSES = st.lists(st.integers(1, LATE_SECONDS), min_size=1, max_size=20)


def cells_at(requests: list[Request], now: int) -> Cells:
    """Return the cells of a process that had these requests until now, as the kit writes them."""
    cells = [0] * layout.CELLS
    for began, took, outcome in requests:
        place = began % layout.SECONDS * layout.RECORD_CELLS
        if began <= now:
            cells[place] += 1
        if began + took <= now:
            cells[(layout.SLOW_RECORD if took >= layout.SLOW_SECONDS else place) + outcome] += 1
            if outcome != layout.LEFT:
                cells[layout.LATENCIES + latency_bucket(took * 1000.0)] += 1
    return tuple(cells)


def truth(requests: list[Request]) -> dict[int, RequestCounts]:
    """Return the sealed counts of each second."""
    found: dict[int, RequestCounts] = {}
    for began, took, outcome in requests:
        classes = [0] * layout.CLASSES
        in_time = took < layout.SLOW_SECONDS
        if in_time and outcome != layout.LEFT:
            classes[outcome - 1] = 1
        counts = RequestCounts(1, tuple(classes), left=int(in_time and outcome == layout.LEFT))
        found[began] = found.get(began, RequestCounts()) + counts
    return found


@given(REQUESTS, PAUSES)
def test_seconds_have_the_requests_that_began_in_them(
    requests: list[Request], pauses: list[int]
) -> None:
    now, cells, number = 999, NO_CELLS, 0
    changes = {moment for each in requests for moment in (each.began, each.began + each.took)}
    seconds: dict[int, RequestCounts] = {}
    total = RequestCounts()
    while now < 1400 + 200 + SEALED_AFTER_SECONDS:
        last, now = now, now + pauses[number % len(pauses)]
        number += 1
        if changes.isdisjoint(range(last + 1, now + 1)):
            continue  # the cells are those of the reading before: nothing is added
        before, cells = cells, cells_at(requests, now)
        for second, counts in added(before, cells, now):
            if second is not None:
                seconds[second] = seconds.get(second, RequestCounts()) + counts
        total += totals_of(before, cells).counts

    assert seconds == truth(requests)
    assert total.begun == len(requests)
    assert sum(total.classes) + total.left == len(requests)
    assert left_open(cells) == 0


def test_requests_without_an_outcome_are_open_wherever_they_began() -> None:
    requests = [Request(1000, 500, 2), Request(1100, 10, 5), Request(1100, 500, 2)]

    assert left_open(cells_at(requests, 1200)) == 2


def test_latency_is_of_what_has_ended_since_the_last_reading() -> None:
    requests = [Request(1000, 1, 2), Request(1001, 4, 2), Request(1001, 4, layout.LEFT)]
    before, cells = cells_at(requests, 1002), cells_at(requests, 1010)

    assert list(totals_of(before, cells).latency) == [(latency_bucket(4000.0), 1)]
