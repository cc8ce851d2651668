"""Copies bytes between two connections, both ways, for whoever the kernel can't route.

It serves three purposes: the public port of workers that bind their own port, the own port of
workers that were handed nothing but the public socket, and the rescue of connections that were
queued for a slot whose worker is gone.

Memory per connection is bounded by back-pressure: a side that can't be written to stops the
other from being read. An end of stream is passed on as one, so a half-closed connection still
gets its answer. Connections share nothing, so none can hold up another.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import NamedTuple, cast

import structlog

log = structlog.get_logger(__name__)

_ACCEPTS_PER_WAKE = 64  # so that a burst of connections does not starve the rest of the daemon
_CONNECT_SECONDS = 30.0  # how long a client is kept waiting for a worker that restarts
_FLUSH_SECONDS = 30.0  # how long a side may take to read what was left for it
_RETRY_SECONDS = 0.05
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Target(NamedTuple):
    """Where a relayed connection goes on to, and from which local address if it matters."""

    host: str
    port: int
    source: str | None = None


class _Side(asyncio.Protocol):
    """One of the two connections of a pair; what it reads is written to `other`."""

    other: _Side

    def __init__(self, lost: asyncio.Event) -> None:
        self.transport: asyncio.Transport | None = None
        self.ended = False
        self.lost = lost
        """Set when either side is gone for good."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.other.transport is None:
            self.transport.pause_reading()  # until there is somewhere to write to
        else:
            self.other.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        assert self.other.transport is not None  # noqa: S101  # reading is paused until then
        self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        assert self.other.transport is not None  # noqa: S101  # as above
        if self.other.ended:
            self.close_both()
        elif not self.other.transport.is_closing():
            with contextlib.suppress(OSError):  # it may have been reset in this very moment
                self.other.transport.write_eof()
        return True  # our own direction stays open: the answer is still to come

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def close_both(self) -> None:
        """Close both once what is buffered has been written."""
        for side in (self, self.other):
            if side.transport is not None:
                side.transport.close()


class Relay:
    """Accepts on one listening socket and copies each connection to where `choose` says.

    `choose` is asked once per connection, so a connection stays where it began.
    """

    def __init__(self, listener: socket.socket, choose: Callable[[], Target | None]) -> None:
        self._listener = listener
        self._choose = choose
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = False
        self.accepted = 0

    @property
    def open_connections(self) -> int:
        """How many connections are being relayed now."""
        return len(self._tasks)

    def start(self) -> None:
        """Accept from now on."""
        if not self._accepting:
            self._accepting = True
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def stop(self) -> None:
        """Accept no more; what waits in the queue goes on waiting, open connections go on."""
        if self._accepting:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._listener.fileno())

    async def close(self) -> None:
        """Accept no more, and cut what is open."""
        self.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_WAKE):
            try:
                # A worker that shares this socket may have made it blocking for all of us.
                self._listener.setblocking(False)
                client, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            client.setblocking(False)
            self.accepted += 1
            task = asyncio.get_running_loop().create_task(self._carry(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _pause(self, error: OSError) -> None:
        if error.errno not in _SHORTAGES:
            log.error("relay_accept_failed", error=str(error))
        if self._accepting:
            self.stop()
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self.start)

    async def _carry(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        lost = asyncio.Event()
        inside, outside = _Side(lost), _Side(lost)
        inside.other, outside.other = outside, inside
        server: socket.socket | None = None
        try:
            server = await self._connect()
            await loop.create_connection(lambda: inside, sock=server)
            await loop.create_connection(lambda: outside, sock=client)
            await lost.wait()
            await self._finish(inside, outside)
        except OSError as error:
            log.warning("relay_failed", error=str(error))
        finally:
            for side in (inside, outside):
                if side.transport is not None:
                    side.transport.abort()
            client.close()
            if server is not None:
                server.close()

    @staticmethod
    async def _finish(inside: _Side, outside: _Side) -> None:
        """One side is gone: give the other what is still buffered for it, then end it."""
        inside.close_both()
        rest = [side.transport for side in (inside, outside) if side.transport is not None]
        deadline = asyncio.get_running_loop().time() + _FLUSH_SECONDS
        while any(transport.get_write_buffer_size() for transport in rest):
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(_RETRY_SECONDS)

    async def _connect(self) -> socket.socket:
        """Return a connection to the chosen target; a worker that restarts is waited for."""
        deadline = asyncio.get_running_loop().time() + _CONNECT_SECONDS
        while True:
            target = self._choose()
            if target is not None:
                try:
                    return await _connect_to(target)
                except OSError as error:
                    if not isinstance(error, ConnectionError) and error.errno not in _SHORTAGES:
                        raise
            if asyncio.get_running_loop().time() > deadline:
                raise ConnectionRefusedError("no worker took the connection in time")
            await asyncio.sleep(_RETRY_SECONDS)


async def _connect_to(target: Target) -> socket.socket:
    family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.source is not None:
            sock.bind((target.source, 0))
        await asyncio.get_running_loop().sock_connect(sock, (target.host, target.port))
    except BaseException:
        sock.close()
        raise
    return sock
