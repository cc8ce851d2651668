"""One client connection with a deadline on whatever the client is to do.

aiohttp bounds neither a dripped header (its keep-alive timeout is an hour) nor a dripped body nor
a client that does not read its answer. Here a clock runs whenever the client has the next move,
and stands still only while the daemon itself is at work on a request.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import structlog
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from atlas_supervisor import errors
from atlas_supervisor.api import responses

log = structlog.get_logger()

# What a stream that is to end still has to be read, before its client loses the rest.
_LAST_SECONDS = 0.5
# A refusal is lost if the connection is reset while its client still sends: hear it out so long.
_LINGER_SECONDS = 2.0
_UCRED = struct.Struct("iII")  # pid, uid, gid


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as the kernel tells it."""

    uid: int | None
    """Of the process that connected to the Unix socket; None over TCP."""
    address: str
    """The peer's address; `unix` on the Unix socket."""
    local: str
    """The address at which it reached us; empty on the Unix socket."""


class _Turn(Enum):
    FRESH = auto()  # accepted, not a byte yet
    RECEIVING = auto()
    HANDLING = auto()  # the daemon has the move: no clock
    IDLE = auto()  # answered; the client reads the answer, then sends the next request or leaves
    CLOSING = auto()  # answered with the last answer of this connection


class _Silent(AbstractAccessLogger):
    """No access log: what matters is logged where it is decided."""

    @property
    def enabled(self) -> bool:
        """Tell aiohttp not even to measure."""
        return False

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log nothing."""


class TimedConnection(web.RequestHandler):
    """aiohttp's connection with a clock. `seconds` is what a client has for each of its moves."""

    def __init__(
        self,
        server: web.Server,
        *,
        seconds: float,
        closed: Callable[[TimedConnection], None],
        streams: Callable[[TimedConnection], None],
    ) -> None:
        self._clock = asyncio.get_running_loop()
        super().__init__(
            server,
            loop=self._clock,
            keepalive_timeout=3 * seconds,  # never before our own
            access_log_class=_Silent,
            auto_decompress=False,  # compressed bodies are refused, not inflated
            lingering_time=min(seconds, _LINGER_SECONDS),
        )
        self._seconds = seconds
        self._closed = closed
        self._streams = streams
        self._close_source: Callable[[], None] | None = None
        self._turn = _Turn.FRESH
        self._early = False
        self._answering = False
        self._timer: asyncio.TimerHandle | None = None
        self.peer = Peer(uid=None, address="", local="")
        self.deadline = self._clock.time() + seconds
        """Loop time by which the request must have come in whole."""

    @property
    def busy(self) -> bool:
        """Tell whether the daemon is at work on a request of this connection."""
        return self._turn is _Turn.HANDLING

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock; it has been running since the connection was accepted."""
        super().connection_made(transport)
        self.peer = _peer_of(transport)
        self._arm(self.deadline)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the clock and tell the listener."""
        self._disarm()
        super().connection_lost(exc)
        self._closed(self)
        if self._close_source is not None:
            self._close_source()

    def data_received(self, data: bytes) -> None:
        """Note whose move it is; a request has its whole time from its first byte on."""
        if data and self._turn is _Turn.FRESH:
            self._turn = _Turn.RECEIVING
        elif data and self._turn is _Turn.IDLE:
            self._turn = _Turn.RECEIVING
            self._arm(self._clock.time() + self._seconds)
        elif data and self._turn is _Turn.HANDLING:
            self._early = True
        super().data_received(data)

    def begin(self) -> None:
        """Headers are in. Whoever reads the body heeds `deadline`; our clock stops."""
        self._disarm()
        self._turn = _Turn.HANDLING
        self._early = False

    def received(self) -> None:
        """Body is in: whatever comes now belongs to the next request."""
        self._early = False

    def end(self, *, last: bool) -> None:
        """Answer is ready: the client has the move again, for the last time if `last`."""
        if last:
            self._turn = _Turn.CLOSING
        else:
            self._turn = _Turn.RECEIVING if self._early else _Turn.IDLE
        self._arm(self._clock.time() + self._seconds)

    def open_stream(self, close: Callable[[], None]) -> None:
        """Answer without an end from now on; `close` is called when that must end all the same.

        Raises RefusedError if no more streams are let in, ConnectionError if the client has left.
        """
        if self.transport is None:
            raise ConnectionResetError("the client has left")
        self._streams(self)
        self._close_source = close
        # Each part is to be read before the next one: what waits does so in the source, which has
        # its bounds. Not 0, with which asyncio's TLS pauses and goes on at every other look.
        self.transport.set_write_buffer_limits(high=1, low=0)

    async def send(
        self, request: web.BaseRequest, response: web.StreamResponse, part: bytes
    ) -> None:
        """Send a part of a stream; who does not read it in time is cut off."""
        self._arm(self._clock.time() + self._seconds)  # writing may wait for the client as well
        try:
            await response.write(part)
            await request.writer.drain()
        finally:
            self._disarm()

    def end_stream(self) -> None:
        """End a stream, as its protocol does; who does not read has little time left to do so."""
        if self._close_source is not None:
            self._close_source()
        if self.transport is not None and self.transport.get_write_buffer_size():
            self._arm(self._clock.time() + min(self._seconds, _LAST_SECONDS))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP, and what failed outside of every handler."""
        self._turn = _Turn.CLOSING
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun; it can't become another one")
        if status == 500:
            log.error("api.failed", origin=self.peer.address, exc_info=exc)
            refusal = errors.INTERNAL_ERROR.error()
        else:
            log.warning("api.refused", status=status, code="bad_request", origin=self.peer.address)
            refusal = errors.BAD_REQUEST.error(status=status)
        return responses.refusal(refusal, close=True)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Give aiohttp's own refusals, made before any of our code ran, the common shape."""
        if isinstance(resp, web.HTTPException):
            resp = responses.refusal(responses.of_http_exception(resp), close=True)
        self._answering = True
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._answering = False

    def _arm(self, deadline: float) -> None:
        self._disarm()
        self.deadline = deadline
        if self.transport is not None:
            self._timer = self._clock.call_at(deadline, self._expire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        transport = self.transport
        if transport is None:
            return
        if self._answering or transport.get_write_buffer_size():
            if self._close_source is not None:
                log.info("api.stream_not_read", origin=self.peer.address)
            self._abort()  # it does not read
            return
        if self._turn is _Turn.HANDLING:
            return  # a part of a stream was read at the last moment
        if self._turn is _Turn.RECEIVING:
            log.warning("api.refused", status=408, code="too_slow", origin=self.peer.address)
            transport.write(responses.raw_timeout())
            if transport.get_write_buffer_size():
                self._abort()
                return
        self.force_close()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        self.force_close()


def _peer_of(transport: asyncio.BaseTransport) -> Peer:
    sock = transport.get_extra_info("socket")
    if sock.family == socket.AF_UNIX:
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return Peer(uid=_UCRED.unpack(data)[1], address="unix", local="")
    peer, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    return Peer(
        uid=None, address=peer[0] if peer else "unknown", local=local[0] if local else "unknown"
    )
