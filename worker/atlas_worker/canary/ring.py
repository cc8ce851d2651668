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
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from atlas_worker.contract import ENV_INSTANCE, ENV_VERSION
from atlas_worker.contract import ring as layout
from atlas_worker.contract.ring import LAP


class Lane:
    """One of the two rings of a file. Places are negative in odd laps, where the lap bit is set."""

    __slots__ = ("_closed", "_dropped", "_header", "_lock", "_next", "_refilling",
                 "_tail", "capacity", "free", "keys", "words")  # fmt: skip

    def __init__(
        self, words: memoryview, keys: memoryview, header: memoryview, *, tail: int, dropped: int
    ) -> None:
        self.words = words
        self.keys = keys  # empty if the lane has none
        self.free: Iterator[int] = iter(())
        self._header = header
        self.capacity = len(words)
        self._tail = tail // layout.WORD_BYTES
        self._dropped = dropped // layout.WORD_BYTES
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

    def write(self, word: int, key: int = 0) -> bool:
        """Write an assignment; return False if it was dropped.

        `key` is the hash word of an event with a key.
        """
        for place in self.free:
            if key:
                self.keys[place] = key if place >= 0 else key | LAP
            self.words[place] = word if place >= 0 else word | LAP
            return True
        return self.write_late(word, key)

    def write_late(self, word: int, key: int = 0, *, ending: bool = False) -> bool:
        """Reserve places after `free` has run out, and write; return False if it was dropped.

        Dropped events are counted, unless the ring is the parent's.
        """
        if self._closed:  # before the lock, which a thread of the parent may hold
            return False
        with self._lock:
            if not self._refilling:
                self._refilling = True
                try:
                    place = self._take(ending=ending)
                finally:
                    self._refilling = False
                if place is not None:
                    self._put(place, word, key)
                    return True
            self._header[self._dropped] += 1
            return False

    def close(self) -> None:
        """Drop all further events, as after a fork the file is the parent's."""
        self._closed = True
        self.free = iter(())

    def _take(self, *, ending: bool) -> int | None:
        for place in self.free:  # another thread has refilled it
            return place
        capacity = self.capacity
        if not capacity:
            return None
        kept = 0 if ending else capacity // 4
        lap, place = divmod(self._next, capacity)
        count = min(self._header[self._tail] + capacity - kept - self._next, capacity - place)
        if count <= 0:
            return None
        if ending:
            count = 1  # assignments must not get the rest
        first = place - capacity if lap % 2 else place
        self._next += count
        self.free = iter(range(first + 1, first + count))
        return first

    def _put(self, place: int, word: int, key: int) -> None:
        lap = LAP if place < 0 else 0
        if key:
            self.keys[place] = key | lap
        self.words[place] = word | lap


class RingWriter:
    """Both rings of this process's file; without a file they count dropped events."""

    def __init__(self, file: bytearray | mmap.mmap) -> None:
        view = memoryview(file)
        header = view[: layout.HEADER_BYTES].cast("Q")
        main = view[layout.HEADER_BYTES : layout.KEYED_OFFSET].cast("Q")
        keyed = view[layout.KEYED_OFFSET :].cast("Q")
        self.main = Lane(
            main, main[:0], header, tail=layout.TAIL_OFFSET, dropped=layout.DROPPED_OFFSET
        )
        self.keyed = Lane(
            keyed[::2],
            keyed[1::2],
            header,
            tail=layout.KEYED_TAIL_OFFSET,
            dropped=layout.KEYED_DROPPED_OFFSET,
        )

    @classmethod
    def without_file(cls) -> RingWriter:
        """Return a writer that drops all events and counts them."""
        return cls(bytearray(layout.HEADER_BYTES))

    def close(self) -> None:
        """Drop all further events."""
        self.main.close()
        self.keyed.close()


def make_ring(folder: Path, dropped: tuple[int, int]) -> RingWriter:
    """Create this process's file; `dropped` is the count before. Raises OSError."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise OSError("rings need the global interpreter lock")
    if sum(1 for _ in os.scandir(folder)) >= layout.RINGS_LIMIT:
        raise OSError(f"{folder} has {layout.RINGS_LIMIT} unread rings")
    owner = _this_process()
    path = folder / f"{owner.pid}-{owner.start_ticks}-{os.urandom(4).hex()}{layout.RING_SUFFIX}"
    # The file gets its name when it is complete.
    unfinished = path.with_name(f".{path.name}.new")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(unfinished, flags, layout.RING_MODE)
    try:
        # Allocates every block now: on a disk that fills up later, a write would raise SIGBUS.
        os.posix_fallocate(descriptor, 0, layout.RING_BYTES)
        os.pwrite(descriptor, layout.pack_header(owner), 0)
        ring = RingWriter(mmap.mmap(descriptor, layout.RING_BYTES))
        ring.main.dropped, ring.keyed.dropped = dropped
        unfinished.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    finally:
        os.close(descriptor)
    return ring


def _this_process() -> layout.Owner:
    status = Path("/proc/self/stat").read_text()
    return layout.Owner(
        pid=os.getpid(),
        start_ticks=int(status.rpartition(")")[2].split()[19]),
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        instance=os.environ.get(ENV_INSTANCE, ""),
        version=os.environ.get(ENV_VERSION, ""),
    )
