"""Reads one log for one client: lines filtered, printable and of bounded length.

All of this blocks, so it belongs in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from atlas_supervisor.logs.lines import LineSplitter, RawLine, TruncatedError, read_backwards
from atlas_supervisor.logs.rotation import Position, RotatingLog, Segment
from atlas_supervisor.model.log import LogLevel, LogLine, WantedLines
from atlas_supervisor.system.text import escaped, without_known_secrets

MAX_WORKER_LINE = 8 * 1024
MAX_OWN_LINE = 256 * 1024
"""In bytes; the daemon itself writes no longer line."""
MAX_HISTORY = 4 * 1024 * 1024
"""Characters returned at once, however many lines were requested."""
MAX_SEARCHED_BYTES = 128 * 1024 * 1024
"""Bytes searched from the end for lines that match a filter."""

_TRUNCATED_RETRIES = 3
_CHUNKS_AT_ONCE = 16
_LEVELS = list(LogLevel)

Show = Callable[[RawLine], str | None]
"""Returns the text of a line for the client; None if the filter excludes it."""


def show_worker_line(wanted: WantedLines) -> Show:
    """Return the filter of a worker's lines."""
    contains = wanted.contains

    def show(line: RawLine) -> str | None:
        cut = line.length > len(line.head)
        head = line.head if cut else line.head.removesuffix(b"\r")
        text = escaped(without_known_secrets(head.decode(errors="replace")), keep="\t")
        if contains is not None and contains not in text:
            return None
        return f"{text} …[{line.length} bytes in all]" if cut else text

    return show


def show_own_line(wanted: WantedLines) -> Show:
    """Return the filter of the daemon's lines; a line that is not JSON is wrapped in an object."""
    least = _LEVELS.index(wanted.level) if wanted.level else 0

    def show(line: RawLine) -> str | None:
        text, fields = _own_line(line)
        if wanted.level and _rank(fields.get("level")) < least:
            return None
        if wanted.deploy_id is not None and fields.get("deploy_id") != wanted.deploy_id:
            return None
        if wanted.slot is not None and fields.get("slot") != wanted.slot:
            return None
        if wanted.contains is not None and not _contains(text, fields, wanted.contains):
            return None
        return text

    return show


def _own_line(line: RawLine) -> tuple[str, dict[str, Any]]:
    try:
        text = line.head.decode()
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict) and text.isprintable():
        return text, fields
    shown = escaped(line.head[:MAX_WORKER_LINE].decode(errors="replace"))
    fields = {"ts": None, "level": "warning", "event": "log_line_unreadable", "text": shown}
    return json.dumps(fields, ensure_ascii=False), fields


def _rank(level: object) -> int:
    return _LEVELS.index(LogLevel(str(level))) if level in _LEVELS else len(_LEVELS)


def _contains(text: str, fields: dict[str, Any], part: str) -> bool:
    """Return whether the line contains it, as JSON or as `key=value` pairs."""
    return part in text or part in " ".join(f"{key}={value}" for key, value in fields.items())


def cursor_of(position: Position, check: int) -> str:
    """Return a position as an opaque cursor for clients."""
    return f"{position.file}-{position.offset}-{check}"


def position_of(cursor: str) -> tuple[Position, int]:
    """Return the position and the checksum of a cursor. Raises ValueError."""
    file, offset, check = map(int, cursor.split("-"))
    return Position(file, offset), check


class LogReader:
    """Reads one log for one client: first the existing lines, then new ones."""

    def __init__(self, log: RotatingLog, show: Show, *, longest: int, gap: str) -> None:
        self._log = log
        self._show = show
        self._longest = longest
        self._gap = gap
        self._position = Position(0, 0)
        self._splitter = LineSplitter(longest)
        self.cursor = cursor_of(self._position, 0)
        """The position after all returned lines."""

    def last(self, lines: int, *, unfinished: bool) -> list[LogLine]:
        """Return the last lines and move after them; an unfinished line only if `unfinished`.

        Otherwise it comes later, once it is complete. Raises OSError.
        """
        for attempt in range(_TRUNCATED_RETRIES):
            found: list[LogLine] = []
            try:
                self._gather(found, lines, unfinished=unfinished)
            except TruncatedError:
                if attempt < _TRUNCATED_RETRIES - 1:
                    continue
            break
        return found[::-1]

    def _gather(self, found: list[LogLine], lines: int, *, unfinished: bool) -> None:
        """Add the last lines, the newest first."""
        room, left, moved = MAX_HISTORY, MAX_SEARCHED_BYTES, False
        with self._log.open_segments() as segments:
            if segments:
                self._move(Position(segments[0].file, segments[0].end), 0)
            for segment, line in _backwards(segments, self._longest):
                position = Position(segment.file, segment.begin + line.end)
                if not moved and not line.ended and not unfinished:
                    self._move(Position(position.file, position.offset - line.length), 0)
                    continue
                if not moved:
                    self.cursor, moved = cursor_of(self._position, line.check), True
                left -= line.length + 1
                if len(found) >= lines or room < 0 or left < 0:
                    return
                if (text := self._show(line)) is not None:
                    found.append(LogLine(text, cursor_of(position, line.check)))
                    room -= len(text)

    def resume(self, cursor: str) -> list[LogLine]:
        """Move to a client's cursor; return a note if lines after it are lost.

        Raises ValueError for an invalid cursor, OSError.
        """
        position, check = position_of(cursor)
        found = self._log.locate(position, check)
        self._move(found or self._log.start_of_newest(), check if found else 0)
        return [] if found else [self._note()]

    def more(self) -> tuple[list[LogLine], bool]:
        """Return the next lines, and whether there may be more. Raises OSError."""
        lines: list[LogLine] = []
        for _ in range(_CHUNKS_AT_ONCE):
            chunk = self._log.read(self._position)
            if chunk.gap and self._position.file:
                lines.append(self._note())
                self._splitter = LineSplitter(self._longest)
            if chunk.at != self._position:
                self._splitter.move(chunk.at.offset)
            for line in self._splitter.feed(chunk.data):
                self.cursor = cursor_of(Position(chunk.at.file, line.end), line.check)
                if (text := self._show(line)) is not None:
                    lines.append(LogLine(text, self.cursor))
            self._position = Position(chunk.at.file, chunk.at.offset + len(chunk.data))
            if not chunk.data:
                return lines, False
            if lines:
                break
        return lines, True

    def _move(self, position: Position, check: int) -> None:
        self._position = position
        self._splitter = LineSplitter(self._longest, position.offset)
        self.cursor = cursor_of(position, check)

    def _note(self) -> LogLine:
        return LogLine(self._gap, self.cursor, gap=True)


def _backwards(segments: list[Segment], longest: int) -> Iterator[tuple[Segment, RawLine]]:
    for segment in segments:
        for line in read_backwards(segment.descriptor, segment.end - segment.begin, longest):
            yield segment, line
