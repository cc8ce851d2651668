"""Splits bytes into lines with bounded memory, forwards and backwards.

A worker may print a hundred megabytes without a newline, so only the head of a line and its length
are kept.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

CHUNK_BYTES = 64 * 1024
CHECKED_BYTES = 64
"""Bytes at the end of a line that its checksum covers."""


class TruncatedError(Exception):
    """The file was truncated while it was read."""


@dataclass(frozen=True)
class RawLine:
    """One line of a file without its newline; `head` is its start."""

    head: bytes
    length: int
    """The length of the whole line in bytes."""
    end: int
    """The offset after the line."""
    ended: bool = True
    """Whether it has its newline already."""

    @property
    def check(self) -> int:
        """The checksum of the line; 0 if only its head was kept."""
        return check_of(self.head) if len(self.head) == self.length else 0


def check_of(line: bytes) -> int:
    """Return the checksum of a line's last bytes; the line is given without its newline."""
    return zlib.crc32((line + b"\n")[-CHECKED_BYTES:])


def line_ends_at(descriptor: int, offset: int, check: int) -> bool:
    """Return whether a line with this checksum ends at the offset."""
    if offset == 0:
        return True
    begin = max(offset - CHECKED_BYTES, 0)
    before = os.pread(descriptor, offset - begin, begin)
    if len(before) < offset - begin or not before.endswith(b"\n"):
        return False
    return check in (0, check_of(before[:-1].rpartition(b"\n")[2]))


class LineSplitter:
    """Splits a file from `offset` on into lines, chunk by chunk."""

    def __init__(self, limit: int, offset: int = 0) -> None:
        self._limit = limit
        self._head = bytearray()
        self._length = 0
        self._offset = offset

    def feed(self, chunk: bytes) -> Iterator[RawLine]:
        """Yield the lines that end in the chunk; the iterator must be exhausted."""
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            self._keep(part)
            self._offset += len(part) + 1
            yield RawLine(bytes(self._head), self._length, self._offset)
            self._head.clear()
            self._length = 0
        self._keep(rest)
        self._offset += len(rest)

    def move(self, offset: int) -> None:
        """Continue in another file at the offset, with an unfinished line if there is one."""
        self._offset = offset

    def _keep(self, part: bytes) -> None:
        room = self._limit - len(self._head)
        if room > 0:
            self._head += part[:room]
        self._length += len(part)


def read_backwards(descriptor: int, end: int, limit: int) -> Iterator[RawLine]:
    """Yield the lines before `end`, the last one first, which may be unfinished.

    Raises TruncatedError if the file has become shorter than `end`.
    """
    head, length, line_end, ended, position = b"", 0, end, False, end
    while position > 0:
        step = min(CHUNK_BYTES, position)
        chunk = os.pread(descriptor, step, position - step)
        if len(chunk) < step:
            raise TruncatedError
        *before, last = chunk.split(b"\n")
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
