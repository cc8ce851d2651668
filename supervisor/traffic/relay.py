"""Copies bytes between two connections, both ways, for whoever the kernel can't route.

It serves three purposes: the public port of workers that bind their own port, the own port of
workers that were handed nothing but the public socket, and the rescue of connections that were
queued for a slot whose worker is gone.

Memory per connection is bounded by back-pressure: a side that can't be written to stops the
other from being read. An end of stream is passed on as one, so a half-closed connection still
gets its answer. A reset is passed on as a reset, so that nobody takes half an answer for a whole
one. Connections share nothing, so none can hold up another.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple, cast

import structlog

log = structlog.get_logger(__name__)

_ACCEPTS_PER_WAKE = 64  # so that a burst of connections does not starve the rest of the daemon
_CONNECT_SECONDS = 30.0  # how long a client is kept waiting for a worker that restarts
_PATIENCE_SECONDS = 30.0  # how long a client may do nothing after the server has left
_RETRY_SECONDS = 0.05
_LONGEST_RETRY_SECONDS = 0.5  # a thousand waiting clients must not keep us busy
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER for no time at all


class Target(NamedTuple):
    """Where a relayed connection goes on to, and from which local address if it matters."""

    host: str
    port: int
    source: str | None = None


class _Side(asyncio.Protocol):
    """One of the two connections of a pair; what it reads is written to `other`."""

    other: _Side

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.ended = asyncio.Event()
        """Set once nothing more will come from this side."""
        self.gone = asyncio.Event()
        """Set once the connection is closed."""

    @property
    def unwritten(self) -> int:
        """How many bytes wait for this side to take them."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

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
        self.ended.set()
        assert self.transport is not None  # noqa: S101  # it has just read
        assert self.other.transport is not None  # noqa: S101  # as above
        if self.other.ended.is_set():
            self.transport.close()
            self.other.transport.close()
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
        self.gone.set()
        if self.ended.is_set() and self.other.transport is not None:
            self.other.transport.close()  # all that it had to say is written first
        else:
            self.other.cut()
        self.ended.set()

    def cut(self) -> None:
        """Close at once; as a reset, if anything is missing of what was to be written."""
        if self.transport is None or self.gone.is_set():
            return
        if self.unwritten or not self.other.ended.is_set():
            with contextlib.suppress(OSError):  # its socket may be closed in this very moment
                self.transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
                )
        self.transport.abort()


class Relay:
    """Accepts on one listening socket and copies each connection to where `choose` says.

    `choose` is asked once per connection, so a connection stays where it began; if it says None,
    nobody is there and the connection is closed at once.
    """

    def __init__(self, listener: socket.socket, choose: Callable[[], Target | None]) -> None:
        self._listener = listener
        self._choose = choose
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = False
        self._pausing: asyncio.TimerHandle | None = None
        self.accepted = 0

    @property
    def open_connections(self) -> int:
        """How many connections are being relayed now."""
        return len(self._tasks)

    def start(self) -> None:
        """Accept from now on."""
        self._end_pause()
        if not self._accepting:
            self._accepting = True
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def stop(self) -> None:
        """Accept no more; what waits in the queue goes on waiting, open connections go on."""
        self._end_pause()
        if self._accepting:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._listener.fileno())

    def _end_pause(self) -> None:
        if self._pausing is not None:
            self._pausing.cancel()
            self._pausing = None

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
        """Try again soon: the connection waits in the queue, and asking at once would spin."""
        if error.errno not in _SHORTAGES:
            log.error("relay_accept_failed", error=str(error))
        self.stop()
        self._pausing = asyncio.get_running_loop().call_later(_RETRY_SECONDS, self.start)

    async def _carry(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        inside, outside = _Side(), _Side()
        inside.other, outside.other = outside, inside
        server: socket.socket | None = None
        try:
            server = await self._connect()
            if server is None:
                return
            await loop.create_connection(lambda: inside, sock=server)
            await loop.create_connection(lambda: outside, sock=client)
            await inside.ended.wait()
            await _farewell(inside, outside)
        except OSError as error:
            log.warning("relay_failed", error=str(error))
        finally:
            for side, sock in ((inside, server), (outside, client)):
                side.cut()
                if sock is not None:
                    sock.close()

    async def _connect(self) -> socket.socket | None:
        """Return a connection to the chosen target; a worker that restarts is waited for."""
        deadline = asyncio.get_running_loop().time() + _CONNECT_SECONDS
        pause = _RETRY_SECONDS
        while True:
            target = self._choose()
            if target is None:
                return None
            try:
                return await _connect_to(target)
            except OSError as error:
                if not isinstance(error, ConnectionError) and error.errno not in _SHORTAGES:
                    raise
            if asyncio.get_running_loop().time() > deadline:
                raise ConnectionRefusedError("no worker took the connection in time")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_RETRY_SECONDS)


async def _farewell(inside: _Side, outside: _Side) -> None:
    """Wait until both are gone, as long as the client goes on taking what is left for it.

    A client that never closes would otherwise keep its connection, which the server has left.
    """
    before = -1
    while before != outside.unwritten:
        before = outside.unwritten
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await outside.gone.wait()
                await inside.gone.wait()
                return


async def _connect_to(target: Target) -> socket.socket:
    family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.source is not None:
            # The port is chosen at the connect, among those that are free towards this target.
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((target.source, 0))
        await asyncio.get_running_loop().sock_connect(sock, (target.host, target.port))
    except BaseException:
        sock.close()
        raise
    return sock
