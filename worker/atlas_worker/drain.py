"""How a worker leaves without losing a request: the decision, apart from any server.

Two things go wrong when a server just stops. A connection whose handshake began before the
traffic moved away still lands in this worker's queue, so the queue is served until it is empty
and a settling time has passed. And closing an idle keep-alive connection races with the request
that its client is sending, so clients are asked first (`Connection: close` on every answer), and
a connection is closed only after it was idle for a grace and has nothing waiting to be read.

A retired worker (its version is no longer active, but it is kept warm) gives up its connections
in the same way, yet goes on accepting: it may be active again at any moment.

A stream (a WebSocket, server-sent events) does not end by itself, so it is told to go. All at once
would bring all of their clients back in the same moment: the telling is spread evenly.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Protocol

from atlas_worker.role import InstanceRole

_log = logging.getLogger("atlas.worker")

# A handshake that began before the flip needs this long to arrive in the queue, at most.
SETTLE_SECONDS = 0.25

# Streams are told to go within this share of the drain time; the rest is for their answers.
TELLING_SHARE = 0.5


class Connection(Protocol):
    """One client's connection, as the server's adapter shows it."""

    def idle_since(self) -> float | None:
        """Return when it became idle (`time.monotonic`), or None while a request is under way."""

    def close_if_unread(self) -> None:
        """Close it, unless bytes have arrived that nobody has read yet."""


class StreamKind(StrEnum):
    """What kind of exchange does not end by itself."""

    WEBSOCKET = "websocket"
    EVENTS = "event_stream"


class Stream(Protocol):
    """A long-lived exchange; one object from its beginning to its end, told apart by identity."""

    kind: StreamKind

    def tell_to_go(self, *, replaced: bool) -> None:
        """Say goodbye as its protocol does; called once, must neither block nor raise.

        A WebSocket closes by 1012 if another instance has the traffic (`replaced`), else by 1001.
        Server-sent events end after an event.
        """


@dataclass(frozen=True, slots=True)
class RemainingWork:
    """What a server still has: how many of each kind."""

    requests: int
    websockets: int
    event_streams: int
    idle: int

    @property
    def owed(self) -> int:
        """How many of them would be cut off if the process ended now; idle ones are not."""
        return self.requests + self.websockets + self.event_streams

    def as_dict(self) -> dict[str, int]:
        """Return the counts by their names in the contract (`LEFT_KINDS`)."""
        return asdict(self)


class Server(Protocol):
    """A server, as its adapter shows it."""

    def connections(self) -> Iterable[Connection]:
        """Return the open connections, those being closed included.

        A connection that carries a stream is one of them, and is not idle.
        """

    def streams(self) -> Iterable[Stream]:
        """Return the streams that are not over, those told to go included."""

    def queue_length(self) -> int:
        """Return how many connections wait to be accepted."""

    def stop_accepting(self) -> None:
        """Accept nothing more; what was accepted is served."""


class DrainController:
    """Where this worker is between serving everybody and being gone. Times are seconds."""

    def __init__(
        self,
        *,
        idle_grace: float,
        timeout: float,
        settle: float = SETTLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.role = InstanceRole.UNKNOWN
        self.stopping = False
        self.shedding = False
        """Whether answers must carry `Connection: close`; a plain attribute, read per answer."""
        self.accepting = True
        """Whether new connections are taken; false from `Server.stop_accepting` on."""
        self._idle_grace = idle_grace
        self._timeout = timeout
        self._settle = settle
        self._clock = clock
        self._since = 0.0
        self._deadline = float("inf")
        self._hurried = False
        self._pace = _Pace(0.0)
        self._told: set[Stream] = set()

    @property
    def leading(self) -> bool:
        """Whether background work is this instance's to take: not if another one is active."""
        return not self.stopping and self.role in (InstanceRole.ACTIVE, InstanceRole.UNKNOWN)

    @property
    def replaced(self) -> bool:
        """Whether another instance has the traffic."""
        return self.role in (InstanceRole.STAGING, InstanceRole.RETIRED)

    @property
    def remaining(self) -> float:
        """Seconds until the hard deadline; infinite before `stop`."""
        return max(0.0, self._deadline - self._clock())

    def set_role(self, role: InstanceRole) -> None:
        """Begin to shed connections when retired, and stop doing so when active again.

        Once it accepts nothing more, another instance may be in its slot, and what is told of
        the port's role concerns that one.
        """
        if not self.accepting:
            return
        self.role = role
        self._shed(self.stopping or role is InstanceRole.RETIRED)

    def stop(self) -> None:
        """Begin the end of this process. A second call changes nothing."""
        if not self.stopping:
            self.stopping = True
            self._deadline = self._clock() + self._timeout
            self._shed(True)

    def hurry_streams(self) -> None:
        """Tell all streams to go with the next tick; no deadline moves."""
        self._hurried = True

    def hurry(self) -> None:
        """Move the hard deadline to now."""
        self._deadline = min(self._deadline, self._clock())

    def left(self, server: Server) -> RemainingWork:
        """Count what the server still has."""
        kinds = [stream.kind for stream in server.streams()]
        idle = [connection.idle_since() is not None for connection in server.connections()]
        return RemainingWork(
            requests=max(0, idle.count(False) - len(kinds)),
            websockets=kinds.count(StreamKind.WEBSOCKET),
            event_streams=kinds.count(StreamKind.EVENTS),
            idle=idle.count(True),
        )

    def tick(self, server: Server) -> bool:
        """Do what is due; returns whether the process may end. To be called every few 10 ms."""
        if not self.shedding:
            return False
        now = self._clock()
        connections = list(server.connections())
        if now - self._since >= self._idle_grace:  # nobody's grace is over before
            self._close_idle(connections, now)
        streams = set(server.streams())
        self._tell(streams, now)
        if not self.stopping:
            return False
        if self.accepting:
            # What the server has accepted a moment ago may not be a connection yet: this is
            # never the last tick.
            if now >= self._deadline or self._queue_is_done(server, now):
                self.accepting = False
                server.stop_accepting()
            return False
        return now >= self._deadline or not (connections or streams)

    def _close_idle(self, connections: Iterable[Connection], now: float) -> None:
        for connection in connections:
            idle_since = connection.idle_since()
            if idle_since is not None and now - idle_since >= self._idle_grace:
                connection.close_if_unread()

    def _tell(self, streams: set[Stream], now: float) -> None:
        self._told &= streams
        untold = streams - self._told
        end = min(self._since + TELLING_SHARE * self._timeout, self._deadline)
        due = len(untold) if self._hurried else self._pace.due(len(untold), now=now, end=end)
        for _ in range(due):
            stream = untold.pop()
            self._told.add(stream)
            try:
                stream.tell_to_go(replaced=self.replaced)
            except Exception:  # noqa: BLE001 - an adapter's, of which nothing is known here
                # One adapter's fault must not keep the others from being told.
                _log.exception("a stream could not be told to go; it has until the deadline")

    def _queue_is_done(self, server: Server, now: float) -> bool:
        return now - self._since >= self._settle and server.queue_length() == 0

    def _shed(self, shedding: bool) -> None:
        if shedding and not self.shedding:
            self._since = self._clock()
            self._pace = _Pace(self._since)
        self.shedding = shedding


class _Pace:
    """Spreads a number of things evenly until an end; the number may change on the way.

    The first is due at once and the last at the end, so that a single one is not kept waiting.
    """

    def __init__(self, now: float) -> None:
        self._last = now
        self._owed = 1.0

    def due(self, count: int, *, now: float, end: float) -> int:
        """Return how many of the `count` that are left are due now."""
        if now >= end or count <= self._owed:
            due = count
        else:
            # What is not owed yet shrinks by the share of the time that has passed: a line.
            self._owed += (count - self._owed) * (now - self._last) / (end - self._last)
            due = min(count, math.floor(self._owed))
        self._last = now
        # With nothing left to spread, the next one to come need not wait either.
        self._owed = self._owed - due if due < count else 1.0
        return due
