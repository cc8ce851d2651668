"""uvicorn's two HTTP/1.1 protocols, each knowing in addition when its connection may be closed.

uvicorn takes protocol classes as its `http` setting. What is used of the classes beyond asyncio's
interface has no underscore, yet is documented nowhere: `cycle`, `pipeline`, `conn`, `app`,
`shutdown`, the two `on_...` hooks and the keep-alive handler. tests/unit/worker/test_asgi_drain.py
fails if one of them comes to mean something else.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import functools
import os
import socket
import termios
import time
from contextlib import suppress
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from atlas_worker.asgi.exchanges import Exchanges


class Watched(asyncio.Protocol):
    """What the drain asks of a connection, whichever protocol reads it."""

    transport: asyncio.Transport
    cycle: Any
    app: Any
    since: float

    def begin_watch(self) -> None:
        """Put the exchanges of this connection through `Exchanges`; at construction."""
        exchanges = cast("Exchanges", self.app)
        self.app = functools.partial(exchanges.serve, self)
        self.since = time.monotonic()

    def reading(self) -> bool:
        """Whether a request has begun to arrive whose end has not."""
        raise NotImplementedError

    def has_more(self) -> bool:
        """Whether requests have arrived behind the one being answered."""
        raise NotImplementedError

    def answering(self) -> bool:
        """Whether an answer is owed, or not yet handed to the kernel in full."""
        return (
            (self.cycle is not None and not self.cycle.response_complete)
            or self.transport is None
            or self.transport.get_write_buffer_size() > 0
        )

    def idle_since(self) -> float | None:
        """Return when it became idle, or None while a request is under way."""
        return None if self.answering() or self.has_more() or self.reading() else self.since

    def can_close(self) -> bool:
        """Whether a close after this answer cuts nothing that the client is still sending.

        The kernel resets a connection that is closed with bytes unread, and takes the answer back.
        """
        return not (self.has_more() or self.reading() or self._unread() > 0)

    def close_after_answer(self) -> None:
        """Close once the answer under way is complete: `shutdown` is uvicorn's word for it."""
        if self.answering():
            self.shutdown()

    def shutdown(self) -> None:
        """Close when idle, else after the answer; uvicorn's protocols bring it."""
        raise NotImplementedError

    def close_if_unread(self) -> None:
        """Close an idle connection, unless bytes have arrived that nobody has read yet."""
        if self.transport.is_closing() or self._unread() > 0:
            return
        sock = self.transport.get_extra_info("socket")
        # The transport closes in a later turn of the loop; the client is told at once, so that
        # the moment in which its request could cross our close is as short as it can be. uvloop's
        # socket can't be shut down; a duplicate of its descriptor can.
        with suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as own:
            own.shutdown(socket.SHUT_WR)
        self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Close at uvicorn's own keep-alive limit as the drain does."""
        self.close_if_unread()

    def _unread(self) -> int:
        sock = self.transport.get_extra_info("socket")
        count = array.array("i", [0])
        with suppress(OSError, AttributeError):
            fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
        return count[0]


class WatchedH11(Watched, H11Protocol):
    """On h11, whose state tells everything."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.begin_watch()

    def reading(self) -> bool:
        """Whether a head or a body is half here."""
        if self.conn.their_state is h11.SEND_BODY:
            return True
        return self.conn.their_state is h11.IDLE and self.has_more()

    def has_more(self) -> bool:
        """Whether h11 holds bytes that it has not looked at."""
        return bool(self.conn.trailing_data[0].strip(b"\r\n"))

    def on_response_complete(self) -> None:
        """Note when the connection becomes idle."""
        self.since = time.monotonic()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Close when idle, else after the answer."""
        H11Protocol.shutdown(self)


def watched_httptools() -> type[Watched]:
    """Return the protocol on httptools; raises ImportError where that is not installed."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415 - optional

    class WatchedHttpTools(Watched, HttpToolsProtocol):
        """On httptools, whose parser calls back at the beginning and end of each request."""

        def __init__(
            self,
            config: Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(config, server_state, app_state, _loop)
            self._reading = False
            self.begin_watch()

        def reading(self) -> bool:
            return self._reading

        def has_more(self) -> bool:
            return bool(self.pipeline)

        def on_message_begin(self) -> None:
            self._reading = True
            super().on_message_begin()

        def on_message_complete(self) -> None:
            self._reading = False
            super().on_message_complete()

        def on_response_complete(self) -> None:
            self.since = time.monotonic()
            super().on_response_complete()

        def shutdown(self) -> None:
            HttpToolsProtocol.shutdown(self)

    return WatchedHttpTools
