"""Writes events into this process's ring, without a lock or a system call for the caller.

The layout and protocol are in `atlas_worker.contract.ring`. The writer's side of it:

- `Lane.free` is an iterator over places that are reserved for this process. A caller takes the
  next one and writes one word, in a `for` loop that ends with its first pass. The interpreter
  switches threads and runs signal handlers only at calls and at backward jumps, and there is none
  between taking and writing. So no place is taken twice, and none stays empty.
- That needs the global interpreter lock. Without it `make_ring` refuses, and calls are decided but
  not recorded.
- When `free` has run out, `write_late` reserves the next run of places under a lock: up to the end
  of the lap at most, and up to tail + capacity, minus a quarter that is reserved for outcomes. As
  a run never crosses the end of a lap, the sign of a place gives the lap bit (negative: odd lap).
  The end of the run is published before its places are handed out.
- A place is used only if the file has blocks for it: on a full disk a write to a hole would raise
  SIGBUS. The helper thread adds blocks once half of the first ones are used; a burst that is faster
  adds them in its own thread, once.
- An outcome that needs the reserved quarter takes one place only, so that assignments can't get
  the rest.
- The lock is re-entrant: a signal handler may interrupt `write_late` and record an event itself.
  `_refilling` then makes it drop that event instead of changing the half-updated state.
- A process killed between reserving and writing leaves gaps, which the reader skips once the
  process is dead.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from atlas_worker.contract import ring as layout
from atlas_worker.contract.ring import LAP
from atlas_worker.process_file import create


class Lane:
    """One of the two rings of a file. Places are negative in odd laps, where the lap bit is set.

    A key word is `hash ^ place & serial_mask`, its top bit clear.
    """

    __slots__ = ("_allocate", "_blocks", "_closed", "_dropped", "_header", "_lock", "_next",
                 "_outran", "_refilling", "_reserved", "_run", "_tail", "capacity", "free",
                 "keys", "serial_mask", "words")  # fmt: skip

    def __init__(
        self,
        words: memoryview,
        keys: memoryview,
        header: memoryview,
        *,
        cells: tuple[int, int, int],
        first: int,
        allocate: Callable[[], None],
    ) -> None:
        self.words = words
        self.keys = keys  # empty if the lane has none
        self.free: Iterator[int] = iter(())
        self.serial_mask = layout.KEYED_ENTRIES - 1
        self._header = header
        self.capacity = len(words)
        self._tail, self._dropped, self._reserved = (at // layout.WORD_BYTES for at in cells)
        self._blocks = first
        """The places that have blocks, from the first on."""
        self._run = first // 2
        self._allocate = allocate
        self._outran = False
        self._next = 0
        self._closed = False
        # Re-entrant, for signal handlers that record something themselves.
        self._lock = threading.RLock()
        self._refilling = False

    @property
    def dropped(self) -> int:
        """The number of calls that found no room."""
        return self._header[self._dropped]

    @dropped.setter
    def dropped(self, count: int) -> None:
        self._header[self._dropped] = count

    def write(self, word: int) -> None:
        """Write an assignment without a key."""
        for place in self.free:
            self.words[place] = word if place >= 0 else word | LAP
            return
        self.write_late(word)

    def write_late(self, word: int, key: int = 0, *, ending: bool = False) -> int:
        """Reserve places after `free` has run out, and write; return 0 if it was dropped.

        With a key it returns the key word. An assignment is given its hash, an outcome the key
        word of its assignment. Dropped events are counted, unless the ring is the parent's.
        """
        if self._closed:  # before the lock, which a thread of the parent may hold
            return 0
        with self._lock:
            if not self._refilling:
                self._refilling = True
                try:
                    place = self._take(ending=ending)
                finally:
                    self._refilling = False
                if place is not None:
                    if key and not ending:
                        key ^= place & self.serial_mask
                    self._put(place, word, key)
                    return key or 1
            self._header[self._dropped] += 1
            return 0

    def close(self) -> None:
        """Drop all further events, as after a fork the file is the parent's."""
        self._closed = True
        self.free = iter(())

    def add_blocks(self) -> None:
        """Add blocks for all places once half of the first ones are used; in the helper thread."""
        if self._blocks < self.capacity and self._next >= self._blocks:  # of two runs one is used
            self._extend()

    def _extend(self) -> None:
        with contextlib.suppress(OSError):
            self._allocate()
            self._blocks, self._run = self.capacity, self.capacity // 8

    def _take(self, *, ending: bool) -> int | None:
        for place in self.free:  # another thread has refilled it
            return place
        capacity = self.capacity
        if not capacity:
            return None
        kept = 0 if ending else capacity // 4
        lap, place = divmod(self._next, capacity)
        room = self._header[self._tail] + capacity - kept - self._next
        if place >= self._blocks and room > 0 and not self._outran:
            self._outran = True  # once: on a full disk every call would try
            self._extend()
        count = min(room, self._run, self._blocks - place)
        if count <= 0:
            return None
        if ending:
            count = 1  # assignments must not get the rest
        first = place - capacity if lap % 2 else place
        self._next += count
        self._header[self._reserved] = self._next
        self.free = iter(range(first + 1, first + count))
        return first

    def _put(self, place: int, word: int, key: int) -> None:
        lap = LAP if place < 0 else 0
        if key:
            self.keys[place] = key | lap
        self.words[place] = word | lap


class RingWriter:
    """Both rings of this process's file; without a file they count dropped events."""

    def __init__(
        self, file: bytearray | mmap.mmap, path: Path = Path(), version: int = layout.LAYOUT_VERSION
    ) -> None:
        view = memoryview(file)
        header = view[: layout.HEADER_BYTES].cast("Q")
        main = view[layout.HEADER_BYTES : layout.KEYED_OFFSET].cast("Q")
        keyed = view[layout.KEYED_OFFSET :].cast("Q")
        self.main = Lane(
            main,
            main[:0],
            header,
            cells=(layout.TAIL_OFFSET, layout.DROPPED_OFFSET, layout.RESERVED_OFFSET),
            first=layout.MAIN_FIRST_WORDS,
            allocate=partial(_allocate, path, layout.HEADER_BYTES, main.nbytes),
        )
        self.keyed = Lane(
            keyed[::2],
            keyed[1::2],
            header,
            cells=(
                layout.KEYED_TAIL_OFFSET,
                layout.KEYED_DROPPED_OFFSET,
                layout.KEYED_RESERVED_OFFSET,
            ),
            first=layout.KEYED_FIRST_ENTRIES,
            allocate=partial(_allocate, path, layout.KEYED_OFFSET, keyed.nbytes),
        )
        if version == layout.FIRST_LAYOUT:
            self.keyed.serial_mask = 0

    @classmethod
    def without_file(cls) -> RingWriter:
        """Return a writer that drops all events and counts them."""
        return cls(bytearray(layout.HEADER_BYTES))

    @property
    def has_file(self) -> bool:
        """Whether events are written to a file."""
        return self.main.capacity > 0

    def add_blocks(self) -> None:
        """Add blocks ahead of need; in the helper thread."""
        self.main.add_blocks()
        self.keyed.add_blocks()

    def close(self) -> None:
        """Drop all further events."""
        self.main.close()
        self.keyed.close()


def make_ring(folder: Path, dropped: tuple[int, int], version: int) -> RingWriter:
    """Create this process's file in a layout; `dropped` is the count before. Raises OSError."""

    def fill(descriptor: int, owner: layout.Owner) -> None:
        first = layout.MAIN_FIRST_WORDS * layout.WORD_BYTES
        os.posix_fallocate(descriptor, 0, layout.HEADER_BYTES + first)
        first = layout.KEYED_FIRST_ENTRIES * 2 * layout.WORD_BYTES
        os.posix_fallocate(descriptor, layout.KEYED_OFFSET, first)
        os.pwrite(descriptor, layout.pack_header(owner, version), 0)
        for at, count in zip(
            (layout.DROPPED_OFFSET, layout.KEYED_DROPPED_OFFSET), dropped, strict=True
        ):
            os.pwrite(descriptor, count.to_bytes(layout.WORD_BYTES, "little"), at)

    file, path = create(folder, layout.RING_SUFFIX, layout.RING_BYTES, fill)
    return RingWriter(file, path, version)


def _allocate(path: Path, offset: int, count: int) -> None:
    """Allocate a part of the file. Raises OSError.

    By its name: an application may close descriptors that it does not know.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.posix_fallocate(descriptor, offset, count)
    finally:
        os.close(descriptor)
