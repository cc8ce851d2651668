"""Presents a rotated log as one sequence of bytes.

A `RenamedLog` rotates by renaming (the daemon's own log). A `TruncatedLog` is copied aside and
truncated (a worker's log: the worker keeps its descriptor). A position is the number of a file and
an offset in it. No file stays open between reads; each read locates the file anew:

- A file that is gone was the oldest, or another program has removed it: reading continues at the
  oldest one that was not read before, and reports a gap.
- A file that is not the newest is complete, so after its end comes the start of the next newer.
- Renamed files get older in path order, and are opened from the newest on. So a rotation in
  between makes a file appear twice, never go missing; the second one is ignored.

All methods block, so they belong in a thread.
"""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from atlas_supervisor.logs.lines import CHUNK_BYTES, line_ends_at
from atlas_supervisor.system.files import open_regular
from atlas_supervisor.telemetry.handlers import FILES_KEPT, older
from atlas_supervisor.workers.output import WorkerLog

_HEAD_BYTES = 40  # the timestamp of the first line; every line is longer


@dataclass(frozen=True)
class Position:
    """An offset in a file, which is identified by its number."""

    file: int
    offset: int


@dataclass(frozen=True)
class Chunk:
    """The bytes at a position."""

    data: bytes
    at: Position
    """The start of the bytes: not the requested position if another file continues the log."""
    gap: bool = False
    """Whether bytes before it are lost."""


@dataclass(frozen=True)
class Segment:
    """An open file of a log; its first byte has the offset `begin`."""

    descriptor: int
    file: int
    begin: int
    end: int

    def read(self, offset: int) -> bytes:
        """Return the bytes at the offset, one chunk at most."""
        return os.pread(self.descriptor, CHUNK_BYTES, offset - self.begin)

    def has_line_end(self, offset: int, check: int) -> bool:
        """Return whether a line with this checksum ends at the offset."""
        within = self.begin <= offset <= self.end
        return within and line_ends_at(self.descriptor, offset - self.begin, check)


class RotatingLog(ABC):
    """A log in several files, which may be rotated while the lock is not held."""

    def __init__(self, path: Path, lock: AbstractContextManager[object]) -> None:
        self.path = path
        self._lock = lock
        self._passed: set[int] = set()
        """The files up to the one that was read last."""

    @abstractmethod
    def _parts(self) -> Iterable[tuple[Path, int | None, int]]:
        """Return all possible files, newest first: path, number (None: from its content), begin."""

    @contextmanager
    def open_segments(self) -> Iterator[list[Segment]]:
        """Open the existing files, the newest first. Raises OSError."""
        found: dict[int, Segment] = {}
        with ExitStack() as stack:
            with self._lock:
                for path, number, begin in self._parts():
                    with suppress(FileNotFoundError):
                        descriptor = open_regular(path, os.O_RDONLY)
                        stack.callback(os.close, descriptor)
                        size = os.fstat(descriptor).st_size
                        file = _number(descriptor) if number is None else number
                        if file is not None:
                            found.setdefault(file, Segment(descriptor, file, begin, begin + size))
            yield list(found.values())

    def read(self, position: Position) -> Chunk:
        """Return the next chunk after the position, empty if there is none yet. Raises OSError."""
        with self._lock, self.open_segments() as found:
            index = next((n for n, s in enumerate(found) if s.file == position.file), None)
            if index is None:
                return self._read_after_loss(position, found)
            here = found[index]
            if not here.begin <= position.offset <= here.end:  # truncated by another program
                position = Position(here.file, here.begin)
                return Chunk(here.read(here.begin), position, gap=True)
            # A file that is not the newest is complete.
            while not (data := here.read(position.offset)) and index:
                index -= 1
                here = found[index]
                position = Position(here.file, here.begin)
            self._passed = {segment.file for segment in found[index:]}
            return Chunk(data, position)

    def _read_after_loss(self, position: Position, found: list[Segment]) -> Chunk:
        """Go on where the file of the position is gone; there may be no newer one yet."""
        unread = [segment for segment in found if segment.file not in self._passed]
        if not unread:
            return Chunk(b"", position)
        oldest = unread[-1]
        begin = self._continues_at(position)
        at = Position(oldest.file, oldest.begin if begin is None else begin)
        return Chunk(oldest.read(at.offset), at, gap=begin is None)

    def _continues_at(self, _position: Position) -> int | None:
        """Return the offset in the next file where a lost one continues; None: unknown."""
        return None

    def locate(self, position: Position, check: int) -> Position | None:
        """Return the present position of one that a client has; None if it is lost."""
        with self._lock, self.open_segments() as found:
            for each in found:
                if each.file == position.file and each.has_line_end(position.offset, check):
                    return position
            # An earlier daemon has counted truncations differently; the line's checksum still fits.
            if check and found and found[0].has_line_end(position.offset, check):
                return Position(found[0].file, position.offset)
        return None

    def start_of_newest(self) -> Position:
        """Return the start of the newest file."""
        with self._lock, self.open_segments() as found:
            return Position(found[0].file, found[0].begin) if found else Position(0, 0)


def _number(descriptor: int) -> int | None:
    """Return a number that identifies a file across renames; None if it has no line yet.

    The inode alone is not enough, as file systems reuse it; the first line has a timestamp.
    """
    head = os.pread(descriptor, _HEAD_BYTES, 0)
    if len(head) < _HEAD_BYTES:
        return None
    return zlib.crc32(b"%d %s" % (os.fstat(descriptor).st_ino, head))


class RenamedLog(RotatingLog):
    """A log whose full files are renamed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, nullcontext())

    def _parts(self) -> Iterable[tuple[Path, int | None, int]]:
        yield self.path, None, 0
        for number in range(1, FILES_KEPT + 1):
            yield older(self.path, number), None, 0


class TruncatedLog(RotatingLog):
    """A log whose file is truncated after a copy; a file's number counts the truncations."""

    def __init__(self, log: WorkerLog) -> None:
        super().__init__(log.path, log.lock)
        self._log = log

    def _parts(self) -> Iterable[tuple[Path, int | None, int]]:
        yield self._log.path, self._log.generation, 0
        yield self._log.aside, self._log.aside_generation, self._log.aside_start

    def _continues_at(self, position: Position) -> int | None:
        lost = self._log.lost
        if lost is None or lost.generation != position.file or position.offset < lost.size:
            return None
        return lost.goes_on_at + position.offset - lost.size
