"""Which lines of a log are shown, and how: filtered, printable, of bounded length.

All of this blocks and computes, so it belongs into a thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from atlas_supervisor.logs.lines import LineCutter, RawLine, TornError, backwards
from atlas_supervisor.logs.rotation import Position, RotatingLog, Segment
from atlas_supervisor.model.log import LogLevel, LogLine, WantedLines
from atlas_supervisor.system.text import escaped

LONGEST_WORKER_LINE = 8 * 1024
LONGEST_OWN_LINE = 256 * 1024
"""In bytes. The daemon itself writes none that is longer."""
HISTORY_BYTES = 4 * 1024 * 1024
"""So much text is returned at once at most, however many lines were asked for."""
SEARCHED_BYTES = 128 * 1024 * 1024
"""So much is looked through at most, from the end on, for lines that fit a filter."""

_TORN_TRIES = 3
_PIECES_AT_ONCE = 16
_LEVELS = list(LogLevel)

Show = Callable[[RawLine], str | None]
"""Makes the text that is shown of a line; None if it is not wanted."""


def show_worker_line(wanted: WantedLines) -> Show:
    """Return what shows the lines of a worker."""
    contains = wanted.contains

    def show(line: RawLine) -> str | None:
        cut = line.length > len(line.head)
        head = line.head if cut else line.head.removesuffix(b"\r")
        text = "\t".join(map(escaped, head.decode(errors="replace").split("\t")))
        if contains is not None and contains not in text:
            return None
        return f"{text} …[{line.length} bytes in all]" if cut else text

    return show


def show_own_line(wanted: WantedLines) -> Show:
    """Return what shows the lines of the daemon; one that is no JSON object becomes one."""
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
    said = escaped(line.head[:LONGEST_WORKER_LINE].decode(errors="replace"))
    fields = {"ts": None, "level": "warning", "event": "log_line_unreadable", "text": said}
    return json.dumps(fields, ensure_ascii=False), fields


def _rank(level: object) -> int:
    return _LEVELS.index(LogLevel(str(level))) if level in _LEVELS else len(_LEVELS)


def _contains(text: str, fields: dict[str, Any], part: str) -> bool:
    """Tell whether the line has it as it stands there, or as people are shown it."""
    return part in text or part in " ".join(f"{key}={value}" for key, value in fields.items())


def place_of(position: Position, check: int) -> str:
    """Return a position as a client keeps it: opaque to it, and known again later."""
    return f"{position.file}-{position.offset}-{check}"


def position_of(place: str) -> tuple[Position, int]:
    """Return the position and the check of a place. Raises ValueError."""
    file, offset, check = map(int, place.split("-"))
    return Position(file, offset), check


class LogReader:
    """Reads one log for one client: first what is there, then what comes."""

    def __init__(self, trail: RotatingLog, show: Show, *, longest: int, gap: str) -> None:
        self._trail = trail
        self._show = show
        self._longest = longest
        self._gap = gap
        self._position = Position(0, 0)
        self._cutter = LineCutter(longest)
        self.place = place_of(self._position, 0)
        """Where the log goes on after all that was returned."""

    def last(self, lines: int, *, unfinished: bool) -> list[LogLine]:
        """Return the last lines, and stand behind them; one without an end only if `unfinished`.

        One that goes on being written comes when it has its end. Raises OSError.
        """
        for attempt in range(_TORN_TRIES):
            found: list[LogLine] = []
            try:
                self._gather(found, lines, unfinished=unfinished)
            except TornError:
                if attempt < _TORN_TRIES - 1:
                    continue
            break
        return found[::-1]

    def _gather(self, found: list[LogLine], lines: int, *, unfinished: bool) -> None:
        """Add the last lines, the very last one first."""
        room, left, behind = HISTORY_BYTES, SEARCHED_BYTES, False
        with self._trail.stretches() as stretches:
            if stretches:
                self._stand(Position(stretches[0].file, stretches[0].end), 0)
            for stretch, line in _backwards(stretches, self._longest):
                place = Position(stretch.file, stretch.begin + line.end)
                if not behind and not line.ended and not unfinished:
                    self._stand(Position(place.file, place.offset - line.length), 0)
                    continue
                if not behind:
                    self.place, behind = place_of(self._position, line.check), True
                left -= line.length + 1
                if len(found) >= lines or room < 0 or left < 0:
                    return
                if (text := self._show(line)) is not None:
                    found.append(LogLine(text, place_of(place, line.check)))
                    room -= len(text)

    def resume(self, place: str) -> list[LogLine]:
        """Stand where a client was before; return a note if what came next is lost.

        Raises ValueError for what is no place, OSError.
        """
        position, check = position_of(place)
        found = self._trail.find(position, check)
        self._stand(found or self._trail.newest(), check if found else 0)
        return [] if found else [self._note()]

    def more(self) -> tuple[list[LogLine], bool]:
        """Return the lines that came next, and whether there may be more. Raises OSError."""
        lines: list[LogLine] = []
        for _ in range(_PIECES_AT_ONCE):
            piece = self._trail.read(self._position)
            if piece.gap and self._position.file:
                lines.append(self._note())
                self._cutter = LineCutter(self._longest)
            if piece.at != self._position:
                self._cutter.move(piece.at.offset)
            for line in self._cutter.feed(piece.data):
                self.place = place_of(Position(piece.at.file, line.end), line.check)
                if (text := self._show(line)) is not None:
                    lines.append(LogLine(text, self.place))
            self._position = Position(piece.at.file, piece.at.offset + len(piece.data))
            if not piece.data:
                return lines, False
            if lines:
                break
        return lines, True

    def _stand(self, position: Position, check: int) -> None:
        self._position = position
        self._cutter = LineCutter(self._longest, position.offset)
        self.place = place_of(position, check)

    def _note(self) -> LogLine:
        return LogLine(self._gap, self.place, gap=True)


def _backwards(stretches: list[Segment], longest: int) -> Iterator[tuple[Segment, RawLine]]:
    for stretch in stretches:
        for line in backwards(stretch.descriptor, stretch.end - stretch.begin, longest):
            yield stretch, line
