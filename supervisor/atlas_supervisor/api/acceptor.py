"""Accepts connections, and decides which of them get the bounded places.

asyncio's own accept loop has no limit, and with TLS hands a connection over only after its
handshake: clients could exhaust the daemon's descriptors and memory. Here

1. a connection first arrives (`Arrival`); arrivals are many, cheap, and the oldest ones are closed
   for new ones;
2. with the head of its request it gets a place at once if a place is free or its caller is trusted:
   a part of the places is for such callers alone. A place is taken from the oldest connection that
   waits for its client, of an untrusted caller if there is one;
3. where untrusted callers have taken all their places, others of them wait, and a few at a time
   take the places of the oldest;
4. a stream leaves its place, and counts against a limit of its own.

A connection that loses its place is reset, with everything that was not sent.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, islice

import structlog
from aiohttp import web

from atlas_supervisor import errors
from atlas_supervisor.api.arrival import Arrival
from atlas_supervisor.api.connection import TimedConnection
from atlas_supervisor.api.security import Gate, Unsent, peer_of
from atlas_supervisor.system.descriptors import Purpose, has_room
from atlas_supervisor.telemetry.log_summary import LogSummary

log = structlog.get_logger()

MAX_STREAMS = 256
"""Streams of trusted callers on each acceptor, and again of all others."""
MAX_ARRIVALS = 4096

_ARRIVALS_SHARE = 4
"""They take one descriptor in so many at most."""
_RESERVED_SHARE = 4
"""One place in so many is for trusted callers alone."""
_ACCEPTED_AT_ONCE = 32
_DISPLACED_AT_ONCE = 2
_DISPLACE_SECONDS = 0.01
_ARRIVE_SECONDS, _LOOK_SECONDS = 0.5, 0.01  # at the end
_PAUSE_SECONDS = 0.1  # after an error that may pass, such as a lack of descriptors


class Acceptor:
    """Accepts connections on some sockets for one `web.Server`."""

    def __init__(
        self,
        server: web.Server,
        listeners: list[socket.socket],
        *,
        gate: Gate,
        tls: ssl.SSLContext | None,
        limit: int,
        seconds: float,
        unsent: Unsent,
        summary: LogSummary,
        purpose: Purpose = Purpose.API_TCP,
    ) -> None:
        self._server = server
        self._gate = gate
        self._purpose = purpose
        self._short = False
        """Whether connections wait because descriptors are short, which is logged once."""
        self._listeners = listeners
        self._tls = tls
        self._limit = limit
        self._seconds = seconds
        self._unsent = unsent
        self._summary = summary
        self._loop = asyncio.get_running_loop()
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_arrivals = min(MAX_ARRIVALS, descriptors // _ARRIVALS_SHARE)
        # Each in the order of arrival.
        self._arriving: dict[Arrival, None] = {}
        self._waiting: dict[Arrival, None] = {}
        """Arrivals with a complete head, for which no place is free."""
        self._untrusted: dict[TimedConnection, asyncio.Task[None]] = {}
        self._trusted: dict[TimedConnection, asyncio.Task[None]] = {}
        self._streams: dict[TimedConnection, None] = {}
        self._displacing: asyncio.TimerHandle | None = None
        self._stopping = False

    def start(self) -> None:
        """Start accepting."""
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    async def stop(self) -> None:
        """Stop accepting, and end streams. What has arrived is answered, the rest is ended.

        The listeners stay open: after a reload the next daemon accepts what waits in their queues.
        """
        self._stopping = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        for connection in list(self._streams):
            connection.end_stream()
        for connection in (*self._untrusted, *self._trusted):
            connection.conclude()
        with suppress(TimeoutError):
            async with asyncio.timeout(_ARRIVE_SECONDS):
                while self._is_arriving():  # noqa: ASYNC110  # there is no event
                    await asyncio.sleep(_LOOK_SECONDS)
        if self._displacing is not None:
            self._displacing.cancel()
        for arrival in (*self._arriving, *self._waiting):
            arrival.close()
        connecting = [*self._untrusted.values(), *self._trusted.values()]
        for task in connecting:
            task.cancel()
        await asyncio.gather(*connecting, return_exceptions=True)

    def _is_arriving(self) -> bool:
        """Return whether a request may be on its way: a client connects before it sends one."""
        placed = (*self._untrusted, *self._trusted)
        return bool(self._arriving or self._waiting or any(each.is_arriving for each in placed))

    # Arriving.

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if not has_room(listener, self._purpose):
                if not self._end_one():  # else it is accepted once that one is closed
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
            sock.setblocking(False)
            self._arrived(sock)

    def _pause(self, listener: socket.socket, reason: str | None) -> None:
        if not self._short:
            log.error("api_accept_failed", reason=reason)
        self._short = True
        self._loop.remove_reader(listener)
        self._loop.call_later(_PAUSE_SECONDS, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if not self._stopping:
            self._loop.add_reader(listener, self._accept, listener)

    def _arrived(self, sock: socket.socket) -> None:
        if len(self._arriving) + len(self._waiting) >= self._most_arrivals:
            self._end_arrival()
        arrival = Arrival(
            sock,
            deadline=self._loop.time() + self._seconds,
            complete=self._is_complete,
            ended=self._has_ended,
        )
        self._arriving[arrival] = None
        if self._tls is not None or self._is_trusted(arrival):
            self._is_complete(arrival)  # its head can't be read here, or decides nothing
        else:
            arrival.receive()

    def _has_ended(self, arrival: Arrival, late: bool) -> None:  # a callback
        if arrival in self._waiting:
            self._log_no_place()
        self._drop(arrival)
        if late:
            self._summary.add(
                log.warning, "api_refused", "too_slow",
                status=408, code="too_slow", origin=peer_of(arrival.sock).address,
            )  # fmt: skip

    def _log_no_place(self) -> None:
        reason = "all connections are busy"
        self._summary.add(log.warning, "api_connection_refused", None, reason=reason)

    # Places.

    def _is_complete(self, arrival: Arrival) -> None:
        del self._arriving[arrival]
        trusted = self._is_trusted(arrival)
        if trusted or self._has_place(trusted=False):
            self._place_or_close(arrival, trusted=trusted)
        else:
            self._waiting[arrival] = None
            self._displace_later()

    def _is_trusted(self, arrival: Arrival) -> bool:
        if arrival.sock.family == socket.AF_UNIX:
            return self._gate.trusts_uid(peer_of(arrival.sock).uid)
        return self._gate.has_token(arrival.head)

    def _has_place(self, *, trusted: bool) -> bool:
        left = self._limit - len(self._untrusted) - len(self._trusted)
        reserved = 0 if trusted else self._limit // _RESERVED_SHARE
        return left > max(reserved - len(self._trusted), 0)

    def _displace_later(self) -> None:
        if self._displacing is None:
            self._displacing = self._loop.call_later(_DISPLACE_SECONDS, self._displace)

    def _displace(self) -> None:
        """Give the first arrivals that wait the places of the oldest untrusted connections."""
        self._displacing = None
        for arrival in list(islice(self._waiting, _DISPLACED_AT_ONCE)):
            del self._waiting[arrival]
            self._place_or_close(arrival, trusted=False)
        if self._waiting:
            self._displace_later()

    def _place_or_close(self, arrival: Arrival, *, trusted: bool) -> None:
        """Give it a place, which may be another's; close it if all belong to trusted requests."""
        if self._has_place(trusted=trusted) or self._evict():
            self._place(arrival, trusted=trusted)
        else:
            arrival.close()
            self._log_no_place()

    def _place(self, arrival: Arrival, *, trusted: bool) -> None:
        connection = TimedConnection(
            self._server,
            head=arrival.head,
            seconds=self._seconds,
            deadline=arrival.deadline,
            trusted=trusted,
            unsent=self._unsent,
            summary=self._summary,
            closed=self._forget,
            trust=self._move_to_trusted,
            check_streams=self._check_streams,
            stream=self._count_as_stream,
        )
        if self._stopping:
            connection.conclude()
        sock = arrival.take()
        task = self._loop.create_task(self._connect(connection, sock))
        task.add_done_callback(partial(self._connected, connection, sock))
        (self._trusted if trusted else self._untrusted)[connection] = task

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
            reason = type(error).__name__
            self._summary.add(log.info, "api_handshake_failed", reason, reason=reason)

    def _connected(
        self, connection: TimedConnection, sock: socket.socket, _task: asyncio.Task[None]
    ) -> None:
        if not connection.is_made:
            sock.close()  # asyncio has done so, unless the task was cancelled before it began
            self._forget(connection)

    # Making room.

    def _end_one(self) -> bool:
        """End the connection that matters least; return whether there is one."""
        return self._end_arrival() or self._evict() or self._end_stream()

    def _end_arrival(self) -> bool:
        for arrival in chain(self._arriving, self._waiting):
            self._drop(arrival)
            arrival.close()
            return True
        return False

    def _drop(self, arrival: Arrival) -> None:
        self._arriving.pop(arrival, None)
        self._waiting.pop(arrival, None)

    def _evict(self) -> bool:
        """Reset the oldest connection that may be; return whether there is one."""
        for connection, task in self._evictable():
            task.cancel()
            connection.reset()
            self._forget(connection)
            return True
        return False

    def _evictable(self) -> Iterator[tuple[TimedConnection, asyncio.Task[None]]]:
        """Yield whom to reset: those that wait for their clients first, trusted callers last.

        A trusted caller whose request is being answered is never among them.
        """
        yield from (each for each in self._untrusted.items() if not each[0].busy)
        yield from self._untrusted.items()
        yield from (each for each in self._trusted.items() if not each[0].busy)

    def _end_stream(self) -> bool:
        for connection in self._streams:
            if not connection.trusted:
                connection.reset()
                self._forget(connection)
                return True
        return False

    def _forget(self, connection: TimedConnection) -> None:
        self._untrusted.pop(connection, None)
        self._trusted.pop(connection, None)
        self._streams.pop(connection, None)

    def _move_to_trusted(self, connection: TimedConnection) -> None:
        task = self._untrusted.pop(connection, None)
        if task is not None:
            self._trusted[connection] = task

    def _check_streams(self, connection: TimedConnection) -> None:
        """Raise RefusedError if there are too many streams for another one."""
        if self._stopping:
            raise errors.STOPPING.error()
        if sum(each.trusted is connection.trusted for each in self._streams) >= MAX_STREAMS:
            raise errors.TOO_MANY_STREAMS.error(limit=MAX_STREAMS)

    def _count_as_stream(self, connection: TimedConnection) -> None:
        self._forget(connection)
        self._streams[connection] = None
