"""First requests of addresses: what processes list, and what is the first of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from atlas_supervisor.model.requests import FirstRequests
from atlas_supervisor.requests.addresses import AddressCounts
from atlas_supervisor.requests.firsts import Assigned
from atlas_worker import request_counter
from atlas_worker.contract import latency_bucket
from atlas_worker.contract import request_file as layout
from atlas_worker.contract.addresses import Drawn
from atlas_worker.contract.request_file import latency_class
from atlas_worker.request_counter import counting_addresses

NEW, OLD = "green-2", "blue-1"
QUICK = latency_class(latency_bucket(10.0))


class Process:
    """A worker's process with the kit's own counting, on a clock that the test moves."""

    def __init__(self, clock: SimpleNamespace, file: str) -> None:
        self._clock, self.file = clock, file
        self._cells = memoryview(bytearray(layout.ALL_CELLS * layout.WORD_BYTES)).cast("Q")
        self.begin, self.end = counting_addresses(self._cells)

    def ask(self, key: int, at: float, status: int | None = 200, took: float = 0.01) -> float:
        """Answer the first request of a connection from this address, if there is a status."""
        self._clock.now = at
        began = self.begin(Drawn(at, key))
        if status is not None:
            self._clock.now = at + took
            self.end(began, status)
        return began

    @property
    def listed(self) -> bytes:
        return bytes(self._cells.cast("B")[layout.FIRSTS * layout.WORD_BYTES :])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(request_counter, "monotonic", lambda: found.now)
    return found


@pytest.fixture
def counts() -> AddressCounts:
    """Return counts that were read once, at 1000.5."""
    found = AddressCounts(1)
    found.compare(NEW, OLD)
    found.begin(1000.4, 1000.5, [NEW, OLD])
    return found


def read(counts: AddressCounts, now: float, **processes: list[Process]) -> None:
    counts.begin(now, now, [NEW, OLD])
    for name, of in ((NEW, processes.get("new", [])), (OLD, processes.get("old", []))):
        for each in of:
            counts.read(name, each.file, each.listed, ended=False)


def keys(assigned: list[Assigned]) -> list[tuple[float, list[int], list[int]]]:
    return [(round(each.chance, 3), each.new, each.old) for each in assigned]


def test_an_address_counts_once_over_seconds_and_processes(
    counts: AddressCounts, clock: SimpleNamespace
) -> None:
    one, other = Process(clock, "a"), Process(clock, "b")
    one.ask(7, 1001.1, 500)
    one.ask(7, 1001.2)
    other.ask(7, 1001.3)
    other.ask(8, 1001.4)
    one.ask(8, 1002.1, 500)
    read(counts, 1003.9, new=[one, other])

    assert keys(counts.assigned(1001, 0.25, NEW, OLD)) == [(0.25, [7, 8], [])]
    assert counts.of(NEW, 1001, [7, 8]) == FirstRequests(2, 1, {QUICK: 2})
    assert counts.assigned(1002, 0.25, NEW, OLD) == []


def test_an_address_is_drawn_anew_when_the_share_has_grown(
    counts: AddressCounts, clock: SimpleNamespace
) -> None:
    new, old = Process(clock, "new"), Process(clock, "old")
    new.ask(1, 1001.1)
    old.ask(2, 1001.2)
    old.ask(3, 1001.3)
    read(counts, 1002.9, new=[new], old=[old])
    assert keys(counts.assigned(1001, 0.2, NEW, OLD)) == [(0.2, [1], [2, 3])]

    new.ask(1, 1010.1)  # no draw: it stays
    new.ask(2, 1010.2)
    old.ask(3, 1010.3)
    old.ask(4, 1010.4)
    read(counts, 1011.9, new=[new], old=[old])

    assert keys(counts.assigned(1010, 0.6, NEW, OLD)) == [(0.5, [2], [3]), (0.6, [], [4])]
    counts.start_round()
    new.ask(1, 1020.1)
    read(counts, 1021.9, new=[new])
    assert keys(counts.assigned(1020, 0.6, NEW, OLD)) == [(0.6, [1], [])]


def test_an_outcome_is_that_of_the_request_that_was_drawn(
    counts: AddressCounts, clock: SimpleNamespace
) -> None:
    one, other = Process(clock, "a"), Process(clock, "b")
    began = one.ask(7, 1001.9, None)
    other.ask(7, 1001.95, 500)
    read(counts, 1003.0, new=[one, other])
    counts.assigned(1001, 0.5, NEW, OLD)
    assert counts.of(NEW, 1001, [7]) == FirstRequests(1)
    clock.now = 1003.5
    one.end(began, 200)
    read(counts, 1004.0, new=[one, other])

    assert counts.of(NEW, 1001, [7]).ended == 1
    assert counts.of(NEW, 1001, [7]).failed == 0


def test_a_process_that_ends_leaves_its_open_requests_as_failed(
    counts: AddressCounts, clock: SimpleNamespace
) -> None:
    process = Process(clock, "a")
    process.ask(7, 1001.5, None)
    process.ask(8, 1001.6)
    read(counts, 1003.0, new=[process])
    counts.assigned(1001, 0.5, NEW, OLD)
    counts.begin(1004.0, 1004.0, [OLD])
    counts.read(NEW, "a", process.listed, ended=True)

    found = counts.of(NEW, 1001, [7, 8])
    assert (found.begun, found.failed, found.ended) == (2, 1, 2)


def test_late_and_unread_requests_are_no_evidence(
    counts: AddressCounts, clock: SimpleNamespace
) -> None:
    process = Process(clock, "a")
    process.ask(7, 1000.3)  # before the first reading
    process.ask(8, 1001.5)
    read(counts, 1002.9, new=[process])
    assert counts.assigned(1000, 0.5, NEW, OLD) == []
    assert keys(counts.assigned(1001, 0.5, NEW, OLD)) == [(0.5, [8], [])]
    process.ask(9, 1001.9)  # its second is drawn already
    read(counts, 1003.9, new=[process])
    assert counts.of(NEW, 1001, [9]) == FirstRequests(1)
    since = counts.since
    counts.begin(1100.0, 1100.0, [NEW])  # the daemon was suspended for a minute and a half
    assert counts.since > since


def test_addresses_beyond_the_list_are_counted_and_no_evidence(
    counts: AddressCounts, clock: SimpleNamespace
) -> None:
    process = Process(clock, "a")
    read(counts, 1001.0, new=[process])
    for key in range(1, layout.ADDRESSES + 1):
        process.ask(key, 1001.1)
    read(counts, 1001.5, new=[process])
    for key in range(1000, 1005):
        process.ask(key, 1001.6)
    read(counts, 1003.0, new=[process])
    read(counts, 1004.0, new=[process])

    (assigned,) = counts.assigned(1001, 0.5, NEW, OLD)
    assert len(assigned.new) == layout.ADDRESSES
    assert counts.overflow == 5
    for now in (1060.0, 1120.0):
        read(counts, now, new=[process])
    process.ask(1000, 1001.0 + layout.SECONDS)  # the same cells, two minutes later
    read(counts, 1003.0 + layout.SECONDS, new=[process])
    later = 1001 + layout.SECONDS
    assert keys(counts.assigned(later, 0.5, NEW, OLD)) == [(0.5, [1000], [])]


def test_a_damaged_list_is_left_out(counts: AddressCounts) -> None:
    garbage = b"\xff" * (layout.SECONDS * layout.FIRST_CELLS * layout.WORD_BYTES)
    counts.begin(1002.0, 1002.0, [NEW])
    counts.read(NEW, "a", garbage, ended=False)

    assert counts.assigned(1001, 0.5, NEW, OLD) == []
