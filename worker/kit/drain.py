"""How a worker leaves without losing a request: the decision, apart from any server.

Two things go wrong when a server just stops. A connection whose handshake began before the
traffic moved away still lands in this worker's queue, so the queue is served until it is empty
and a settling time has passed. And closing an idle keep-alive connection races with the request
that its client is sending, so clients are asked first (`Connection: close` on every answer), and
a connection is closed only after it was idle for a grace and has nothing waiting to be read.

A retired worker (its version is no longer active, but it is kept warm) gives up its connections
in the same way, yet goes on accepting: it may be active again at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from worker.kit.role import Role

# A handshake that began before the flip needs this long to arrive in the queue, at most.
SETTLE_SECONDS = 0.25


class Connection(Protocol):
    """One client's connection, as the server's adapter shows it."""

    def idle_since(self) -> float | None:
        """Return when it became idle (`time.monotonic`), or None while a request is under way."""

    def close_if_unread(self) -> None:
        """Close it, unless bytes have arrived that nobody has read yet."""


class Server(Protocol):
    """A server, as its adapter shows it."""

    def connections(self) -> Iterable[Connection]:
        """Return the open connections, those being closed included."""

    def queue_length(self) -> int:
        """Return how many connections wait to be accepted."""

    def stop_accepting(self) -> None:
        """Accept nothing more; what was accepted is served."""


class Drain:
    """Where this worker is between serving everybody and being gone. Times are seconds."""

    def __init__(
        self,
        *,
        idle_grace: float,
        timeout: float,
        settle: float = SETTLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.role = Role.UNKNOWN
        self.stopping = False
        self.shedding = False
        """Whether answers must carry `Connection: close`; a plain attribute, read per answer."""
        self._idle_grace = idle_grace
        self._timeout = timeout
        self._settle = settle
        self._clock = clock
        self._since = 0.0
        self._deadline = float("inf")
        self._accepting = True

    @property
    def leading(self) -> bool:
        """Whether background work is this instance's to take: not if another one is active."""
        return not self.stopping and self.role in (Role.ACTIVE, Role.UNKNOWN)

    @property
    def remaining(self) -> float:
        """Seconds until the hard deadline; infinite before `stop`."""
        return max(0.0, self._deadline - self._clock())

    def set_role(self, role: Role) -> None:
        """Begin to shed connections when retired, and stop doing so when active again."""
        self.role = role
        self._shed(self.stopping or role is Role.RETIRED)

    def stop(self) -> None:
        """Begin the end of this process. A second call changes nothing."""
        if not self.stopping:
            self.stopping = True
            self._deadline = self._clock() + self._timeout
            self._shed(True)

    def hurry(self) -> None:
        """Move the hard deadline to now."""
        self._deadline = min(self._deadline, self._clock())

    def tick(self, server: Server) -> bool:
        """Do what is due; returns whether the process may end. To be called every few 10 ms."""
        if not self.shedding:
            return False
        now = self._clock()
        connections = list(server.connections())
        for connection in connections:
            idle_since = connection.idle_since()
            if idle_since is not None and now - max(idle_since, self._since) >= self._idle_grace:
                connection.close_if_unread()
        if not self.stopping:
            return False
        if self._accepting:
            # What the server has accepted a moment ago may not be a connection yet: this is
            # never the last tick.
            if now >= self._deadline or self._queue_is_done(server, now):
                self._accepting = False
                server.stop_accepting()
            return False
        return not connections or now >= self._deadline

    def _queue_is_done(self, server: Server, now: float) -> bool:
        return now - self._since >= self._settle and server.queue_length() == 0

    def _shed(self, shedding: bool) -> None:
        if shedding and not self.shedding:
            self._since = self._clock()
        self.shedding = shedding
