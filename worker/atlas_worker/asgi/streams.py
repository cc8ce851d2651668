"""WebSockets and server-sent events of an ASGI application: exchanges that are told to go.

Both say goodbye by an ASGI message of their own, in the application's place. What the application
sends after it meets an error that ASGI servers raise for a client that has gone, so nothing has to
know about the kit.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from atlas_worker.drain import StreamKind

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
_goodbyes: set[asyncio.Task[None]] = set()


class GoneError(OSError):
    """The exchange is over: the kit has said goodbye. Of the kind that servers raise for it."""


def _start(goodbye: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(goodbye)
    _goodbyes.add(task)
    task.add_done_callback(_finish)


def _finish(task: asyncio.Task[None]) -> None:
    _goodbyes.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        # The client has gone, or the application has said goodbye in the same moment.
        _log.debug("a stream was gone before it was told to go: %r", error)


class WebSocketStream:
    """An accepted WebSocket."""

    kind = StreamKind.WEBSOCKET

    def __init__(self, send: Send) -> None:
        self._send = send
        self._closed = False

    def tell_to_go(self, *, replaced: bool) -> None:
        """Close it; what the client sent before it knew is still the application's to read."""
        if not self._closed:
            self._closed = True
            code = _REPLACED if replaced else _GOING_AWAY
            _start(self._close(code, "another instance has taken over" if replaced else "stopping"))

    async def _close(self, code: int, reason: str) -> None:
        await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def send(self, message: Message) -> None:
        """Send what the application sends, until the WebSocket is closed."""
        if self._closed:
            if message["type"] == "websocket.close":
                return
            raise GoneError("the WebSocket is closed")
        self._closed = message["type"] == "websocket.close"
        await self._send(message)


class AsgiEventStream:
    """An answer of server-sent events; it ends after an event, never within one.

    `encoded`: compressed below us, so events can't be told apart; whoever compresses events sends
    each as a piece of its own. `last` is called before the last piece is sent.
    """

    kind = StreamKind.EVENTS

    def __init__(self, send: Send, *, encoded: bool, last: Callable[[], None]) -> None:
        self._send = send
        self._encoded = encoded
        self._last = last
        self._tail = b""
        self._between = True
        self._sending = False
        self._told = False
        self._ended = False

    def tell_to_go(self, *, replaced: bool) -> None:
        """End the stream now, or after the event that is under way."""
        self._told = True
        if self._between and not self._sending and not self._ended:
            self._ended = True
            _start(self._end())

    async def send(self, message: Message) -> None:
        """Send a piece of the body; the stream's end may be in the middle of it."""
        if self._ended:
            raise GoneError("the stream has ended")
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if self._told and more and (end := self._first_end(body)) is not None:
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
        if self._told and self._between and not self._ended:
            self._ended = True
            await self._end()

    async def _end(self) -> None:
        self._last()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _first_end(self, body: bytes) -> int | None:
        """Return where the event ends that is under way, as a position in `body`."""
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
