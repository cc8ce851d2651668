"""Reads all rings there are: what is new in each, and which process is gone.

A position is given back to the process only when all that was read before it is on the disk. So a
daemon that is killed reads again what it had not accounted for, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import structlog

from atlas_supervisor.canary.ring_reader import Positions, RingReader, RingRefusedError, ring_files
from atlas_supervisor.model.canary import RingRow
from atlas_supervisor.system import procfs
from atlas_worker.contract.ring import RING_SUFFIX, RingEvent, decode

log = structlog.get_logger(__name__)


class CollectedEvents(NamedTuple):
    """What one process has told since it was read last."""

    ring: str
    events: Mapping[RingEvent, int]
    keyed: Iterable[tuple[RingEvent, int]]
    ended: bool
    """Whether the process is gone, so that nothing more will come."""


@dataclass
class _TrackedRing:
    """A ring that is being read."""

    ring: RingReader
    read: Positions
    accounted: Positions
    dropped: int = 0
    ended: bool = False


class CallCollector:
    """The rings in one folder. `look` blocks on the disk, as do `accounted` and `close`."""

    def __init__(self, folder: Path, known: Iterable[RingRow]) -> None:
        self._folder = folder
        self._known = {row.ring: row for row in known}
        """Positions that the last daemon wrote down, of rings that were not opened yet."""
        self._followed: dict[str, _TrackedRing] = {}
        self._refused: set[str] = set()
        self._gone: list[str] = []
        """Rings whose files are removed, and of which nothing is to be kept any more."""
        self._dropped_before = 0

    @property
    def dropped(self) -> int:
        """How many events processes had no room for, those that are gone included."""
        return self._dropped_before + sum(each.dropped for each in self._followed.values())

    @property
    def news(self) -> bool:
        """Whether something is to be written down."""
        moved = (each.read != each.accounted or each.ended for each in self._followed.values())
        return bool(self._gone) or any(moved)

    def tidy(self) -> None:
        """Remove files that processes began to make and did not live to finish."""
        for path in self._folder.glob(f".*{RING_SUFFIX}.new"):
            pid = path.name.lstrip(".").partition("-")[0]
            if not pid.isdecimal() or procfs.start_ticks(int(pid)) is None:
                path.unlink(missing_ok=True)

    def look(self) -> list[CollectedEvents]:
        """Return what is new in every ring."""
        self._open_new()
        told = [self._read(name, each) for name, each in list(self._followed.items())]
        # A ring that the last daemon knew and that is not there any more: its process is, too.
        lost = [CollectedEvents(name, {}, (), ended=True) for name in self._known]
        self._gone += self._known
        self._known.clear()
        return [each for each in (*told, *lost) if each is not None]

    def _open_new(self) -> None:
        there = {path.name: path for path in ring_files(self._folder)}
        self._refused &= there.keys()
        for name, path in there.items():
            if name in self._followed or name in self._refused:
                continue
            try:
                ring = RingReader.open(path)
                before = self._known.pop(name, None)
                tail = ring.tail
            except RingRefusedError as error:
                self._refused.add(name)
                log.warning("canary_ring_refused", why=str(error))
                continue
            start = Positions(before.tail, before.keyed_tail) if before else tail
            self._followed[name] = _TrackedRing(ring, start, start)

    def _read(self, name: str, followed: _TrackedRing) -> CollectedEvents | None:
        if followed.ended:
            return None
        ring = followed.ring
        try:
            batch = ring.read(followed.read)
            followed.dropped = ring.dropped + ring.keyed_dropped
        except RingRefusedError as error:
            log.warning("canary_ring_refused", why=str(error))
            followed.ended = True
            return CollectedEvents(name, {}, (), ended=True)
        followed.read = batch.next
        followed.ended = not batch.alive
        if not (batch.events or batch.keyed or followed.ended):
            return None
        return CollectedEvents(
            name,
            {decode(word): count for word, count in batch.events.items()},
            [(decode(word), key) for word, key in batch.keyed],
            followed.ended,
        )

    def positions(self) -> list[RingRow]:
        """Return how far every ring was read that has been read on."""
        return [
            RingRow(name, each.read.main, each.read.keyed, each.dropped)
            for name, each in self._followed.items()
            if each.read != each.accounted or each.ended
        ]

    def removed(self) -> list[str]:
        """Return the rings of which nothing is to be kept any more."""
        return list(self._gone)

    def accounted(self, rows: Iterable[RingRow], gone: Collection[str]) -> None:
        """Note that this is on the disk: processes may use that room again."""
        self._gone = [name for name in self._gone if name not in gone]
        for row in rows:
            followed = self._followed[row.ring]
            followed.accounted = Positions(row.tail, row.keyed_tail)
            try:
                followed.ring.advance(followed.accounted)
            except RingRefusedError as error:
                log.warning("canary_ring_refused", why=str(error))
            if followed.ended:
                self._remove(row.ring, followed)

    def _remove(self, name: str, followed: _TrackedRing) -> None:
        """Remove a file that was read to its end; its position is kept until it is gone."""
        try:
            followed.ring.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("canary_ring_not_removed", ring=name, why=str(error))
            return
        followed.ring.close()
        self._dropped_before += followed.dropped
        del self._followed[name]
        self._gone.append(name)

    def close(self) -> None:
        """Let all files go."""
        for each in self._followed.values():
            each.ring.close()
