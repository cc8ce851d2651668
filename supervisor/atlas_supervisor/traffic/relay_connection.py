"""Two connections that are one to those at their ends: what comes in by one goes out by the other.

It works on the sockets themselves, not on asyncio's streams or transports: a connection that
lives for one request costs much less, and what is read is sent on from one buffer that all
share, so that a silent connection holds no memory but its two sockets'.

Memory is bounded by back-pressure: while a side has not taken all that was read for it, the other
is not read. An end of stream is passed on as one, so a half-closed connection still gets its
answer. A reset is passed on as a reset, so that nobody takes half an answer for a whole one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

_BUFFER = memoryview(bytearray(256 * 1024))
"""What was read last, until it is sent on within the same call; what can't be is copied."""

_PATIENCE_SECONDS = 30.0  # how long nothing may move after the server has left
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER for no time at all


class RelayCounters:
    """What was carried so far for one purpose, in all; it only grows."""

    __slots__ = ("connections", "from_clients", "to_clients")

    def __init__(self) -> None:
        self.connections = 0
        """Accepted, whatever became of them."""
        self.from_clients = self.to_clients = 0
        """Bytes."""


class _Side:
    """One of the two connections."""

    __slots__ = ("_loop", "_pair", "broken", "ended", "fd", "other", "sock", "unsent")

    other: _Side

    def __init__(
        self, pair: RelayConnection, sock: socket.socket, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._pair = pair
        self._loop = loop
        self.sock = sock
        self.fd = sock.fileno()
        """For the loop: given a socket it didn't know, it would describe it to itself in words."""
        self.unsent = b""
        """What this side has not taken yet; the other one is not read meanwhile."""
        self.ended = False
        """Whether nothing more will come from this side."""
        self.broken = False
        """Whether this side takes nothing any more."""

    def listen(self) -> None:
        self._loop.add_reader(self.fd, self.read)

    def read(self) -> None:
        """Pass on what has come, or the end of it."""
        try:
            count = self.sock.recv_into(_BUFFER)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._pair.abort()
            return
        if count:
            self._pair.moved(self, count)
            self.other.send(_BUFFER[:count])
        else:
            self._end()

    def send(self, data: memoryview | bytes) -> None:
        """Send as much as is taken now; until the rest is, the other side is not read."""
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
        self._pair.moved(self.other)
        self.send(self.unsent)

    def _all_sent(self) -> None:
        self.unsent = b""
        self._loop.remove_writer(self.fd)
        if self.other.ended:
            self.finish()
        else:
            self.other.listen()

    def _end(self) -> None:
        """Nothing more comes from this side; pass that on once all before it was sent."""
        self.ended = True
        self._loop.remove_reader(self.fd)
        if self.broken:  # it was reset while we wrote: what it said may not be all
            self._pair.abort()
            return
        self._pair.side_ended(self)
        if not self.other.unsent:
            self.other.finish()

    def finish(self) -> None:
        """Tell this side that it has been sent everything."""
        if self.ended:
            self._pair.close_if_done()
        elif not self.broken:
            with contextlib.suppress(OSError):  # it may have been reset in this very moment
                self.sock.shutdown(socket.SHUT_WR)

    def _break(self) -> None:
        """Give this side up; what a server said before it left is still to be passed on."""
        self.broken = True
        if self is self._pair.client:
            self._pair.abort()
        elif self.unsent:
            self._all_sent()

    def close(self) -> None:
        """Close at once; as a reset, if anything is missing of what was to be sent."""
        self._loop.remove_reader(self.fd)
        self._loop.remove_writer(self.fd)
        if self.unsent or not self.other.ended:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.sock.close()


class RelayConnection:
    """A client's connection and the server's that it is relayed to. Both sockets are its own.

    `on_close` is told once, when both are closed.
    """

    __slots__ = (
        "_loop",
        "_moves",
        "_on_close",
        "_patience",
        "answered",
        "asked",
        "born",
        "carried",
        "client",
        "server",
    )

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        on_close: Callable[[RelayConnection], None],
        carried: RelayCounters,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_close: Callable[[RelayConnection], None] | None = on_close
        self.carried = carried
        self._moves = 0
        self._patience: asyncio.TimerHandle | None = None
        self.born = self._loop.time()
        self.asked = self.answered = False
        """Whether the client, and whether the server, has said anything yet."""
        self.client = _Side(self, client, self._loop)
        self.server = _Side(self, server, self._loop)
        self.client.other, self.server.other = self.server, self.client

    def start(self) -> None:
        """Begin to copy."""
        self.server.listen()
        self.client.listen()
        self.client.read()  # a client rarely connects to say nothing

    def moved(self, source: _Side, count: int = 0) -> None:
        """Note that bytes came from this side, and how many of them are new."""
        self._moves += 1
        if source is self.client:
            self.asked = True
            self.carried.from_clients += count
        else:
            self.answered = True
            self.carried.to_clients += count

    def side_ended(self, side: _Side) -> None:
        """Begin to lose patience once the server has left: its client may never close."""
        if side is self.server:
            self._wait(self._moves)

    def _wait(self, moves: int) -> None:
        self._patience = self._loop.call_later(_PATIENCE_SECONDS, self._wait_longer, moves)

    def _wait_longer(self, moves: int) -> None:
        if moves == self._moves:
            self.abort()
        else:
            self._wait(self._moves)

    def close_if_done(self) -> None:
        """Close both once each has been sent all that the other one had to say."""
        sides = self.client, self.server
        if all(side.ended and not side.unsent for side in sides):
            self.abort()  # with nothing missing it is no reset

    def abort(self) -> None:
        """Close both at once."""
        if self._on_close is None:
            return
        told, self._on_close = self._on_close, None
        if self._patience is not None:
            self._patience.cancel()
        self.client.close()
        self.server.close()
        told(self)
