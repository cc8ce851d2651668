"""uvicorn's two HTTP/1.1 protocols, which know in addition when a connection may be closed.

uvicorn accepts protocol classes as its `http` setting. What is used of them beyond asyncio's
interface has no underscore, but is not documented: `cycle`, `pipeline`, `conn`, `app`,
`shutdown`, the two `on_...` hooks and the keep-alive handler. tests/unit/worker/test_asgi_drain.py
fails if one of them changes its meaning.
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
from atlas_worker.request_counter import NOT_DRAWN, counter
from atlas_worker.serving import peer_of


class Watched(asyncio.Protocol):
    """What the drain needs of a connection, under either protocol."""

    transport: asyncio.Transport
    cycle: Any
    app: Any
    since: float
    drawn = False
    first_since = NOT_DRAWN

    def begin_watch(self) -> None:
        """Pass the exchanges of this connection through `Exchanges`; called at construction."""
        exchanges = cast("Exchanges", self.app)
        self.app = functools.partial(exchanges.serve, self)
        self.since = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the beginning of the connection."""
        super().connection_made(transport)
        if self.drawn:
            self.first_since = counter.connected(peer_of(transport))

    def reading(self) -> bool:
        """Return whether a request has arrived in part."""
        raise NotImplementedError

    def has_more(self) -> bool:
        """Return whether requests have arrived behind the current one."""
        raise NotImplementedError

    def answering(self) -> bool:
        """Return whether a response is pending, or not yet written to the kernel in full."""
        return (
            (self.cycle is not None and not self.cycle.response_complete)
            or self.transport is None
            or self.transport.get_write_buffer_size() > 0
        )

    def idle_since(self) -> float | None:
        """Return when it became idle, or None during a request."""
        return None if self.answering() or self.has_more() or self.reading() else self.since

    def can_close(self) -> bool:
        """Return whether a close after this response cuts nothing that the client is sending.

        The kernel resets a connection that is closed with unread bytes, and discards the response.
        """
        return not (self.has_more() or self.reading() or self._unread() > 0)

    def close_after_answer(self) -> None:
        """Close once the current response is complete, which is uvicorn's `shutdown`."""
        if self.answering():
            self.shutdown()

    def shutdown(self) -> None:
        """Close when idle, else after the response; implemented by uvicorn's protocols."""
        raise NotImplementedError

    def close_if_unread(self) -> None:
        """Close an idle connection, unless bytes have arrived that are not read yet."""
        if self.transport.is_closing() or self._unread() > 0:
            return
        sock = self.transport.get_extra_info("socket")
        # The transport closes in a later turn of the loop. Shut down at once, so that the time in
        # which a request could cross the close is as short as possible. uvloop's socket can't be
        # shut down; a duplicate of its descriptor can.
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
    """On h11, whose state is public."""

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
        """Return whether a head or a body has arrived in part."""
        if self.conn.their_state is h11.SEND_BODY:
            return True
        return self.conn.their_state is h11.IDLE and self.has_more()

    def has_more(self) -> bool:
        """Return whether h11 has unparsed bytes."""
        return bool(self.conn.trailing_data[0].strip(b"\r\n"))

    def on_response_complete(self) -> None:
        """Remember when the connection becomes idle."""
        self.since = time.monotonic()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Close when idle, else after the response."""
        H11Protocol.shutdown(self)


def watched_httptools() -> type[Watched]:
    """Return the protocol on httptools; raises ImportError if that is not installed."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415 - optional

    class WatchedHttpTools(Watched, HttpToolsProtocol):
        """On httptools, whose parser calls back at the start and end of each request."""

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
