"""Parses server-sent events from bytes in pieces of any size.

Follows the HTML standard, with limits: an unfinished line or event is kept in memory, which no
server must be able to fill. Bytes that are not UTF-8 become U+FFFD.
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
    """A line or an event is longer than the reader's limit."""


@dataclass(frozen=True)
class ServerEvent:
    """One event: its kind (`message` by default) and its data."""

    kind: str
    data: str


class EventReader:
    """Parses one stream from its first byte on; each connection needs a new one.

    `last_id` is the `Last-Event-ID` to resume with; it starts as that of the stream before. An
    unfinished event at the end of a stream is dropped.
    """

    def __init__(self, last_id: str = "", *, max_bytes: int = MAX_BYTES) -> None:
        self.last_id = last_id
        self.retry_seconds: float | None = None
        """The pause before a reconnection that the server asks for."""
        self.comments = 0
        """Number of comments so far; a server sends them as keep-alive."""
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
        """Yield the events that end in `piece`; must be exhausted. Raises OverlongError."""
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
                pass  # unknown fields are ignored

    def _dispatch(self) -> ServerEvent | None:
        """End a block: without data it is not an event, but its id counts."""
        self.last_id = self._next_id
        data, kind = self._data, self._kind
        self._data, self._data_bytes, self._kind = [], 0, ""
        return ServerEvent(kind or "message", "\n".join(data)) if data else None
