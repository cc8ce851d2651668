"""One relayed connection: bytes from the client's socket go to the server's, and back.

It uses the sockets directly, not asyncio's streams or transports: a connection for one request
costs much less, and all connections read into one shared buffer, so that a silent connection
needs no memory but its two sockets'.

Memory is bounded by back-pressure: while one side has unsent bytes, the other is not read. An end
of stream is passed on as one, so a half-closed connection still gets its answer. A reset is passed
on as a reset, so that half an answer is not taken for a whole one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import NamedTuple

from atlas_supervisor.traffic.http_framing import Exchanges
from atlas_supervisor.traffic.request_tally import RequestTally

_BUFFER = memoryview(bytearray(256 * 1024))
"""Holds a read until it is sent on in the same call; the unsent rest is copied."""

_NOTHING = memoryview(b"")
_FIRST_REQUEST_SECONDS = 1.0  # a request may take a moment on a busy machine
# How long a connection must be silent to be closed for a new one where descriptors are short:
_IDLE_BETWEEN_REQUESTS_SECONDS = 0.1
_IDLE_WITHIN_REQUEST_SECONDS = 5.0
_IDLE_UNKNOWN_SECONDS = 60.0  # a protocol without framing
_IDLE_SECONDS = 30.0  # how long no byte may move after the server has closed its side
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER for no time at all

Answers = dict[tuple[str, int], bool | None]
"""Whether a worker's answer is pending, by the far end of its connection; None: unknown."""


class RelayCounters:
    """The total traffic so far for one purpose."""

    __slots__ = ("connections", "from_clients", "to_clients")

    def __init__(self) -> None:
        self.connections = 0
        """Accepted, including those that failed later."""
        self.from_clients = self.to_clients = 0
        """Bytes."""


class RelayState(NamedTuple):
    """What is known of a connection besides its two sockets; of each pair, the client's first."""

    unsent: tuple[str, str]
    """Bytes that are not sent to this side yet, in base64."""
    ended: tuple[bool, bool]
    broken: tuple[bool, bool]
    between: bool
    """Whether it is HTTP/1, and no request and no answer has begun."""


class _Side:
    """One of the two sockets."""

    __slots__ = ("_loop", "_pair", "broken", "ended", "fd", "other", "sock", "unsent")

    other: _Side

    def __init__(
        self, pair: RelayConnection, sock: socket.socket, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._pair = pair
        self._loop = loop
        self.sock = sock
        self.fd = sock.fileno()
        """For the loop, which would format a socket object into text at each call."""
        self.unsent = b""
        """Bytes that are not sent to this side yet; the other one is not read meanwhile."""
        self.ended = False
        """Whether this side has sent its end of stream."""
        self.broken = False
        """Whether nothing more can be sent to this side."""

    def listen(self) -> None:
        self._loop.add_reader(self.fd, self.read)

    def go_on(self) -> None:
        """Wait for what comes next: bytes from this side, and room for what is unsent to it."""
        if self.unsent:
            self._loop.add_writer(self.fd, self._send_rest)
        if not self.ended and not self.other.unsent:
            self.listen()

    def read(self) -> None:
        """Pass on the bytes that arrived, or the end of stream."""
        try:
            count = self.sock.recv_into(_BUFFER)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.broken = True
            self._pair.abort()
            return
        if count:
            self._pair.moved(self, _BUFFER[:count])
            self.other.send(_BUFFER[:count])
        else:
            self._end()

    def send(self, data: memoryview | bytes) -> None:
        """Send what the socket accepts now; the other side is not read until the rest is sent."""
        if self.broken:
            return
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._break()
            return
        if sent < len(data):
            if not self.unsent:
                self._loop.add_writer(self.fd, self._send_rest)
                self._loop.remove_reader(self.other.fd)
            self.unsent = bytes(data[sent:])
        elif self.unsent:
            self._all_sent()

    def _send_rest(self) -> None:
        self._pair.moved(self.other, _NOTHING)
        self.send(self.unsent)

    def _all_sent(self) -> None:
        self.unsent = b""
        self._loop.remove_writer(self.fd)
        if self.other.ended:
            self.finish()
        else:
            self.other.listen()

    def _end(self) -> None:
        """Handle this side's end of stream; it is passed on once all bytes before it are sent."""
        self.ended = True
        self._loop.remove_reader(self.fd)
        if self.broken:  # it was reset while we wrote: its bytes may be incomplete
            self._pair.abort()
            return
        self._pair.side_ended(self)
        if not self.other.unsent:
            self.other.finish()

    def finish(self) -> None:
        """Pass the end of stream on to this side."""
        if self.ended:
            self._pair.close_if_done()
        elif not self.broken:
            with contextlib.suppress(OSError):  # it may have been reset in this very moment
                self.sock.shutdown(socket.SHUT_WR)

    def _break(self) -> None:
        """Send no more to this side; bytes that a server sent before are still passed on."""
        self.broken = True
        if self is self._pair.client:
            self._pair.abort()
        elif self.unsent:
            self._all_sent()

    def close(self) -> None:
        """Close at once; as a reset, if any byte was not sent."""
        self._loop.remove_reader(self.fd)
        self._loop.remove_writer(self.fd)
        if self.unsent or not self.other.ended:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.sock.close()


class RelayConnection:
    """A client's connection and the server's that it is relayed to. It owns both sockets.

    `on_close` is called once, when both are closed.
    """

    __slots__ = (
        "_exchanges",
        "_idle_timer",
        "_loop",
        "_moves",
        "_on_close",
        "answered",
        "asked",
        "born",
        "carried",
        "client",
        "last_move",
        "server",
    )

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        on_close: Callable[[RelayConnection], None],
        carried: RelayCounters,
        tally: RequestTally | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_close: Callable[[RelayConnection], None] | None = on_close
        self.carried = carried
        self._moves = 0
        self._idle_timer: asyncio.TimerHandle | None = None
        self.born = self.last_move = self._loop.time()
        since = self.born
        if tally is not None and tally.secret:
            since = tally.connected(since, _address(client))
        self._exchanges = Exchanges(tally, since)
        self.asked = self.answered = False
        """Whether the client, and whether the server, has sent a byte yet."""
        self.client = _Side(self, client, self._loop)
        self.server = _Side(self, server, self._loop)
        self.client.other, self.server.other = self.server, self.client

    def start(self, header: bytes = b"") -> None:
        """Start to copy; the server gets the header first."""
        self.server.listen()
        self.client.listen()
        if header:
            self.server.send(header)
        self.client.read()  # the request has often arrived already

    def state(self) -> RelayState:
        """Return the state with which another process goes on, besides the sockets."""
        (client, server), exchanges = (self.client, self.server), self._exchanges
        return RelayState(
            unsent=(_as_text(client.unsent), _as_text(server.unsent)),
            ended=(client.ended, server.ended),
            broken=(client.broken, server.broken),
            between=exchanges.pending is False and not exchanges.awaits_client,
        )

    def resume(self, state: RelayState) -> None:
        """Go on with a connection that another process has begun."""
        self.asked = self.answered = True
        self._exchanges.since = 0.0
        if not state.between:
            self._exchanges.give_up()
        sides = self.client, self.server
        for index, side in enumerate(sides):
            side.ended, side.broken = state.ended[index], state.broken[index]
            side.unsent = b64decode(state.unsent[index])
        for side in sides:
            side.go_on()
        if self.server.ended:
            self._wait(self._moves)

    @property
    def is_new(self) -> bool:
        """Whether the client has connected a moment ago and may be about to send a request."""
        return not self.asked and self.born > self._loop.time() - _FIRST_REQUEST_SECONDS

    @property
    def is_idle(self) -> bool:
        """Whether it may be closed for another: no answer is pending, and no request is coming."""
        quiet = self._loop.time() - self.last_move
        if self._exchanges.pending is None:
            return quiet > _IDLE_UNKNOWN_SECONDS
        if self._exchanges.awaits_client:
            return quiet > _IDLE_WITHIN_REQUEST_SECONDS
        return quiet > _IDLE_BETWEEN_REQUESTS_SECONDS and not self._exchanges.pending

    @property
    def pending(self) -> bool | None:
        """Whether the server's answer is not complete; None if the protocol is not HTTP/1."""
        if self.server.ended:
            return False
        pending = self._exchanges.pending
        return self.is_new if pending is False else pending

    def moved(self, source: _Side, data: memoryview) -> None:
        """Note that bytes came from this side, and which of them are new."""
        self._moves += 1
        self.last_move = self._loop.time()
        if source is self.client:
            self.asked = True
            self.carried.from_clients += len(data)
            self._exchanges.client_sent(data)
        else:
            self.answered = True
            self.carried.to_clients += len(data)
            self._exchanges.server_sent(data)

    def side_ended(self, side: _Side) -> None:
        """Start the idle limit once the server has closed its side: its client may never close."""
        if side is self.server:
            self._wait(self._moves)

    def _wait(self, moves: int) -> None:
        self._idle_timer = self._loop.call_later(_IDLE_SECONDS, self._wait_longer, moves)

    def _wait_longer(self, moves: int) -> None:
        if moves == self._moves:
            self.abort()
        else:
            self._wait(self._moves)

    def close_if_done(self) -> None:
        """Close both once each side has ended and everything is sent."""
        sides = self.client, self.server
        if all(side.ended and not side.unsent for side in sides):
            self.abort()  # nothing is unsent, so it is no reset

    def end(self) -> None:
        """Close an idle connection, both ends of it in order."""
        self.client.ended = self.server.ended = True  # so that neither is reset
        self.abort()

    def abort(self) -> None:
        """Close both at once."""
        if self._on_close is None:
            return
        on_close, self._on_close = self._on_close, None
        self._exchanges.closed(by_client=not (self.server.ended or self.server.broken))
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self.client.close()
        self.server.close()
        on_close(self)


def _as_text(data: bytes) -> str:
    return b64encode(data).decode()


def _address(client: socket.socket) -> str:
    try:
        return str(client.getpeername()[0])
    except OSError:  # it has gone already
        return ""
