"""Reads server-sent events from bytes as they come, however they are cut into pieces.

As the HTML standard has it, with bounds: what is not ended yet is kept in memory, and whoever
answers there must not be able to fill that. Bytes that are no UTF-8 become U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_BYTES = 8 * 1024 * 1024
"""Of one line, and of the data of one event."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_RETRY_DIGITS = 9


class OverlongError(Exception):
    """A line or an event is longer than the reader keeps."""


@dataclass(frozen=True)
class ServerEvent:
    """One event: its kind (`message` if none was named) and its data."""

    kind: str
    data: str


class EventReader:
    """Takes a stream from its first byte on. One for each connection.

    `last_id` is what to send as `Last-Event-ID` when the stream has to be opened again; begun with
    that of the stream before, it stays until an id comes. What was not ended is to be forgotten.
    """

    def __init__(self, last_id: str = "", *, max_bytes: int = MAX_BYTES) -> None:
        self.last_id = last_id
        self.retry_seconds: float | None = None
        """How long the server wants a client to wait before it comes again."""
        self.comments = 0
        """How many came: a server shows by them that it is still there."""
        self._max_bytes = max_bytes
        self._line: list[bytes] = []
        self._line_bytes = 0
        self._at_start = True
        self._after_cr = False
        self._next_id = last_id
        self._kind = ""
        self._data: list[str] = []
        self._data_bytes = 0

    def feed(self, piece: bytes) -> Iterator[ServerEvent]:
        """Yield the events that end in `piece`; to be taken to the end. Raises OverlongError."""
        if not piece:
            return
        if self._after_cr and piece.startswith(b"\n"):  # one line end, cut in two
            piece = piece[1:]
            self._after_cr = False
            if not piece:
                return
        *ended, rest = _LINE_END.split(piece)
        self._after_cr = piece.endswith(b"\r")
        for part in ended:
            self._keep(part)
            line = b"".join(self._line)
            self._line.clear()
            self._line_bytes = 0
            if (event := self._take(line)) is not None:
                yield event
        self._keep(rest)

    def _keep(self, part: bytes) -> None:
        self._line_bytes += len(part)
        if self._line_bytes > self._max_bytes:
            raise OverlongError(f"a line of over {self._max_bytes} bytes")
        if part:
            self._line.append(part)

    def _take(self, line: bytes) -> ServerEvent | None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._dispatch()
        if line.startswith(b":"):
            self.comments += 1
            return None
        name, _, value = line.partition(b":")
        self._field(name, value.removeprefix(b" "))
        return None

    def _field(self, name: bytes, value: bytes) -> None:
        match name:
            case b"data":
                self._data_bytes += len(value) + 1
                if self._data_bytes > self._max_bytes:
                    raise OverlongError(f"an event of over {self._max_bytes} bytes")
                self._data.append(value.decode(errors="replace"))
            case b"event":
                self._kind = value.decode(errors="replace")
            case b"id" if b"\0" not in value:
                self._next_id = value.decode(errors="replace")
            case b"retry" if value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
                self.retry_seconds = int(value) / 1000
            case _:
                pass  # a field of a later time

    def _dispatch(self) -> ServerEvent | None:
        """End a block: without data it is no event, but its id counts all the same."""
        self.last_id = self._next_id
        data, kind = self._data, self._kind
        self._data, self._data_bytes, self._kind = [], 0, ""
        return ServerEvent(kind or "message", "\n".join(data)) if data else None
