"""Server-sent events: which answers are such streams, and where one may end.

An answer of this type to a GET goes on for ever, and its client comes back by itself
(EventSource, with `Last-Event-ID`). One to any other method is an answer that is told in pieces,
as language models do it: nobody could resume it, so it is a request like any other.
"""

from __future__ import annotations

UNFINISHED_EVENT_SECONDS = 1.0
"""How long the rest of an event that has begun is waited for."""

_CONTENT_TYPE = "text/event-stream"


def is_event_stream(method: str, content_type: str) -> bool:
    """Whether an answer is a stream that is to be told to go; parameters of the type may follow."""
    return method == "GET" and content_type.partition(";")[0].strip().lower() == _CONTENT_TYPE


class EventBoundary:
    """Follows the bytes of a stream, and knows whether they end with a whole event."""

    def __init__(self) -> None:
        # A stream may end before its first event: the beginning counts as a blank line.
        self._tail = b"\n\n"

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes, before any compression."""
        # Two line ends have at most four bytes.
        self._tail = (self._tail + bytes(data[-4:]))[-4:]

    @property
    def reached(self) -> bool:
        """Whether the last line was blank; a line ends by CR LF, LF or CR."""
        return self._tail.replace(b"\r\n", b"\n").replace(b"\r", b"\n").endswith(b"\n\n")
