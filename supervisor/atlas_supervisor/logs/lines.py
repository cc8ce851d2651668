"""Taking bytes apart into lines with bounded memory, forwards and backwards.

A worker may print a hundred megabytes without a line's end. Of a line only its beginning is kept,
and how long it was.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PIECE_BYTES = 64 * 1024
CHECKED_BYTES = 64
"""So much of a line's end is remembered with its place, to know it again."""


class TornError(Exception):
    """The file was cut while it was read."""


@dataclass(frozen=True)
class RawLine:
    """One line as it stands in a file, without its end: `head` is its beginning."""

    head: bytes
    length: int
    """Of the whole line, in bytes."""
    end: int
    """The offset of what follows it."""
    ended: bool = True
    """Whether it has its end already."""

    @property
    def check(self) -> int:
        """Return a sum over the line's last bytes; 0 for one whose end was not kept."""
        return check_of(self.head) if len(self.head) == self.length else 0


def check_of(line: bytes) -> int:
    """Return the sum over the last bytes of a line, given without its end."""
    return zlib.crc32((line + b"\n")[-CHECKED_BYTES:])


def stands_there(descriptor: int, offset: int, check: int) -> bool:
    """Tell whether a line with this check ends at the offset."""
    if offset == 0:
        return True
    begin = max(offset - CHECKED_BYTES, 0)
    before = os.pread(descriptor, offset - begin, begin)
    if len(before) < offset - begin or not before.endswith(b"\n"):
        return False
    return check in (0, check_of(before[:-1].rpartition(b"\n")[2]))


class LineCutter:
    """Takes a file from `offset` on, piece by piece, and yields its lines."""

    def __init__(self, limit: int, offset: int = 0) -> None:
        self._limit = limit
        self._head = bytearray()
        self._length = 0
        self._offset = offset

    def feed(self, piece: bytes) -> Iterator[RawLine]:
        """Yield the lines that end in the piece; to be taken to the end."""
        *ended, rest = piece.split(b"\n")
        for part in ended:
            self._keep(part)
            self._offset += len(part) + 1
            yield RawLine(bytes(self._head), self._length, self._offset)
            self._head.clear()
            self._length = 0
        self._keep(rest)
        self._offset += len(rest)

    def move(self, offset: int) -> None:
        """Go on in another file at the offset; a line that has not ended goes on there."""
        self._offset = offset

    def _keep(self, part: bytes) -> None:
        room = self._limit - len(self._head)
        if room > 0:
            self._head += part[:room]
        self._length += len(part)


def backwards(descriptor: int, end: int, limit: int) -> Iterator[RawLine]:
    """Yield the lines before `end`, the last one first; that one may not have ended yet.

    Raises TornError if the file does not reach so far any more.
    """
    head, length, line_end, ended, position = b"", 0, end, False, end
    while position > 0:
        step = min(PIECE_BYTES, position)
        piece = os.pread(descriptor, step, position - step)
        if len(piece) < step:
            raise TornError
        *before, last = piece.split(b"\n")
        begin = position - len(last)
        head, length = (last + head)[:limit], length + len(last)
        for part in reversed(before):
            if ended or length:
                yield RawLine(head, length, line_end, ended)
            head, length, line_end, ended = part[:limit], len(part), begin, True
            begin -= len(part) + 1
        position -= step
    if ended or length:
        yield RawLine(head, length, line_end, ended)
