"""Accepts connections and relays each to a worker, where the kernel can't route it.

There are three purposes: the public port of workers that bind their own port, the own port of
workers that inherited the public socket alone, and the rescue of connections that were queued for
a slot without a worker.

`relay_connection` copies the bytes. Connections share no state, so none can delay another.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from operator import attrgetter
from typing import NamedTuple

import structlog

from atlas_supervisor.system.descriptors import Purpose, has_room
from atlas_supervisor.system.tcp_info import queue_length
from atlas_supervisor.traffic import proxy_protocol
from atlas_supervisor.traffic.refusal import PATIENCE_SECONDS, Refusal, refuse
from atlas_supervisor.traffic.relay_connection import (
    Answers,
    RelayConnection,
    RelayCounters,
    RelayState,
)
from atlas_supervisor.traffic.request_tally import RequestTally

log = structlog.get_logger(__name__)

_ACCEPTS_PER_WAKE = 64  # so that a burst of connections does not starve the rest of the daemon
_HANDSHAKE_SECONDS = 0.5  # then the target is chosen anew: traffic may have been switched
_RETRY_SECONDS = 0.05
_LONGEST_RETRY_SECONDS = 0.5  # a thousand waiting clients must not keep the daemon busy
_REPORT_SECONDS = 60.0
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}


class Target(NamedTuple):
    """The far end of a relayed connection, and the local address to connect from if it matters."""

    host: str
    port: int
    source: str | None = None


Header = Callable[[socket.socket], bytes]
"""Returns the bytes that the server gets before those of this client."""


def client_header(client: socket.socket) -> bytes:
    """Return the header that reports the client's address by PROXY protocol."""
    return proxy_protocol.header(client.getpeername()[:2], client.getsockname()[:2])


def local_header(_client: socket.socket) -> bytes:
    """Return the header of PROXY protocol for a connection of the daemon itself."""
    return proxy_protocol.LOCAL


Choice = Target | Refusal | None
"""Where a connection goes. None means that there is no worker: it is closed at once."""

Choose = Callable[[socket.socket], Choice]
"""Returns it for this client."""


class Relay:
    """Accepts on one listening socket and relays each connection to the target of `choose`.

    `choose` is called once per connection, so a connection stays where it began. If the worker
    can't be reached, the client waits for so long; then, or without `patience_seconds` at once, it
    is closed.
    """

    def __init__(
        self,
        listener: socket.socket,
        choose: Choose,
        carried: RelayCounters | None = None,
        *,
        header: Header | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        purpose: Purpose = Purpose.RELAY,
        tallies: Mapping[int, RequestTally] | None = None,
    ) -> None:
        """`tallies` count the requests to each port, where they are counted."""
        self._tallies = tallies or {}
        self.listener = listener
        self._header = header
        self._patience_seconds = patience_seconds
        self._purpose = purpose
        self._choose = choose
        self.carried = carried or RelayCounters()
        """Its traffic so far; several relays may share the counters."""
        self._pairs: dict[RelayConnection, Target] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        """Connections whose worker could not be reached yet."""
        self._accepting = False
        self._pausing: asyncio.TimerHandle | None = None
        self.accepted = 0
        self._reported = -_REPORT_SECONDS
        self.evicted = 0
        """Idle connections that were closed because descriptors were short."""

    @property
    def open_connections(self) -> int:
        """How many connections are being relayed now."""
        return len(self._pairs) + len(self._waiting)

    @property
    def pairs(self) -> Iterable[tuple[RelayConnection, Target]]:
        """The connections whose worker was reached, each with where it leads."""
        return self._pairs.items()

    @property
    def connecting(self) -> bool:
        """Whether there are others, that are not there yet or are being refused."""
        return bool(self._waiting)

    def unanswered(self, target: Target) -> int:
        """Return how many clients have sent this target something and got no byte back.

        They count as not accepted by its worker, which can't be seen from here. A client that has
        just connected counts as well: its request may take a moment on a busy machine.
        """
        return sum(
            at == target and not pair.answered and (pair.asked or pair.is_new)
            for pair, at in self._pairs.items()
        )

    def answers(self) -> Answers:
        """Return whether an answer is pending, by our address on the worker's connection."""
        return {pair.server.sock.getsockname()[:2]: pair.pending for pair in self._pairs}

    def start(self) -> None:
        """Accept from now on."""
        self._end_pause()
        if not self._accepting:
            self._accepting = True
            asyncio.get_running_loop().add_reader(self.listener.fileno(), self._accept)

    def stop(self) -> None:
        """Accept no more; queued connections go on waiting, and open ones go on."""
        self._end_pause()
        if self._accepting:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self.listener.fileno())

    def _end_pause(self) -> None:
        if self._pausing is not None:
            self._pausing.cancel()
            self._pausing = None

    async def close(self) -> None:
        """Accept no more, and reset open connections."""
        self.stop()
        waiting = list(self._waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for pair in list(self._pairs):
            pair.abort()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_WAKE):
            try:
                if not self._make_room():
                    self._pause()
                    return
                # The flag is shared: a worker with this socket may have made it blocking.
                self.listener.setblocking(False)
                client, _address = self.listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    log.error("relay_accept_failed", error=str(error))
                self._pause()
                return
            client.setblocking(False)
            self.accepted += 1
            self.carried.connections += 1
            self._carry(client)

    def _make_room(self) -> bool:
        """Return whether one more connection leaves enough descriptors for the daemon's own work.

        Else the connection that has been idle for the longest time is closed: a new one would wait
        as long as idle clients like. One whose worker is not reached yet needs one more descriptor.
        """
        needed = 2 + len(self._waiting)
        while not has_room(self.listener, self._purpose, needed):
            if not queue_length(self.listener):
                return True  # accepting will show that there is no connection
            self._report_shortage()
            idle = [pair for pair in self._pairs if pair.is_idle]
            if not idle:
                return False
            min(idle, key=attrgetter("last_move")).end()
            self.evicted += 1
        return True

    def _report_shortage(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            log.warning(
                "relay_descriptors_short",
                connections=self.open_connections,
                why="idle clients are closed, others wait; raise the limit of open files "
                "(ulimit -n, LimitNOFILE=)",
            )

    def _pause(self) -> None:
        """Try again soon: the connection waits in the queue, and a retry at once would spin."""
        self.stop()
        self._pausing = asyncio.get_running_loop().call_later(_RETRY_SECONDS, self.start)

    def _carry(self, client: socket.socket) -> None:
        target = self._choose(client)
        if target is None:
            client.close()
            return
        if isinstance(target, Refusal):
            self._run(refuse(client, target))
            return
        try:
            server = _connect_at_once(target)
        except OSError:
            if not self._patience_seconds:
                client.close()
                return
            self._run(self._carry_later(client))
        else:
            self._begin(client, server, target)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    def _begin(self, client: socket.socket, server: socket.socket, target: Target) -> None:
        try:
            header = self._header(client) if self._header else b""
        except OSError:  # the client has reset the connection
            client.close()
            server.close()
            return
        pair = self._pair(client, server, target)
        pair.start(header)

    def resume(
        self, client: socket.socket, server: socket.socket, target: Target, state: RelayState
    ) -> None:
        """Go on with a connection that another process has relayed."""
        self._pair(client, server, target).resume(state)

    def _pair(self, client: socket.socket, server: socket.socket, to: Target) -> RelayConnection:
        tally = self._tallies.get(to.port)
        pair = RelayConnection(client, server, self._forget, self.carried, tally)
        self._pairs[pair] = to
        return pair

    def _forget(self, pair: RelayConnection) -> None:
        del self._pairs[pair]

    async def _carry_later(self, client: socket.socket) -> None:
        """Relay a connection whose worker could not be reached at once."""
        with contextlib.ExitStack() as ours:
            ours.enter_context(client)
            try:
                found = await self._connect(client)
            except OSError as error:
                log.warning("relay_failed", error=str(error))
                return
            if isinstance(found, Refusal):
                await refuse(client, found)
            elif found is not None:
                ours.pop_all()
                self._begin(client, *found)

    async def _connect(
        self, client: socket.socket
    ) -> tuple[socket.socket, Target] | Refusal | None:
        """Return a connection to the chosen target; wait for a worker that restarts."""
        deadline = asyncio.get_running_loop().time() + self._patience_seconds
        pause = _RETRY_SECONDS
        while True:
            target = self._choose(client)
            if not isinstance(target, Target):
                return target
            try:
                if not has_room(self.listener, self._purpose):
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                return await _connect_in_time(target), target
            except OSError as error:
                waits = isinstance(error, ConnectionError | TimeoutError)
                if not waits and error.errno not in _SHORTAGES:
                    raise
            if asyncio.get_running_loop().time() > deadline:
                raise ConnectionRefusedError("no worker accepted the connection in time")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_RETRY_SECONDS)


def _socket_for(target: Target) -> socket.socket:
    """Return a socket that is not connected yet, from the right source."""
    family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.source is not None:
            # The port is chosen at connect, among those that are free for this target.
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((target.source, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_at_once(target: Target) -> socket.socket:
    """Return a connection without waiting. Raises OSError.

    On one machine the handshake is over when the call returns, unless the queue is full; but the
    first call returns EINPROGRESS all the same, and the second one its result.
    """
    sock = _socket_for(target)
    try:
        address = target.host, target.port
        if sock.connect_ex(address) == errno.EINPROGRESS:
            sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect_in_time(target: Target) -> socket.socket:
    """Return a connection. Raises OSError, TimeoutError where the worker's queue is full."""
    sock = _socket_for(target)
    try:
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            await asyncio.get_running_loop().sock_connect(sock, (target.host, target.port))
    except BaseException:
        sock.close()
        raise
    return sock
