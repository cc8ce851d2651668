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
from contextlib import suppress
from enum import Enum, auto

import structlog
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from atlas_supervisor import errors
from atlas_supervisor.api import messages
from atlas_supervisor.api.security import Peer, Unsent, peer_of
from atlas_supervisor.telemetry.log_summary import LogSummary

log = structlog.get_logger()

# How long a client may take to read the rest of a stream that ends.
_LAST_SECONDS = 0.5
# An error answer is lost if the connection is reset while the client still sends: keep reading so
# long.
_LINGER_SECONDS = 2.0
_MOST_BUFFERED = 16 * 1024
"""Bytes of an answer that are buffered for a client; it must read them before more are written."""
_RESET = struct.pack("ii", 1, 0)  # linger for no time: what is left is discarded


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
        head: bytes,
        seconds: float,
        deadline: float,
        trusted: bool,
        unsent: Unsent,
        summary: LogSummary,
        closed: Callable[[TimedConnection], None],
        trust: Callable[[TimedConnection], None],
        check_streams: Callable[[TimedConnection], None],
        stream: Callable[[TimedConnection], None],
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
        self._head = head
        self._seconds = seconds
        self._unsent = unsent
        self._summary = summary
        self._closed = closed
        self._trust = trust
        self._check_streams = check_streams
        self._stream = stream
        self._close_source: Callable[[], None] | None = None
        self._turn = _Turn.FRESH
        self._early = False
        self._whole = False
        self._answering = False
        self._concluding = False
        self._timer: asyncio.TimerHandle | None = None
        self._peer: Peer | None = None
        self.trusted = trusted
        """Whether its caller has shown that it may do everything."""
        self.deadline = deadline
        """Loop time by which the whole request must have arrived."""

    @property
    def is_made(self) -> bool:
        """Whether it has had its socket."""
        return self._peer is not None

    @property
    def peer(self) -> Peer:
        """The other end."""
        if self._peer is None:
            raise RuntimeError("the connection is not made yet")
        return self._peer

    @property
    def is_arriving(self) -> bool:
        """Whether its request has not arrived yet; a later one, on a kept connection, may come."""
        return not self.is_made or self._turn in {_Turn.FRESH, _Turn.RECEIVING}

    def conclude(self) -> None:
        """Let its next answer be the last one, and say so in it: the daemon stops."""
        self._concluding = True

    @property
    def busy(self) -> bool:
        """Whether the daemon is working on a request that has arrived as a whole.

        A trusted caller's connection is busy until the answer is sent; others must read theirs.
        """
        if self._answering:
            return self.trusted
        return self._turn is _Turn.HANDLING and self._whole

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Arm the clock, which counts from the moment the connection was accepted."""
        super().connection_made(transport)
        self._peer = peer_of(transport.get_extra_info("socket"))
        if isinstance(transport, asyncio.WriteTransport):
            transport.set_write_buffer_limits(high=_MOST_BUFFERED)
        self._arm(self.deadline)
        if self._head:
            self.data_received(self._head)
            self._head = b""

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

    def begin(self, *, whole: bool) -> None:
        """Stop the clock: the headers have arrived, and the body with them if it is `whole`.

        Reading the rest must respect `deadline`.
        """
        self._disarm()
        self._turn = _Turn.HANDLING
        self._early = False
        self._whole = whole

    def become_trusted(self) -> None:
        """Note that its caller is trusted, which holds until the connection ends."""
        if not self.trusted:
            self.trusted = True
            self._trust(self)

    def received(self) -> None:
        """Note that the body has arrived: further bytes belong to the next request."""
        self._early = False
        self._whole = True

    def end(self, *, last: bool) -> None:
        """Restart the clock: the answer is ready. `last`: the connection ends with it."""
        if last:
            self._turn = _Turn.CLOSING
        else:
            self._turn = _Turn.RECEIVING if self._early else _Turn.IDLE
        self._arm(self._clock.time() + self._seconds)

    def check_streams(self) -> None:
        """Raise RefusedError if there are too many streams for this one."""
        self._check_streams(self)

    def open_stream(self, close: Callable[[], None]) -> None:
        """Turn the connection into a stream; `close` is called when it must end.

        Raises RefusedError if there are too many streams, ConnectionError if the client has left.
        """
        if self.transport is None:
            raise ConnectionResetError("the client has left")
        self._check_streams(self)
        self._stream(self)
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
        if isinstance(exc, ConnectionError):
            raise exc  # the client has left, or was ended: it gets no answer
        if request.writer.output_size > 0:
            raise ConnectionError("the answer is partly sent and can't be replaced")
        if status == 500:
            log.error("api_failed", origin=self.peer.address, exc_info=exc)
            refusal = errors.INTERNAL_ERROR.error()
        else:
            self._log_refused(status, "bad_request")
            refusal = errors.BAD_REQUEST.error(status=status)
        return messages.refusal(refusal, close=True)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Give errors that aiohttp raised before the application ran the common shape."""
        if isinstance(resp, web.HTTPException):
            resp = messages.refusal(messages.of_http_exception(resp), close=True)
        if self._concluding and not resp.prepared:
            resp.force_close()
        size = messages.own_size(resp)
        self._answering = True
        try:
            with self._unsent.count(size, trusted=self.trusted, end=self.reset):
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
                origin = self.peer.address
                self._summary.add(log.info, "api_stream_not_read", None, origin=origin)
            self.reset()  # the client does not read
            return
        if self._turn is _Turn.HANDLING:
            return  # a part of a stream was read just in time
        if self._turn is _Turn.RECEIVING:
            self._log_refused(408, "too_slow")
            transport.write(messages.raw_timeout())
            if transport.get_write_buffer_size():
                self.reset()
                return
        self.force_close()

    def _log_refused(self, status: int, code: str) -> None:
        origin = self.peer.address
        self._summary.add(log.warning, "api_refused", code, status=status, code=code, origin=origin)

    def reset(self) -> None:
        """End the connection at once, with everything that is not sent, in the kernel too."""
        if self.transport is not None:
            sock = self.transport.get_extra_info("socket")
            with suppress(OSError):  # the client has left already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        self.force_close()
