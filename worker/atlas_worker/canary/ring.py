"""Write events into this process's ring: no lock and no system call for a caller.

An event takes the next free place out of an iterator and writes one word, in a `for` that ends
with its first pass. Between the two the interpreter neither switches threads nor runs a signal
handler (it does so at calls and at backward jumps alone), so no place is ever taken twice or left
empty. Without a global lock that does not hold: there the ring stays shut.
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
    """One ring of a file. A place in it is negative in odd laps: there the lap bit is set.

    What begins leaves a quarter of the room to what ends, so that no call is half told.
    """

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
        # A signal handler may come in the middle and record something itself.
        self._lock = threading.RLock()
        self._refilling = False

    @property
    def dropped(self) -> int:
        """How many calls found no room."""
        return self._header[self._dropped]

    @dropped.setter
    def dropped(self, count: int) -> None:
        self._header[self._dropped] = count

    def write(self, word: int, key: int = 0) -> bool:
        """Write an event that begins something; returns False if it was dropped.

        `key` is the hash word of a keyed lane's event.
        """
        for place in self.free:
            if key:
                self.keys[place] = key if place >= 0 else key | LAP
            self.words[place] = word if place >= 0 else word | LAP
            return True
        return self.write_late(word, key)

    def write_late(self, word: int, key: int = 0, *, ending: bool = False) -> bool:
        """Write once `free` has run out: find free places first. Returns False if it was dropped.

        What is dropped is counted, unless the ring is of before a fork.
        """
        if self._closed:  # before the lock: a thread that is not in this process may have it
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
        """Take nothing more, for good: the file is another process's."""
        self._closed = True
        self.free = iter(())

    def _take(self, *, ending: bool) -> int | None:
        for place in self.free:  # another thread was quicker
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
            count = 1  # what begins must not find the rest
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
    """Both lanes of this process's file; without a file they count what they drop."""

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
    def shut(cls) -> RingWriter:
        """Return a ring of no room at all."""
        return cls(bytearray(layout.HEADER_BYTES))

    def close(self) -> None:
        """Take nothing more."""
        self.main.close()
        self.keyed.close()


def make_ring(folder: Path, dropped: tuple[int, int]) -> RingWriter:
    """Make this process's file, known to have dropped so many already; raises OSError."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise OSError("rings need an interpreter with a global lock")
    if sum(1 for _ in os.scandir(folder)) >= layout.RINGS_LIMIT:
        raise OSError(f"{folder} is full of rings that nobody reads")
    owner = _this_process()
    path = folder / f"{owner.pid}-{owner.start_ticks}-{os.urandom(4).hex()}{layout.RING_SUFFIX}"
    # A file is whole before it has the name of a ring.
    unfinished = path.with_name(f".{path.name}.new")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(unfinished, flags, layout.RING_MODE)
    try:
        # Every block is there from the start: a disk that fills up later can't kill the writer,
        # as it would by SIGBUS.
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
