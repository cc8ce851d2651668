"""First requests of connections by second, against requests that are counted one by one."""

from __future__ import annotations

import struct

import pytest

from atlas_supervisor.model.requests import FirstRequests
from atlas_supervisor.requests.firsts import FirstRequestCounts
from atlas_worker.contract import latency_bucket
from atlas_worker.contract import request_file as layout

NAME, OTHER = "green-2", "blue-1"
CLASS = layout.latency_class(latency_bucket(20.0))


class Cells:
    """The cells of a process, as the kit writes them."""

    def __init__(self) -> None:
        self._cells = [0] * (layout.SECONDS * layout.FIRST_CELLS)

    def begin(self, second: int, count: int = 1) -> None:
        self._cells[second % layout.SECONDS * layout.FIRST_CELLS + layout.FIRST_BEGUN] += count

    def end(self, second: int, *, failed: bool = False) -> None:
        record = second % layout.SECONDS * layout.FIRST_CELLS
        self._cells[record + layout.FIRST_FAILED] += failed
        self._cells[record + layout.FIRST_LATENCIES + CLASS] += 1

    def packed(self) -> bytes:
        return struct.pack(f"<{len(self._cells)}Q", *self._cells)


@pytest.fixture
def counts() -> FirstRequestCounts:
    """Return counts that were read once, at 1000.7."""
    found = FirstRequestCounts()
    found.compare(NAME, OTHER)
    found.begin(1000.6, 1000.7, [NAME])
    return found


def read(counts: FirstRequestCounts, cells: Cells, now: float, *, ended: bool = False) -> None:
    counts.begin(now - 0.1, now, [] if ended else [NAME])
    counts.read(NAME, "a.requests", cells.packed(), ended=ended)


def test_a_second_has_what_began_in_it_whenever_it_ends(counts: FirstRequestCounts) -> None:
    cells = Cells()
    cells.begin(1001, 3)
    cells.end(1001)
    read(counts, cells, 1001.7)
    assert counts.of(NAME, 1001) == FirstRequests(3, 0, {CLASS: 1})
    assert counts.whole_before() == 1001

    cells.begin(1040)
    cells.end(1001, failed=True)
    read(counts, cells, 1040.7)

    assert counts.of(NAME, 1001) == FirstRequests(3, 1, {CLASS: 2})
    assert counts.of(NAME, 1001).open == 1
    assert counts.of(NAME, 1040) == FirstRequests(1)
    assert counts.whole_before() == 1040
    assert counts.counting == {NAME}


def test_the_cells_of_a_second_are_used_again(counts: FirstRequestCounts) -> None:
    cells = Cells()
    for second in range(1001, 1001 + 2 * layout.SECONDS, 10):
        cells.begin(second)
        cells.end(second)
        read(counts, cells, second + 0.9)
        assert counts.of(NAME, second) == FirstRequests(1, 0, {CLASS: 1})


def test_requests_from_before_a_comparison_are_no_part_of_it() -> None:
    counts, cells = FirstRequestCounts(), Cells()
    for second in (990, 1000):
        cells.begin(second, 5)
    counts.compare(NAME, OTHER)
    read(counts, cells, 1000.7)
    cells.begin(1000, 5)
    cells.begin(1001, 2)
    cells.end(1000, failed=True)
    read(counts, cells, 1001.7)

    assert [counts.of(NAME, second).begun for second in (990, 1000, 1001)] == [0, 0, 2]
    assert counts.of(NAME, 1000).failed == 0


def test_after_a_late_reading_nothing_is_in_the_wrong_second(counts: FirstRequestCounts) -> None:
    cells = Cells()
    cells.begin(1001)
    read(counts, cells, 1001.7)
    cells.begin(1010)
    read(counts, cells, 1150.7)
    cells.begin(1151)
    cells.end(1010)
    read(counts, cells, 1151.7)

    assert counts.of(NAME, 1151) == FirstRequests(1)
    assert sum(counts.of(NAME, second).begun for second in range(900, 1151)) == 1


def test_requests_open_when_their_process_ends_have_failed(counts: FirstRequestCounts) -> None:
    cells = Cells()
    cells.begin(1001, 3)
    read(counts, cells, 1001.7)
    cells.end(1001)
    read(counts, cells, 1003.7, ended=True)

    found = counts.of(NAME, 1001)
    assert (found.begun, found.failed, found.ended, found.open) == (3, 2, 3, 0)
    slower = layout.latency_class(latency_bucket(1700.0))
    assert found.latency == {CLASS: 1, slower: 2}
    assert counts.counting == frozenset()


def test_a_new_process_counts_from_its_first_request_on(counts: FirstRequestCounts) -> None:
    cells = Cells()
    cells.begin(1001)
    read(counts, cells, 1001.7)
    other = Cells()
    other.begin(1002, 4)
    counts.begin(1002.6, 1002.7, [NAME])
    counts.read(NAME, "b.requests", other.packed(), ended=False)

    assert counts.of(NAME, 1002).begun == 4


def test_another_comparison_begins_with_nothing(counts: FirstRequestCounts) -> None:
    cells = Cells()
    cells.begin(1001)
    read(counts, cells, 1001.7)
    counts.compare(OTHER, NAME)
    assert counts.of(NAME, 1001).begun == 1  # it is the same

    counts.compare("green-3", NAME)

    assert counts.of(NAME, 1001).begun == 0
    assert counts.whole_before() == 0
    assert OTHER not in counts.names
