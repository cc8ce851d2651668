"""Reads the rings that worker processes write their canary events into.

The layout and its protocol are in `atlas_worker.contract.ring`. The reader's side of it:

- A ring is read with `pread`, never mapped: a mapped file that its owner truncates kills its
  readers by SIGBUS.
- The file belongs to another program, which may be broken. Only checked values are used: type,
  owner and size of the file, magic, layout version, every cell, and kind, outcome and lap bit of
  each word. A ring that fails a check is refused with the reason.
- A unit at index i is written if its kind is not 0 and its lap bit is that of the lap
  i // capacity. The reader stops at the first unwritten unit of a living process: it will be
  written. Of a dead process it reads everything and skips the gaps.
- Whether the process lives is asked *before* reading. If it was dead, all it ever wrote is there,
  and the batch is its last.
- The index never passes what the process has reserved, nor tail + capacity, where it stops. So a
  short ring costs little, alive or dead. The tail moves only in `advance`, after the events are in
  the database.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from atlas_supervisor.system import procfs
from atlas_supervisor.system.worker_file import (
    UnusableFileError,
    open_worker_file,
    refuse_forged,
    worker_files,
)
from atlas_worker.contract import SLOWEST_BUCKET
from atlas_worker.contract import ring as layout

_FIRST_CHUNK, _CHUNK = 64, 4096  # units in the first read of a poll, and in the largest
_MOST = 2**62
"""Above any index and count: a cell with more is not a count."""


RingRefusedError = UnusableFileError
"""The file can't be used as a ring; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Positions:
    """The index of the next unit to read, in both rings of a file."""

    main: int = 0
    keyed: int = 0


class Cells(NamedTuple):
    """The header's counts, in the order of their places."""

    tail: int
    keyed_tail: int
    dropped: int
    keyed_dropped: int
    reserved: int
    keyed_reserved: int


@dataclass(frozen=True, slots=True)
class Batch:
    """New events. `events` counts equal words (see `ring.decode`), without their lap bit.

    `keyed` has each event with a key, in order: its word, the key's hash (`HASH_MASK`) and the
    call's serial, which is 0 in the first layout alone: there an outcome does not name its call.
    `skipped` counts the indices that a dead process has reserved and not written. `alive` is the
    state before reading: with False the batch is the ring's last.
    """

    events: Counter[int]
    keyed: list[tuple[int, int, int]]
    next: Positions
    skipped: int
    dropped: int
    alive: bool


def ring_files(folder: Path) -> list[Path]:
    """Return the rings in a folder, sorted by name; none if there is no such folder."""
    return worker_files(folder, layout.RING_SUFFIX)


class RingReader:
    """Reads one process's ring. Its methods read a file and may block briefly.

    Every read raises RingRefusedError if the file can't be read or is too short.
    """

    def __init__(self, path: Path, descriptor: int, owner: layout.Owner, version: int) -> None:
        self.path = path
        self.owner = owner
        self._version = version
        self._descriptor = descriptor
        self._same_boot = owner.boot_id == procfs.boot_id()
        self._first_chunk: dict[int, int] = {}
        """Units in the first read, by the width of a unit: a few more than the last time."""

    @classmethod
    def open(cls, path: Path) -> RingReader:
        """Open a ring. Raises RingRefusedError unless it is a complete ring of a trusted uid.

        Raises OSError where that is no fault of the file: too few descriptors, too little memory.
        """
        descriptor = open_worker_file(path, [layout.RING_BYTES], os.O_RDWR)
        try:
            owner, version = layout.unpack_header(os.pread(descriptor, layout.HEADER_BYTES, 0))
            return cls(path, descriptor, owner, version)
        except (OSError, ValueError) as error:
            os.close(descriptor)
            raise RingRefusedError(f"{path.name} is refused: {error}") from error

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def alive(self) -> bool:
        """Return whether the process that writes this ring still runs."""
        return self._same_boot and procfs.is_alive(self.owner.pid, self.owner.start_ticks)

    def refuse_forged(self) -> None:
        """Raise RingRefusedError if a living process is named that does not write this ring."""
        if self.alive() and self.owner.pid != os.getpid():
            refuse_forged(self.path, self.owner)

    @property
    def dropped(self) -> int:
        """How many calls found no room since the process started, with and without a key."""
        cells = self._cells()
        return cells.dropped + cells.keyed_dropped

    @property
    def tail(self) -> Positions:
        """The position up to which space is released to the process."""
        cells = self._cells()
        return Positions(cells.tail, cells.keyed_tail)

    def advance(self, positions: Positions) -> None:
        """Release the space before the positions; their events must be in the database.

        The tail of a dead process stays: it bounds how far the process can have written.
        """
        if not self.alive():
            return
        try:
            os.pwrite(self._descriptor, struct.pack("<Q", positions.main), layout.TAIL_OFFSET)
            keyed = struct.pack("<Q", positions.keyed)
            os.pwrite(self._descriptor, keyed, layout.KEYED_TAIL_OFFSET)
        except OSError as error:
            raise RingRefusedError(f"{self.path.name}: {error.strerror}") from error

    def read(self, positions: Positions) -> Batch:
        """Return the events from the positions on, which are not before the tail."""
        alive = self.alive()  # first: if it is dead, everything it wrote is there
        cells = self._cells()
        if positions.main < cells.tail or positions.keyed < cells.keyed_tail:
            raise RingRefusedError(f"{self.path.name}: its tail was changed to {self.tail}")
        if alive and (positions.main > cells.reserved or positions.keyed > cells.keyed_reserved):
            raise RingRefusedError(f"{self.path.name}: less is reserved than was read")
        main = self._follow(_MAIN, positions.main, cells.tail, cells.reserved, alive=alive)
        keyed = self._follow(
            _KEYED, positions.keyed, cells.keyed_tail, cells.keyed_reserved, alive=alive
        )
        return Batch(
            events=self._counted(main.columns[0]),
            keyed=self._keyed(*keyed.columns),
            next=Positions(main.end, keyed.end),
            skipped=main.skipped + keyed.skipped,
            dropped=cells.dropped + cells.keyed_dropped,
            alive=alive,
        )

    def _follow(
        self, shape: _Shape, position: int, tail: int, reserved: int, *, alive: bool
    ) -> _Found:
        columns: list[list[int]] = [[] for _ in range(shape.width)]
        index = end = start = position
        limit = min(tail + shape.capacity, reserved)
        size = self._first_chunk.get(shape.width, _FIRST_CHUNK)
        while index < limit:
            place = index % shape.capacity
            count = min(size, shape.capacity - place, limit - index)
            chunk = self._words(shape.offset + place * shape.width * 8, count * shape.width)
            parts = [chunk[column :: shape.width] for column in range(shape.width)]
            written = _written(parts, lap=index // shape.capacity & 1, over_gaps=not alive)
            for column, part in zip(columns, parts, strict=True):
                column.extend(_picked(part, written))
            if written:
                end = index + written[-1] + 1
            if len(written) < count and alive:
                break
            index += count
            size = min(size * 8, _CHUNK)
        self._first_chunk[shape.width] = min(max((end - start) * 5 // 4, _FIRST_CHUNK), _CHUNK)
        return _Found(columns, end, end - start - len(columns[0]))

    def _counted(self, words: list[int]) -> Counter[int]:
        """Return the count of each event; equal words are counted before they are examined."""
        events: Counter[int] = Counter()
        for word, count in Counter(words).items():
            if checked := self._checked(word):
                events[checked] += count
        return events

    def _keyed(self, words: list[int], keys: list[int]) -> list[tuple[int, int, int]]:
        checked = {word: self._checked(word) for word in set(words)}
        has_serials = self._version > layout.FIRST_LAYOUT
        mask, named = (layout.SERIAL_MASK, layout.SERIAL_MASK + 1) if has_serials else (0, 0)
        return [
            (event, key & layout.HASH_MASK, key & mask | named)
            for word, key in zip(words, keys, strict=True)
            if (event := checked[word])
        ]

    def _checked(self, word: int) -> int:
        """Return an event without its lap bit, its latency bounded; 0 for a VOID."""
        validity = _VALIDITY[word >> layout.OUTCOME_SHIFT & 63]
        if validity == 1:
            over = (word & layout.BUCKET_MASK) - SLOWEST_BUCKET
            return (word & ~layout.LAP) - max(over, 0)
        if validity == 0:
            return 0
        raise RingRefusedError(f"{self.path.name} has an invalid event {word:#x}")

    def _cells(self) -> Cells:
        """Return the checked cells."""
        found = self._words(layout.TAIL_OFFSET, _CELL_WORDS)
        cells = Cells._make(found[::_CELL_STEP])
        if self._version == layout.FIRST_LAYOUT:  # which has no such cell
            tail, keyed_tail = cells.tail, cells.keyed_tail
            cells = cells._replace(
                reserved=tail + _MAIN.capacity, keyed_reserved=keyed_tail + _KEYED.capacity
            )
        for name, value in zip(Cells._fields, cells, strict=True):
            if value > _MOST:
                raise RingRefusedError(f"{self.path.name}: {name} is {value}")
        for tail, reserved, shape in (
            (cells.tail, cells.reserved, _MAIN),
            (cells.keyed_tail, cells.keyed_reserved, _KEYED),
        ):
            if not tail <= reserved <= tail + shape.capacity:
                reason = f"reserved up to {reserved} with a tail of {tail}"
                raise RingRefusedError(f"{self.path.name}: {reason}")
        return cells

    def _words(self, offset: int, count: int) -> tuple[int, ...]:
        try:
            data = os.pread(self._descriptor, count * layout.WORD_BYTES, offset)
            return struct.unpack(f"<{count}Q", data)
        except (OSError, struct.error) as error:
            raise RingRefusedError(f"{self.path.name} can't be read: {error}") from error


@dataclass(frozen=True, slots=True)
class _Shape:
    """The place of a ring in its file; `width` is the words per unit."""

    capacity: int
    width: int
    offset: int


_MAIN = _Shape(layout.MAIN_WORDS, 1, layout.HEADER_BYTES)
_KEYED = _Shape(layout.KEYED_ENTRIES, 2, layout.KEYED_OFFSET)
_CELL_STEP = (layout.KEYED_TAIL_OFFSET - layout.TAIL_OFFSET) // layout.WORD_BYTES
_CELL_WORDS = _CELL_STEP * len(Cells._fields)


def _validity(kind: int, outcome: int) -> int:
    if kind == layout.EventKind.VOID:
        return 0
    known = kind in set(layout.EventKind) and outcome in set(layout.Outcome)
    return 1 if known and kind != layout.EventKind.UNWRITTEN else 2


_VALIDITY = [_validity(bits >> 3, bits & 3) for bits in range(64)]
"""By the six bits of kind, arm and outcome: 1 for an event, 0 for a VOID, 2 if it is invalid."""


@dataclass(frozen=True, slots=True)
class _Found:
    columns: list[list[int]]
    end: int
    skipped: int


def _written(parts: list[tuple[int, ...]], *, lap: int, over_gaps: bool) -> Sequence[int]:
    """Return the written units of a chunk: those before the first gap, or with `over_gaps` all.

    The first word of a unit is an event, the second a hash; neither is 0 once written.
    """
    high, gaps = (lap + 1) << 63, list[int]()
    for part, least in zip(parts, (1 << layout.KIND_SHIFT, 1), strict=False):
        low = (lap << 63) + least
        # Equal words are checked once: a Python step for each word would cost more.
        if missing := {word for word in set(part) if not low <= word < high}:
            numbers = (number for number, word in enumerate(part) if word in missing)
            gaps += numbers if over_gaps else [next(numbers)]
    if not gaps or not over_gaps:
        return range(min(gaps, default=len(parts[0])))
    return sorted(set(range(len(parts[0]))).difference(gaps))


def _picked(part: tuple[int, ...], written: Sequence[int]) -> Iterable[int]:
    return part[: len(written)] if isinstance(written, range) else [part[one] for one in written]
