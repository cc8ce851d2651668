"""Closes aiohttp's two kinds of streams so that a client can distinguish it from a failure.

aiohttp's `WebSocketResponse.close()` closes the connection at once while a handler receives: data
that the client has just sent is then answered by a reset, which can overtake the close frame. So
here the connection stays open until the client has answered the close frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiohttp import ClientConnectionResetError, WSCloseCode, WSMsgType, web
from aiohttp.http import StreamWriter

from atlas_worker.drain import StreamKind
from atlas_worker.events import UNFINISHED_EVENT_SECONDS, EventBoundary
from atlas_worker.messages import between_messages


class WebSocket:
    """A WebSocket: closed between two messages, and open until its client has answered."""

    kind = StreamKind.WEBSOCKET

    def __init__(self, response: web.WebSocketResponse, remaining: Callable[[], float]) -> None:
        self._response = response
        self._remaining = remaining
        self._closing: asyncio.Task[None] | None = None
        self._unseen = 0

    def note_data(self) -> None:
        """Count data that has arrived; the handler sees it in the next turn of the loop."""
        self._unseen += 1
        asyncio.get_running_loop().call_soon(self._note_seen)

    def _note_seen(self) -> None:
        self._unseen -= 1

    def begin_close(self, *, replaced: bool) -> None:
        """Start the closing handshake."""
        if replaced:
            closing = self._close(WSCloseCode.SERVICE_RESTART, b"another instance is active")
        else:
            closing = self._close(WSCloseCode.GOING_AWAY, b"this instance stops")
        self._closing = asyncio.create_task(closing)

    async def finished(self) -> None:
        """Wait for the end of the handshake, if it has started."""
        if self._closing is not None:
            await asyncio.wait([self._closing])

    async def _close(self, code: int, reason: bytes) -> None:
        response = self._response
        await between_messages(self._receiving, self._remaining)
        if response.closed or not response.prepared:
            return
        # The connection is closed once the handler has ended and the handshake is over.
        response._close_transport = _nothing  # type: ignore[method-assign]  # noqa: SLF001 - see above
        await response.close(code=code, message=reason, drain=False)
        if response._closing:  # noqa: SLF001 - not public
            # The handler was receiving: the client's answer is not read yet.
            await self._answered()

    def _receiving(self) -> bool:
        """Return whether the handler receives, or has ended."""
        waits = self._response._waiting and not self._unseen  # noqa: SLF001 - not public
        return waits or self._response.closed

    async def _answered(self) -> None:
        """Read up to the client's close frame, for as long as aiohttp itself would wait."""
        reader = self._response._reader  # noqa: SLF001 - receive() no longer reads once closed
        if reader is None:
            return
        # Anything else (the connection's end, bad data) is not an answer to wait for.
        with suppress(Exception):
            async with asyncio.timeout(self._response._timeout):  # noqa: SLF001 - the caller's own setting
                # A CLOSING message still there means that the handler itself got the answer.
                while (await reader.read()).type not in (WSMsgType.CLOSE, WSMsgType.CLOSING):
                    pass


def _nothing() -> None:
    """Stand in for what closes a connection too early."""


class EventStream:
    """Server-sent events: ended after a whole event, as a complete response."""

    kind = StreamKind.EVENTS

    def __init__(self, response: web.StreamResponse, writer: StreamWriter) -> None:
        self.response = response
        self.ended = False
        """Whether the end of the stream is written and its handler cancelled."""
        self._writer = writer
        self._handler = asyncio.current_task()
        self._boundary = EventBoundary()
        self._close_requested = False
        self._writing = 0
        self._end_compressed: asyncio.Task[None] | None = None
        self._write = writer.write
        writer.write = self._watched_write  # type: ignore[method-assign]

    def begin_close(self, *, replaced: bool) -> None:
        """End the stream now if no event has started, else after it or after a short time."""
        self._close_requested = True
        if self._boundary.reached and not self._writing:
            self._end()
        else:
            asyncio.get_running_loop().call_later(UNFINISHED_EVENT_SECONDS, self._end)

    async def _watched_write(self, chunk: Any, **options: Any) -> None:
        if self.ended:
            # The cancellation comes first if this is the handler's own task.
            await asyncio.sleep(0)
            raise ClientConnectionResetError("the stream was ended: this instance drains")
        self._boundary.feed(chunk)
        self._writing += 1
        try:
            await self._write(chunk, **options)
        finally:
            self._writing -= 1
        if self._close_requested and self._boundary.reached and not self._writing:
            self._end()

    def _end(self) -> None:
        if self.ended or self._handler is None or self._handler.done():
            return
        self.ended = True
        if self.response.compression:
            # The compressor's last bytes; they are written in the next turn of the loop.
            self._end_compressed = asyncio.create_task(self._write_compressed_end())
        else:
            with suppress(ConnectionError):
                self._writer.set_eof()
        asyncio.get_running_loop().call_soon(self._handler.cancel)

    async def _write_compressed_end(self) -> None:
        with suppress(ConnectionError):
            await self._writer.write_eof()
