"""Closes WebSockets and server-sent events of an ASGI application.

Each is closed by an ASGI message, in the application's place. If the application sends more, it
gets the error that ASGI servers raise for a disconnected client, so it needs no change.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from atlas_worker.drain import StreamKind
from atlas_worker.messages import between_messages

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger("atlas.worker")

_REPLACED, _GOING_AWAY = 1012, 1001

# A blank line ends an event; a line ends by any of the three.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_AT_BLANK_LINE = re.compile(_BLANK_LINE.pattern + rb"\Z")
_TAIL = 4

# The loop itself holds tasks only weakly.
_closing: set[asyncio.Task[None]] = set()


class GoneError(OSError):
    """The kit has ended the exchange. An OSError, as servers raise for a disconnected client."""


def _start(closing: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(closing)
    _closing.add(task)
    task.add_done_callback(_finish)


def _finish(task: asyncio.Task[None]) -> None:
    _closing.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        # The client has disconnected, or the application has closed it at the same time.
        _log.debug("a stream ended before it was closed: %r", error)


class WebSocketStream:
    """An accepted WebSocket: closed between two messages."""

    kind = StreamKind.WEBSOCKET

    def __init__(
        self, send: Send, *, receiving: Callable[[], int], remaining: Callable[[], float]
    ) -> None:
        """`receiving` returns the number of the application's pending call of `receive`, or 0.

        `remaining` returns how many seconds of the drain are left.
        """
        self._send = send
        self._receiving = receiving
        self._remaining = remaining
        self._call = 0
        """The call that was pending at the last look."""
        self._closing = self._closed = False

    def begin_close(self, *, replaced: bool) -> None:
        """Close it once the application has answered the last message."""
        if not self._closing:
            self._closing = True
            code = _REPLACED if replaced else _GOING_AWAY
            _start(self._close(code, "another instance is active" if replaced else "stopping"))

    async def _close(self, code: int, reason: str) -> None:
        await between_messages(self._is_receiving, self._remaining)
        if not self._closed:
            self._closed = True
            await self._send({"type": "websocket.close", "code": code, "reason": reason})

    def _is_receiving(self) -> bool:
        """Return whether the same call is still pending: a message may be there that ends it."""
        before, self._call = self._call, self._receiving()
        return self._call != 0 and self._call == before

    async def send(self, message: Message) -> None:
        """Send the application's messages, until the WebSocket is closed."""
        if self._closed:
            if message["type"] == "websocket.close":
                return
            raise GoneError("the WebSocket is closed")
        self._closed = message["type"] == "websocket.close"
        await self._send(message)


class AsgiEventStream:
    """A response of server-sent events; it ends after an event, never within one.

    `encoded`: compressed inside the application, so that the ends of events are invisible; each
    piece of the body counts as an event. `last` is called before the last piece is sent.
    """

    kind = StreamKind.EVENTS

    def __init__(self, send: Send, *, encoded: bool, last: Callable[[], None]) -> None:
        self._send = send
        self._encoded = encoded
        self._last = last
        self._tail = b""
        self._between = True
        self._sending = False
        self._close_requested = False
        self._ended = False

    def begin_close(self, *, replaced: bool) -> None:
        """End the stream now, or after the current event."""
        self._close_requested = True
        if self._between and not self._sending and not self._ended:
            self._ended = True
            _start(self._end())

    async def send(self, message: Message) -> None:
        """Send a piece of the body; the stream may end within it."""
        if self._ended:
            raise GoneError("the stream has ended")
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if self._close_requested and more and (end := self._first_end(body)) is not None:
            message = {**message, "body": body[:end], "more_body": False}
            more = False
            self._last()
        self._note(body)
        self._ended = not more
        self._sending = True
        try:
            await self._send(message)
        finally:
            self._sending = False
        if self._close_requested and self._between and not self._ended:
            self._ended = True
            await self._end()

    async def _end(self) -> None:
        self._last()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _first_end(self, body: bytes) -> int | None:
        """Return where the current event ends, as a position in `body`."""
        if self._encoded:
            return len(body)
        if self._between:
            return 0
        seen = len(self._tail)
        ends = (found.end() for found in _BLANK_LINE.finditer(self._tail + body))
        return next((end - seen for end in ends if end > seen), None)

    def _note(self, body: bytes) -> None:
        self._tail = (self._tail + body)[-_TAIL:]
        self._between = self._encoded or not self._tail or bool(_AT_BLANK_LINE.search(self._tail))
