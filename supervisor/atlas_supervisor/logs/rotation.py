"""A log as one stretch of bytes, although it is spread over files that are renamed or cut.

Nothing is held open in between: a place is the number of a file and an offset in it, and each read
finds out anew what has become of that file. All of this blocks, so it belongs into a thread.
"""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from atlas_supervisor.logs.lines import PIECE_BYTES, stands_there
from atlas_supervisor.telemetry.log_file import FILES_KEPT, older
from atlas_supervisor.workers.output import WorkerLog

_TELLING_BYTES = 40  # the time of the first line, and less than any whole line has


@dataclass(frozen=True)
class Position:
    """A file by its number, and an offset in it."""

    file: int
    offset: int


@dataclass(frozen=True)
class Piece:
    """What stands at a position."""

    data: bytes
    at: Position
    """Where it begins: elsewhere than asked for, where one file ends and the next begins."""
    gap: bool = False
    """Whether something before it is lost."""


@dataclass(frozen=True)
class Segment:
    """An open file that is part of a log. Its first byte has the offset `begin`."""

    descriptor: int
    file: int
    begin: int
    end: int

    def read(self, offset: int) -> bytes:
        """Return up to a piece of what stands at the offset of the log."""
        return os.pread(self.descriptor, PIECE_BYTES, offset - self.begin)

    def stands_at(self, offset: int, check: int) -> bool:
        """Tell whether a line with this check ends at the offset."""
        within = self.begin <= offset <= self.end
        return within and stands_there(self.descriptor, offset - self.begin, check)


class RotatingLog(ABC):
    """One log, wherever its parts are; they may be moved while the lock is not held."""

    def __init__(self, path: Path, lock: AbstractContextManager[object]) -> None:
        self.path = path
        self._lock = lock

    @abstractmethod
    def _parts(self) -> Iterable[tuple[Path, int | None, int]]:
        """Return all files there may be, newest first: path, number (None: its own), begin."""

    @contextmanager
    def stretches(self) -> Iterator[list[Segment]]:
        """Open the files that there are, the newest first. Raises OSError."""
        found: dict[int, Segment] = {}
        with ExitStack() as stack:
            with self._lock:
                for path, number, begin in self._parts():
                    with suppress(FileNotFoundError):
                        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                        stack.callback(os.close, descriptor)
                        size = os.fstat(descriptor).st_size
                        file = _number(descriptor) if number is None else number
                        if file is not None:
                            found.setdefault(file, Segment(descriptor, file, begin, begin + size))
            yield list(found.values())

    def read(self, position: Position) -> Piece:
        """Return the next piece after the position, empty if there is none yet. Raises OSError."""
        with self._lock, self.stretches() as found:
            index = next((n for n, s in enumerate(found) if s.file == position.file), None)
            if index is None:  # it is gone: go on with the oldest that is left
                if not found:
                    return Piece(b"", position)
                position = Position(found[-1].file, found[-1].begin)
                return Piece(found[-1].read(position.offset), position, gap=True)
            here = found[index]
            if not here.begin <= position.offset <= here.end:  # somebody else has cut it
                position = Position(here.file, here.begin)
                return Piece(here.read(here.begin), position, gap=True)
            # A file that is not the newest was complete before it was opened here.
            while not (data := here.read(position.offset)) and index:
                index -= 1
                here = found[index]
                position = Position(here.file, here.begin)
            return Piece(data, position)

    def find(self, position: Position, check: int) -> Position | None:
        """Return where a place is that was told before; None if it is not there any more."""
        with self._lock, self.stretches() as found:
            for each in found:
                if each.file == position.file and each.stands_at(position.offset, check):
                    return position
            # An earlier daemon's numbers of cuts are not known; the line itself still is.
            if check and found and found[0].stands_at(position.offset, check):
                return Position(found[0].file, position.offset)
        return None

    def newest(self) -> Position:
        """Return the beginning of the newest file."""
        with self._lock, self.stretches() as found:
            return Position(found[0].file, found[0].begin) if found else Position(0, 0)


def _number(descriptor: int) -> int | None:
    """Return what tells a file that is renamed from all others; None if it is hardly begun.

    The inode alone does not: a file system may give that of one just removed to the next one.
    Its first line says when it was begun.
    """
    head = os.pread(descriptor, _TELLING_BYTES, 0)
    if len(head) < _TELLING_BYTES:
        return None
    return zlib.crc32(b"%d %s" % (os.fstat(descriptor).st_ino, head))


class RenamedLog(RotatingLog):
    """A log whose full files are renamed. They only become older, so in order none slips by."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, nullcontext())

    def _parts(self) -> Iterable[tuple[Path, int | None, int]]:
        yield self.path, None, 0
        for number in range(1, FILES_KEPT + 1):
            yield older(self.path, number), None, 0


class TruncatedLog(RotatingLog):
    """A log whose file is cut, its last part kept aside; a file's number counts the cuts."""

    def __init__(self, log: WorkerLog) -> None:
        super().__init__(log.path, log.lock)
        self._log = log

    def _parts(self) -> Iterable[tuple[Path, int | None, int]]:
        yield self._log.path, self._log.generation, 0
        yield self._log.aside, self._log.generation - 1, self._log.aside_start
