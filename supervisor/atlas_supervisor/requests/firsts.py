"""First requests of connections by second, of the instances that are compared. No I/O.

A connection is drawn between two versions; its later requests are not. So its first request is the
unit of evidence, and of no use without a comparison: these cells are read only during one.

Invariants
- What a second has is what began in it, wholly or not at all: seconds that began before the first
  reading of a comparison, or before one that was late, have none.
- A process that ends leaves its open requests as failed, of the latency that they had reached.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from atlas_supervisor.model.requests import SEALED_AFTER_SECONDS, FirstRequests
from atlas_supervisor.requests.seconds import LATE_SECONDS
from atlas_worker.contract import latency_bucket
from atlas_worker.contract.request_file import (
    FIRST_BEGUN,
    FIRST_CELLS,
    FIRST_FAILED,
    FIRST_LATENCIES,
    SECONDS,
    WORD_BYTES,
    latency_class,
)

_RECORD = struct.Struct(f"<{FIRST_CELLS}Q")
_BYTES = FIRST_CELLS * WORD_BYTES
_NONE = bytes(SECONDS * _BYTES)
_GRACE_SECONDS = 0.5
"""A request that has read its clock may be counted this much later."""


class Assigned(NamedTuple):
    """First requests of a second that had the same chance of the new version."""

    chance: float
    new: list[int]
    """Keys of addresses, where addresses are drawn; else nothing, here and for the old version."""
    old: list[int]


class FirstRequestCounts:
    """What was counted of two instances since they are compared."""

    def __init__(self, key_id: int = 0) -> None:
        self.key_id = key_id
        """What files must name to be read: 0 where connections are drawn."""
        self.names: frozenset[str] = frozenset()
        """The instances that are compared."""
        self._seconds: dict[str, dict[int, FirstRequests]] = {}
        self._files: dict[str, bytes] = {}
        """The cells of each file that was read, by name."""
        self._open: dict[str, dict[int, FirstRequests]] = {}
        """What each file has had of late, for the end of its process."""
        self.since = 0
        """The first second that was read."""
        self._read_at = 0.0
        self._whole_before = 0
        self.counting: frozenset[str] = frozenset()
        """The instances that counted at the last reading, with a living process."""

    def compare(self, *names: str) -> None:
        """Count these instances from the next reading on, and forget others."""
        if self.names != set(names):
            self.names, self._seconds = frozenset(names), {name: {} for name in names}
            self._files, self._open = {}, {}
            self._read_at, self._whole_before = 0.0, 0

    def whole_before(self) -> int:
        """Return the first second of which more may be counted."""
        return self._whole_before

    def assigned(self, second: int, weight: float, new: str, old: str) -> list[Assigned]:
        """Return the requests of a second that are evidence; it must be a whole one."""
        if self.of(new, second).begun or self.of(old, second).begun:
            return [Assigned(weight, [], [])]
        return []

    def start_round(self) -> None:
        """Let all that is drawn count anew: of connections, each counts in any case."""

    @property
    def overflow(self) -> int:
        """Addresses that did not count, as too many came in a second or in a round."""
        return 0

    def of(self, name: str, second: int, _keys: Collection[int] = ()) -> FirstRequests:
        """Return the requests that began in a second."""
        return self._seconds.get(name, {}).get(second) or FirstRequests()

    # Readings, by the collector: `begin`, then each file and each instance that the relay counts.

    def begin(self, since: float, now: float, counting: Iterable[str]) -> None:
        """Begin with what was read in this time; `counting` are instances with living processes."""
        self._whole_before = int(since - _GRACE_SECONDS)
        if now - self._read_at > LATE_SECONDS:
            self.since = int(now) + 1
        self._read_at, self.counting = now, self.names & frozenset(counting)
        sealed = int(now) - SEALED_AFTER_SECONDS - SECONDS
        for seconds in (*self._seconds.values(), *self._open.values()):
            for second in [each for each in seconds if each < sealed]:
                del seconds[second]

    def read(self, name: str, file: str, cells: bytes, *, ended: bool) -> None:
        """Add what is new in a file of an instance; `ended` if its process has."""
        before = self._files.get(file)
        if before is None:  # of a process that is new, or everything is
            before = _NONE if int(self._read_at) >= self.since else cells
        own = self._open.setdefault(file, {})
        for second, more in added(before, cells, int(self._read_at)):
            self._add(name, second, more)
            own.setdefault(second, FirstRequests()).add(more)
        self._files[file] = cells
        if ended:
            self._cut(name, own)
            del self._files[file], self._open[file]

    def add(self, name: str, seconds: Mapping[int, FirstRequests]) -> None:
        """Add what the relay has counted of an instance."""
        for second, more in seconds.items():
            self._add(name, second, more)

    def add_addresses(self, name: str, seconds: Mapping[int, Mapping[int, int]]) -> None:
        """Add what the relay has listed of addresses: nothing where connections are drawn."""

    def _add(self, name: str, second: int, more: FirstRequests) -> None:
        if second >= self.since:
            self._seconds[name].setdefault(second, FirstRequests()).add(more)

    def _cut(self, name: str, seconds: Mapping[int, FirstRequests]) -> None:
        for second, counts in seconds.items():
            age = self._read_at - second - 1
            if counts.open and age < SEALED_AFTER_SECONDS:
                latency = latency_class(latency_bucket(age * 1000))
                failed = counts.open
                self._add(name, second, FirstRequests(0, failed, {latency: failed}))


def added(before: bytes, cells: bytes, now: int) -> Iterator[tuple[int, FirstRequests]]:
    """Yield what is new in the cells of first requests, by second; `now` is that of the reading."""
    for place in range(0, len(cells), _BYTES):
        new = cells[place : place + _BYTES]
        if new == before[place : place + _BYTES]:
            continue
        old = _RECORD.unpack_from(before, place)
        more = [late - early for early, late in zip(old, _RECORD.unpack(new), strict=True)]
        second = now - (now - place // _BYTES) % SECONDS
        latency = {at: count for at, count in enumerate(more[FIRST_LATENCIES:]) if count > 0}
        failed = min(max(more[FIRST_FAILED], 0), sum(latency.values()))
        yield second, FirstRequests(max(more[FIRST_BEGUN], 0), failed, latency)
