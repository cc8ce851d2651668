"""Read the rings that workers write their canary calls into, whatever they may hold.

A ring is read by plain reads, never mapped: whoever cuts a mapped file short kills its readers.
The file belongs to a program that may be broken, so nothing in it is believed but what can be
checked; a ring that is refused costs one log line and no more.
"""

from __future__ import annotations

import os
import stat
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas_supervisor.errors import AtlasError
from atlas_supervisor.system import procfs
from atlas_worker.contract import ring as layout

_CHUNK = 4096  # units in one read


class RingRefusedError(AtlasError):
    """The file can't be used as a ring; the text says why."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Of both rings of a file, the index of the next unit to be read."""

    main: int = 0
    keyed: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """What was new. `events` counts equal words (`ring.decode` takes one apart).

    `keyed` has each keyed event in order, with the hash of its key; no word has its lap bit here.
    `skipped` are indices that a dead process took and never wrote. `alive` is how it was before
    the reading: a batch that says False is the ring's last.
    """

    events: Counter[int]
    keyed: list[tuple[int, int]]
    next: Positions
    skipped: int
    alive: bool


def ring_files(folder: Path) -> list[Path]:
    """Return the rings in a folder by name; none if there is no such folder."""
    try:
        return sorted(folder.glob(f"*{layout.RING_SUFFIX}"))
    except OSError:
        return []


class RingReader:
    """One process's ring, as the daemon sees it. Its calls read a file; they may block briefly.

    Every read raises RingRefusedError once the file can't be read or is cut short.
    """

    def __init__(self, path: Path, descriptor: int, owner: layout.Owner) -> None:
        self.path = path
        self.owner = owner
        self._descriptor = descriptor
        self._same_boot = owner.boot_id == procfs.boot_id()

    @classmethod
    def open(cls, path: Path) -> RingReader:
        """Open a ring; raises RingRefusedError for whatever is not a whole ring of this uid's."""
        # A FIFO must not make the daemon wait, and a link may lead anywhere.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags)
        except OSError as error:
            raise RingRefusedError(f"{path.name} can't be opened: {error.strerror}") from error
        try:
            _check(os.fstat(descriptor))
            owner = layout.unpack_header(os.pread(descriptor, layout.HEADER_BYTES, 0))
            return cls(path, descriptor, owner)
        except (OSError, ValueError) as error:
            os.close(descriptor)
            raise RingRefusedError(f"{path.name} is refused: {error}") from error

    def close(self) -> None:
        """Let the file go; calling it again does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def alive(self) -> bool:
        """Whether the process that writes this ring still runs."""
        return self._same_boot and procfs.is_alive(self.owner.pid, self.owner.start_ticks)

    @property
    def of_this_boot(self) -> bool:
        """Whether its slices are on this machine's present clock."""
        return self._same_boot

    @property
    def dropped(self) -> int:
        """How many calls found no room, as the process counts them from its start."""
        return self._cell(layout.DROPPED_OFFSET)

    @property
    def keyed_dropped(self) -> int:
        """The same for calls with a key."""
        return self._cell(layout.KEYED_DROPPED_OFFSET)

    @property
    def tail(self) -> Positions:
        """How far it has been read, as the process was told."""
        return Positions(self._cell(layout.TAIL_OFFSET), self._cell(layout.KEYED_TAIL_OFFSET))

    def advance(self, positions: Positions) -> None:
        """Give what was read back to the process. Only what is kept durably may be given back.

        A dead process gets nothing back: where its tail stood tells how far it can have come.
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
        """Return all that was written from the positions on.

        What the tail has passed is gone: reading begins there at the earliest. A gap in a living
        process is waited for; of a dead one everything is read, over its gaps.
        """
        alive = self.alive()  # asked first: what it wrote until its death is then all there
        tail = self.tail
        main = self._follow(_MAIN, positions.main, tail.main, over_gaps=not alive)
        keyed = self._follow(_KEYED, positions.keyed, tail.keyed, over_gaps=not alive)
        return Batch(
            events=_counted(main.columns[0]),
            keyed=_pairs(*keyed.columns),
            next=Positions(main.end, keyed.end),
            skipped=main.skipped + keyed.skipped,
            alive=alive,
        )

    def _follow(self, shape: _Shape, position: int, tail: int, *, over_gaps: bool) -> _Found:
        columns: list[list[int]] = [[] for _ in range(shape.width)]
        index = end = start = max(position, tail)
        limit = tail + shape.capacity  # the process can't have come further
        while index < limit:
            place = index % shape.capacity
            count = min(_CHUNK, shape.capacity - place, limit - index)
            chunk = self._words(shape.offset + place * shape.width * 8, count * shape.width)
            parts = [chunk[column :: shape.width] for column in range(shape.width)]
            written = _written(parts, lap=index // shape.capacity & 1, over_gaps=over_gaps)
            for column, part in zip(columns, parts, strict=True):
                column.extend(_picked(part, written))
            if written:
                end = index + written[-1] + 1
            if len(written) < count and not over_gaps:
                break
            index += count
        return _Found(columns, end, end - start - len(columns[0]))

    def _words(self, offset: int, count: int) -> tuple[int, ...]:
        try:
            data = os.pread(self._descriptor, count * layout.WORD_BYTES, offset)
            return struct.unpack(f"<{count}Q", data)
        except (OSError, struct.error) as error:
            raise RingRefusedError(f"{self.path.name} can't be read: {error}") from error

    def _cell(self, offset: int) -> int:
        return self._words(offset, 1)[0]


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where a ring is in its file; `width` is the words of one unit."""

    capacity: int
    width: int
    offset: int


_MAIN = _Shape(layout.MAIN_WORDS, 1, layout.HEADER_BYTES)
_KEYED = _Shape(layout.KEYED_ENTRIES, 2, layout.KEYED_OFFSET)


@dataclass(frozen=True, slots=True)
class _Found:
    columns: list[list[int]]
    end: int
    skipped: int


def _written(parts: list[tuple[int, ...]], *, lap: int, over_gaps: bool) -> Sequence[int]:
    """Return which units of a chunk are written: up to the first gap, or all of them.

    The first word of a unit is an event, the second a hash; neither is 0 once it is written.
    """
    high = (lap + 1) << 63
    lows = ((lap << 63) + (1 << layout.KIND_SHIFT), (lap << 63) + 1)
    bounds = list(zip(parts, lows, strict=False))

    def are_written(first: int, last: int) -> bool:
        return all(
            min(part[first:last]) >= low and max(part[first:last]) < high for part, low in bounds
        )

    # Whole stretches are looked at, in ever smaller halves: a step for each word costs more.
    first, last = 0, len(parts[0])
    while first < last:
        middle = (first + last + 1) // 2 if first or last < len(parts[0]) else last
        if are_written(first, middle):
            first = middle
        else:
            last = middle - 1
    if not over_gaps or first == len(parts[0]):
        return range(first)
    if max(parts[0]) < lows[0] or min(parts[0]) >= high:
        return ()
    return [number for number in range(len(parts[0])) if are_written(number, number + 1)]


def _picked(part: tuple[int, ...], written: Sequence[int]) -> Iterable[int]:
    return part[: len(written)] if isinstance(written, range) else [part[one] for one in written]


def _counted(words: list[int]) -> Counter[int]:
    """Return how often each event came; equal words are counted before they are looked at."""
    events: Counter[int] = Counter()
    for word, count in Counter(words).items():
        if not _is_void(word):
            events[word & ~layout.LAP] += count
    return events


def _pairs(words: list[int], hashes: list[int]) -> list[tuple[int, int]]:
    return [
        (word & ~layout.LAP, key & ~layout.LAP)
        for word, key in zip(words, hashes, strict=True)
        if not _is_void(word)
    ]


def _is_void(word: int) -> bool:
    return word >> layout.KIND_SHIFT & 7 == layout.EventKind.VOID


def _check(status: os.stat_result) -> None:
    """Raise ValueError for a file that is none of our own rings."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if status.st_uid != os.getuid():
        raise ValueError(f"it belongs to uid {status.st_uid}, not to {os.getuid()}")
    if status.st_size != layout.RING_BYTES:
        raise ValueError(f"it has {status.st_size} bytes, not {layout.RING_BYTES}")
