"""First requests of client addresses, of the instances that are compared. No I/O.

Where addresses are drawn between two versions (`TRAFFIC_STICKY=address`), the unit of evidence is
an address: the first request that it makes at a share. Each process lists the addresses of a
second, without a memory of earlier ones, so no process needs to know of steps, rounds or other
processes; the first one of all is found here (`KeyDraws`).

Invariants
- A key stands for an address in all processes of both versions, or they are not compared: the files
  name the secret that it is hashed with (`key_id`).
- Once the addresses of a second are drawn, none is added to it.
- What is remembered is lost with the daemon, or if it did not read for a minute: then `since`
  changes, and all addresses count anew in a round of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping

from atlas_supervisor.canary.stats.windows import KeyDraws
from atlas_supervisor.model.requests import SEALED_AFTER_SECONDS, FirstRequests
from atlas_supervisor.requests.firsts import Assigned, FirstRequestCounts
from atlas_worker.contract import latency_bucket
from atlas_worker.contract.request_file import (
    ADDRESS_FAILED,
    ADDRESSES,
    FIRST_CELLS,
    KEY_SHIFT,
    SECOND_SHIFT,
    WORD_BYTES,
    latency_class,
)

_RECORD = struct.Struct(f"<{FIRST_CELLS}Q")
_BYTES = FIRST_CELLS * WORD_BYTES
_COUNT = (1 << SECOND_SHIFT) - 1

Listed = dict[int, tuple[str, int]]
"""By key: the file that lists the address, and the outcome of its first request so far."""


class AddressCounts(FirstRequestCounts):
    """What was listed of two instances since they are compared."""

    def __init__(self, key_id: int) -> None:
        super().__init__(key_id)
        self._listed: dict[str, dict[int, Listed]] = {}
        self._drawn_before = 0
        """Seconds before this one are drawn."""
        self._draws = KeyDraws()
        self.overflown = 0

    def compare(self, *names: str) -> None:
        """List the addresses of these instances from the next reading on, and forget others."""
        if self.names != set(names):
            self._listed = {name: {} for name in names}
            self.start_round()
        super().compare(*names)

    def start_round(self) -> None:
        """Let all addresses count anew."""
        self._draws, self.overflown = KeyDraws(), 0

    def assigned(self, second: int, weight: float, new: str, old: str) -> list[Assigned]:
        """Draw the addresses of a second; return those that are evidence, by their chance."""
        self._drawn_before = max(self._drawn_before, second + 1)
        by_chance: dict[float, Assigned] = {}
        for name in (new, old):
            for key in (listed := self._listed[name].get(second, {})).copy():
                chance = self._draws.draw(weight, key, canary=name == new)
                if chance is None:
                    del listed[key]
                    continue
                keys = by_chance.setdefault(chance, Assigned(chance, [], []))
                (keys.new if name == new else keys.old).append(key)
        return list(by_chance.values())

    @property
    def overflow(self) -> int:
        """Addresses that did not count, as too many came in a second or in a round."""
        return self.overflown + self._draws.overflown

    def of(self, name: str, second: int, keys: Collection[int] = ()) -> FirstRequests:
        """Return the first requests of these addresses in a second."""
        found, listed = FirstRequests(), self._listed.get(name, {}).get(second, {})
        for key in keys:
            found.begun += 1
            if outcome := listed[key][1] if key in listed else 0:
                failed = bool(outcome & ADDRESS_FAILED)
                found.end((outcome & ~ADDRESS_FAILED) - 1, failed=failed)
        return found

    # Readings.

    def begin(self, since: float, now: float, counting: Iterable[str]) -> None:
        """Begin with what was read in this time; `counting` are instances with living processes."""
        super().begin(since, now, counting)
        for seconds in self._listed.values():
            for second in [each for each in seconds if self._is_sealed(each - 2)]:
                del seconds[second]

    def _is_sealed(self, second: int) -> bool:
        return second + SEALED_AFTER_SECONDS < int(self._read_at)

    def read(self, name: str, file: str, cells: bytes, *, ended: bool) -> None:
        """Add what is new in a file of an instance; `ended` if its process has."""
        before = self._files.get(file, b"")
        for place in range(0, len(cells), _BYTES):
            record = cells[place : place + _BYTES]
            if ended or record != before[place : place + _BYTES]:
                self._read(name, file, _RECORD.unpack(record), ended=ended)
                if before:
                    self._count_overflow(before, record, place)
        self._files[file] = cells
        if ended:
            del self._files[file]

    def _read(self, name: str, file: str, record: tuple[int, ...], *, ended: bool) -> None:
        second, count = record[0] >> SECOND_SHIFT, min(record[0] & _COUNT, ADDRESSES)
        if second > self._read_at or self._is_sealed(second):
            return
        cut = 0
        if ended:
            age = self._read_at - second - 1
            cut = ADDRESS_FAILED | (latency_class(latency_bucket(age * 1000)) + 1)
        entries: dict[int, int] = {}
        for each in record[1 : count + 1]:  # two threads may have listed one twice
            entries.setdefault(each >> KEY_SHIFT, each & 0xFF or cut)
        self._list(name, file, second, entries)

    def _count_overflow(self, before: bytes, record: bytes, place: int) -> None:
        (head,), (old,) = (struct.unpack_from("<Q", *of) for of in ((record,), (before, place)))
        known = old & _COUNT if head >> SECOND_SHIFT == old >> SECOND_SHIFT else 0
        self.overflown += max((head & _COUNT) - max(known, ADDRESSES), 0)

    def add_addresses(self, name: str, seconds: Mapping[int, Mapping[int, int]]) -> None:
        """Add addresses that the relay has listed of an instance, and their outcomes."""
        for second, entries in seconds.items():
            self._list(name, "", second, entries)

    def _list(self, name: str, file: str, second: int, entries: Mapping[int, int]) -> None:
        if second < self.since:
            return
        listed = self._listed[name].setdefault(second, {})
        for key, outcome in entries.items():
            first, known = listed.get(key) or (file, 0)
            if first == file and (key in listed or second >= self._drawn_before):
                listed[key] = first, known or outcome
