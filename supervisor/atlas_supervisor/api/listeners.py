"""Binds the API's sockets and accepts a bounded number of connections.

asyncio's own accept loop has no limit, and with TLS hands a connection over only after its
handshake: a client that never completes one could exhaust the daemon's descriptors.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path

import structlog
from aiohttp import web

from atlas_supervisor import errors
from atlas_supervisor.api.connection import TimedConnection
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.system import sockdiag
from atlas_supervisor.system.descriptors import Purpose, has_room
from atlas_supervisor.system.procfs import describe_listeners

log = structlog.get_logger()

_BACKLOG = 128
_SOCKET_MODE = 0o660
MAX_STREAMS = 512
"""Limit of each acceptor. Streams don't count as connections, so they lock out no other client."""
_PAUSE_SECONDS = 0.1  # after an error that may pass, such as a lack of descriptors


class Acceptor:
    """Accepts connections on some sockets for one `web.Server`."""

    def __init__(
        self,
        server: web.Server,
        listeners: list[socket.socket],
        *,
        tls: ssl.SSLContext | None,
        limit: int,
        seconds: float,
        purpose: Purpose = Purpose.API_TCP,
    ) -> None:
        self._server = server
        self._purpose = purpose
        self._short = False
        """Whether connections wait because descriptors are short, which is logged once."""
        self._listeners = listeners
        self._tls = tls
        self._limit = limit
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._open: dict[TimedConnection, asyncio.Task[None]] = {}
        self._streams: set[TimedConnection] = set()
        self._stopping = False

    def start(self) -> None:
        """Start accepting."""
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    async def stop(self) -> None:
        """Stop accepting, and end unfinished handshakes and streams; connections stay open."""
        self._stopping = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        await asyncio.sleep(0)  # a task that has not started yet would leave its socket open
        connecting = list(self._open.values())
        for task in connecting:
            task.cancel()
        await asyncio.gather(*connecting, return_exceptions=True)
        for connection in list(self._streams):
            connection.end_stream()

    def _accept(self, listener: socket.socket) -> None:
        if not has_room(listener, self._purpose):
            if not self._evict():  # else it is accepted once that one is closed
                self._pause(listener, os.strerror(errno.EMFILE))
            return
        # Not in a coroutine: a cancelled one may lose a connection that it has just accepted.
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            self._pause(listener, error.strerror)
            return
        self._short = False
        if len(self._open) >= self._limit and not self._evict():
            log.warning("api_connection_refused", reason="all connections are busy")
            sock.close()
            return
        sock.setblocking(False)
        connection = TimedConnection(
            self._server,
            seconds=self._seconds,
            closed=self._forget,
            streams=self._count_as_stream,
        )
        self._open[connection] = self._loop.create_task(self._connect(connection, sock))

    def _pause(self, listener: socket.socket, reason: str | None) -> None:
        if not self._short:
            log.error("api_accept_failed", reason=reason)
        self._short = True
        self._loop.remove_reader(listener)
        self._loop.call_later(_PAUSE_SECONDS, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept, listener)

    async def _connect(self, connection: TimedConnection, sock: socket.socket) -> None:
        """Pass the socket to its connection, after the TLS handshake if there is one."""
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=self._tls,
                ssl_handshake_timeout=self._seconds if self._tls else None,
            )
        except OSError as error:  # includes ssl.SSLError and time-outs
            self._forget(connection)
            log.info("api_handshake_failed", reason=type(error).__name__)
        except asyncio.CancelledError:
            self._forget(connection)  # asyncio has closed the socket
            raise

    def _evict(self) -> bool:
        """Close the oldest connection that is not busy; return whether there is one."""
        for connection, task in self._open.items():
            if not connection.busy:
                task.cancel()
                connection.force_close()
                self._forget(connection)
                return True
        return False

    def _forget(self, connection: TimedConnection) -> None:
        self._open.pop(connection, None)
        self._streams.discard(connection)

    def _count_as_stream(self, connection: TimedConnection) -> None:
        """Count a connection as a stream. Raises RefusedError if there are too many."""
        if self._stopping:
            raise errors.STOPPING.error()
        if len(self._streams) >= MAX_STREAMS:
            raise errors.TOO_MANY_STREAMS.error(limit=MAX_STREAMS)
        self._forget(connection)
        self._streams.add(connection)


async def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on every address of `host`.

    Raises StartRefusedError if the name has no address, or one can't be bound.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:  # UnicodeError: not a valid name
        reason = error.strerror if isinstance(error, OSError) else "not a valid host name"
        raise StartRefusedError(f"CONTROL_HOST: {host} has no address: {reason}") from error
    with ExitStack() as stack:
        listeners = []
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.setblocking(False)
                listener.bind(address)
                listener.listen(_BACKLOG)
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(found) > 1:
                    continue  # `localhost` may have an IPv6 address on a machine without IPv6
                raise StartRefusedError(_why_not(host, port, error)) from error
            listeners.append(listener)
        if not listeners:
            raise StartRefusedError(f"CONTROL_HOST: {host} is not an address of this machine")
        stack.pop_all()
    return listeners


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE and (found := sockdiag.listeners(port)):
        return (
            f"CONTROL_PORT={port} is taken: {describe_listeners(found)}. "
            "Stop it, or choose another CONTROL_PORT."
        )
    return f"CONTROL_PORT={port} on {host} can't be bound: {error.strerror}"


def bind_unix(path: Path) -> socket.socket:
    """Return a socket that listens at `path`, mode 0660, replacing one that a dead daemon left.

    Raises StartRefusedError if another daemon listens there, or `path` is not a socket.
    """
    with ExitStack() as stack:
        try:
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            # Not by the path itself: the kernel allows 107 bytes, and STATE_DIR may be longer.
            name = f"/proc/self/fd/{folder}/{path.name}"
            _remove_stale(name, path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with ExitStack() as undo:
                undo.callback(listener.close)
                listener.bind(name)
                Path(name).chmod(_SOCKET_MODE)  # no client can connect before listen
                listener.setblocking(False)
                listener.listen(_BACKLOG)
                undo.pop_all()
        except OSError as error:
            raise StartRefusedError(f"{path} can't be bound: {error.strerror}") from error
    return listener


def _remove_stale(name: str, path: Path) -> None:
    try:
        if not Path(name).is_socket():
            if Path(name).exists() or Path(name).is_symlink():
                raise StartRefusedError(f"{path} exists and is not a socket; remove it")
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(name)
    except (ConnectionRefusedError, FileNotFoundError):
        Path(name).unlink(missing_ok=True)
    except BlockingIOError:
        raise StartRefusedError(f"{path}: another daemon listens there") from None
    else:
        raise StartRefusedError(f"{path}: another daemon listens there")
