"""Server-sent events: which responses are such streams, and where one may end.

A response of this type to a GET has no end, and its client reconnects by itself (EventSource, with
`Last-Event-ID`). A response to any other method is an answer in pieces, as language models give it:
it can't be resumed, so it is a request like any other.
"""

from __future__ import annotations

UNFINISHED_EVENT_SECONDS = 1.0
"""How long the drain waits for the rest of an event."""

_CONTENT_TYPE = "text/event-stream"


def is_event_stream(method: str, content_type: str) -> bool:
    """Return whether a response is a stream to close; the type may have parameters."""
    return method == "GET" and content_type.partition(";")[0].strip().lower() == _CONTENT_TYPE


class EventBoundary:
    """Reads the bytes of a stream, and knows whether they end with a whole event."""

    def __init__(self) -> None:
        # A stream may end before its first event: its start counts as a blank line.
        self._tail = b"\n\n"

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Read the next bytes, before any compression."""
        # Two line ends have at most four bytes.
        self._tail = (self._tail + bytes(data[-4:]))[-4:]

    @property
    def reached(self) -> bool:
        """Whether the last line was blank; a line ends by CR LF, LF or CR."""
        return self._tail.replace(b"\r\n", b"\n").replace(b"\r", b"\n").endswith(b"\n\n")
