"""Collects new events from all rings, and notices which processes have exited.

A ring's position is released to its process only after everything before it is in the database
(`acknowledge`). So a daemon that is killed reads unacknowledged events again, and no others.
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
    """The new events of one process."""

    ring: str
    events: Mapping[RingEvent, int]
    keyed: Iterable[tuple[RingEvent, int]]
    exited: bool
    """Whether the process has exited, so that these are its last events."""


@dataclass
class _TrackedRing:
    reader: RingReader
    read: Positions
    acknowledged: Positions
    dropped: int = 0
    exited: bool = False

    @property
    def is_unacknowledged(self) -> bool:
        return self.read != self.acknowledged or self.exited


class CallCollector:
    """The rings in one folder. `poll`, `acknowledge` and `close` block on the disk."""

    def __init__(self, folder: Path, known: Iterable[RingRow]) -> None:
        self._folder = folder
        self._known = {row.ring: row for row in known}
        """Positions saved by the last daemon, of rings that are not open yet."""
        self._rings: dict[str, _TrackedRing] = {}
        self._refused: set[str] = set()
        self._removed: list[str] = []
        """Rings whose files are removed and whose saved positions can be deleted."""
        self._dropped_before = 0

    @property
    def dropped(self) -> int:
        """How many events found no room, those of exited processes included."""
        return self._dropped_before + sum(each.dropped for each in self._rings.values())

    @property
    def has_unwritten(self) -> bool:
        """Whether positions have changed that are not in the database yet."""
        return bool(self._removed) or any(each.is_unacknowledged for each in self._rings.values())

    def remove_unfinished(self) -> None:
        """Remove files that a process has created but, killed, never renamed to a ring."""
        for path in self._folder.glob(f".*{RING_SUFFIX}.new"):
            pid = path.name.lstrip(".").partition("-")[0]
            if not pid.isdecimal() or procfs.start_ticks(int(pid)) is None:
                path.unlink(missing_ok=True)

    def poll(self) -> list[CollectedEvents]:
        """Return the new events of every ring."""
        self._open_new()
        collected = [self._read(name, each) for name, each in list(self._rings.items())]
        # A ring that was known to the last daemon and has no file any more: its process has exited.
        missing = [CollectedEvents(name, {}, (), exited=True) for name in self._known]
        self._removed += self._known
        self._known.clear()
        return [each for each in (*collected, *missing) if each is not None]

    def _open_new(self) -> None:
        present = {path.name: path for path in ring_files(self._folder)}
        self._refused &= present.keys()
        for name, path in present.items():
            if name in self._rings or name in self._refused:
                continue
            try:
                reader = RingReader.open(path)
                reader.refuse_forged()
                before = self._known.pop(name, None)
                tail = reader.tail
            except RingRefusedError as error:
                self._refused.add(name)
                log.warning("canary_ring_refused", why=str(error))
                continue
            start = Positions(before.tail, before.keyed_tail) if before else tail
            self._rings[name] = _TrackedRing(reader, start, start)

    def _read(self, name: str, ring: _TrackedRing) -> CollectedEvents | None:
        if ring.exited:
            return None
        try:
            batch = ring.reader.read(ring.read)
            ring.dropped = ring.reader.dropped + ring.reader.keyed_dropped
        except RingRefusedError as error:
            log.warning("canary_ring_refused", why=str(error))
            ring.exited = True
            return CollectedEvents(name, {}, (), exited=True)
        ring.read = batch.next
        ring.exited = not batch.alive
        if not (batch.events or batch.keyed or ring.exited):
            return None
        return CollectedEvents(
            name,
            {decode(word): count for word, count in batch.events.items()},
            [(decode(word), key) for word, key in batch.keyed],
            ring.exited,
        )

    def positions(self) -> list[RingRow]:
        """Return the positions that are to be written to the database."""
        return [
            RingRow(name, each.read.main, each.read.keyed, each.dropped)
            for name, each in self._rings.items()
            if each.is_unacknowledged
        ]

    def removed(self) -> list[str]:
        """Return the rings whose saved positions are to be deleted."""
        return list(self._removed)

    def acknowledge(self, rows: Iterable[RingRow], removed: Collection[str]) -> None:
        """Release the space of events that are in the database now."""
        self._removed = [name for name in self._removed if name not in removed]
        for row in rows:
            ring = self._rings[row.ring]
            ring.acknowledged = Positions(row.tail, row.keyed_tail)
            try:
                ring.reader.advance(ring.acknowledged)
            except RingRefusedError as error:
                log.warning("canary_ring_refused", why=str(error))
            if ring.exited:
                self._remove(row.ring, ring)

    def _remove(self, name: str, ring: _TrackedRing) -> None:
        """Remove the file of an exited process; its saved position is deleted afterwards."""
        try:
            ring.reader.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("canary_ring_not_removed", ring=name, why=str(error))
            return
        ring.reader.close()
        self._dropped_before += ring.dropped
        del self._rings[name]
        self._removed.append(name)

    def close(self) -> None:
        """Close all files."""
        for each in self._rings.values():
            each.reader.close()
