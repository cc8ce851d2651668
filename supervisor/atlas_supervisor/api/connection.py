"""A client connection with a deadline on every move of the client.

aiohttp limits neither a slowly sent header (its keep-alive timeout is an hour) nor a slowly sent
body nor a client that does not read its answer. Here a clock runs whenever it is the client's turn,
and stops only while the daemon works on a request.
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

# How long a client may take to read the rest of a stream that ends.
_LAST_SECONDS = 0.5
# An error answer is lost if the connection is reset while the client still sends: keep reading so
# long.
_LINGER_SECONDS = 2.0
_UCRED = struct.Struct("iII")  # pid, uid, gid


@dataclass(frozen=True)
class Peer:
    """The other end of a connection, as the kernel reports it."""

    uid: int | None
    """Of the process that connected over the Unix socket; None over TCP."""
    address: str
    """The peer's address; `unix` on the Unix socket."""
    local: str
    """The local address that it connected to; empty on the Unix socket."""


class _Turn(Enum):
    FRESH = auto()  # accepted, no byte received yet
    RECEIVING = auto()
    HANDLING = auto()  # the daemon's turn: no clock
    IDLE = auto()  # answered; the client reads the answer, then sends the next request or leaves
    CLOSING = auto()  # answered with the last answer of this connection


class _Silent(AbstractAccessLogger):
    """No access log: the application logs what matters."""

    @property
    def enabled(self) -> bool:
        """Return False, so that aiohttp does not even take times."""
        return False

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log nothing."""


class TimedConnection(web.RequestHandler):
    """aiohttp's connection with a clock; `seconds` is the client's limit for each move."""

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
            keepalive_timeout=3 * seconds,  # longer than our own limit
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
        """Loop time by which the whole request must have arrived."""

    @property
    def busy(self) -> bool:
        """Whether the daemon is working on a request of this connection."""
        return self._turn is _Turn.HANDLING

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Arm the clock, which counts from the moment the connection was accepted."""
        super().connection_made(transport)
        self.peer = _peer_of(transport)
        self._arm(self.deadline)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the clock and notify the listener."""
        self._disarm()
        super().connection_lost(exc)
        self._closed(self)
        if self._close_source is not None:
            self._close_source()

    def data_received(self, data: bytes) -> None:
        """Note whose turn it is; a request's time starts with its first byte."""
        if data and self._turn is _Turn.FRESH:
            self._turn = _Turn.RECEIVING
        elif data and self._turn is _Turn.IDLE:
            self._turn = _Turn.RECEIVING
            self._arm(self._clock.time() + self._seconds)
        elif data and self._turn is _Turn.HANDLING:
            self._early = True
        super().data_received(data)

    def begin(self) -> None:
        """Stop the clock: the headers have arrived. Reading the body must respect `deadline`."""
        self._disarm()
        self._turn = _Turn.HANDLING
        self._early = False

    def received(self) -> None:
        """Note that the body has arrived: further bytes belong to the next request."""
        self._early = False

    def end(self, *, last: bool) -> None:
        """Restart the clock: the answer is ready. `last`: the connection ends with it."""
        if last:
            self._turn = _Turn.CLOSING
        else:
            self._turn = _Turn.RECEIVING if self._early else _Turn.IDLE
        self._arm(self._clock.time() + self._seconds)

    def open_stream(self, close: Callable[[], None]) -> None:
        """Turn the connection into a stream; `close` is called when it must end.

        Raises RefusedError if there are too many streams, ConnectionError if the client has left.
        """
        if self.transport is None:
            raise ConnectionResetError("the client has left")
        self._streams(self)
        self._close_source = close
        # The client must read each part before the next one is taken: pending parts stay in the
        # source, which is bounded. Not 0, with which asyncio's TLS pauses and resumes endlessly.
        self.transport.set_write_buffer_limits(high=1, low=0)

    async def send(
        self, request: web.BaseRequest, response: web.StreamResponse, part: bytes
    ) -> None:
        """Send a part of a stream; a client that does not read it in time is disconnected."""
        self._arm(self._clock.time() + self._seconds)  # writing may wait for the client as well
        try:
            await response.write(part)
            await request.writer.drain()
        finally:
            self._disarm()

    def end_stream(self) -> None:
        """End a stream properly; a client that has not read all of it has little time left."""
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
        """Answer invalid HTTP, and failures outside of every handler."""
        self._turn = _Turn.CLOSING
        if request.writer.output_size > 0:
            raise ConnectionError("the answer is partly sent and can't be replaced")
        if status == 500:
            log.error("api_failed", origin=self.peer.address, exc_info=exc)
            refusal = errors.INTERNAL_ERROR.error()
        else:
            log.warning("api_refused", status=status, code="bad_request", origin=self.peer.address)
            refusal = errors.BAD_REQUEST.error(status=status)
        return responses.refusal(refusal, close=True)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Give errors that aiohttp raised before the application ran the common shape."""
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
                log.info("api_stream_not_read", origin=self.peer.address)
            self._abort()  # the client does not read
            return
        if self._turn is _Turn.HANDLING:
            return  # a part of a stream was read just in time
        if self._turn is _Turn.RECEIVING:
            log.warning("api_refused", status=408, code="too_slow", origin=self.peer.address)
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
