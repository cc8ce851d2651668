"""The drain of a worker: when it may close what, without losing a request; server-independent.

Theory. Two races make a plain stop lose requests:

1. The accept queue. A connection whose handshake began before the switch still lands in this
   worker's queue, shortly after it. A closed listener would reset it.
2. The idle close. Closing an idle keep-alive connection races with the request that its client is
   sending: the client gets a reset and can't know whether the request was processed.

The rules follow from them, in this order:

- From the moment that this instance is not active (RETIRED or stopping) it *sheds*: every response
  carries `Connection: close`. So a busy client leaves by itself, between two requests.
- An idle connection is closed only after it was idle for the grace, counted from the later of its
  last response and the start of shedding, and only if no byte waits to be read on it.
- Streams (WebSockets, server-sent events) have no next response. They are closed by their own
  protocols, evenly spread over a share of the timeout: all clients reconnecting at once would
  overload the new version.
- While new connections are held, the active instance sheds, too; its streams stay.
- A retired instance continues to accept, because a rollback makes it active again. One that is
  held back has a share of the new connections, for a comparison: it sheds only until its clients
  from before have had the time to leave, and then serves as an active one does. A stopping one
  accepts until its queue is empty and the settling time has passed, and then never again.
- The process ends when it accepts nothing and has no connection and no stream, or at the hard
  deadline. Requests are cut at the deadline only.

Invariants: `stopping` is never unset; `accepting` goes from true to false once, and from then on
the role is ignored, because another instance may use the slot; `shedding` is true exactly while
retired, stopping, holding, or held back since a moment ago; each stream is asked to close at most
once.
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

# A handshake that began before the switch reaches the queue within this time.
SETTLE_SECONDS = 0.25

# One that is held back sheds for so much longer than the grace of its idle connections.
HELD_BACK_SECONDS = 1.0

# Streams are closed within this share of the timeout; the rest is for their clients' answers.
CLOSING_SHARE = 0.5


class Connection(Protocol):
    """One client's connection, as the server's adapter shows it."""

    def idle_since(self) -> float | None:
        """Return when it became idle (`time.monotonic`), or None while a request is under way."""

    def close_if_unread(self) -> None:
        """Close it, unless bytes have arrived that are not read yet."""


class StreamKind(StrEnum):
    """The kinds of exchanges that do not end by themselves."""

    WEBSOCKET = "websocket"
    EVENTS = "event_stream"


class Stream(Protocol):
    """A long-lived exchange; the same object from its start to its end."""

    kind: StreamKind

    def begin_close(self, *, replaced: bool) -> None:
        """Start to close it by its own protocol; called once, must neither block nor raise.

        A WebSocket is closed with code 1012 if another instance is active (`replaced`), else with
        1001. Server-sent events end after an event.
        """


@dataclass(frozen=True, slots=True)
class RemainingWork:
    """The number of open exchanges of a server, by kind."""

    requests: int
    websockets: int
    event_streams: int
    idle: int

    @property
    def unfinished(self) -> int:
        """How many would be cut off if the process ended now; idle connections are not."""
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
        """Return the open streams, those being closed included."""

    def queue_length(self) -> int:
        """Return how many connections wait to be accepted."""

    def stop_accepting(self) -> None:
        """Accept no more connections; serve the accepted ones."""


class DrainController:
    """The state of one worker's drain. Times are in seconds."""

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
        """Whether responses carry `Connection: close`; a plain attribute, read for each."""
        self.accepting = True
        """Whether connections are accepted; false from `Server.stop_accepting` on."""
        self._idle_grace = idle_grace
        self._timeout = timeout
        self._settle = settle
        self._clock = clock
        self._since = 0.0
        self._deadline = float("inf")
        self._close_now = False
        self._held = False
        self._clearing = False
        """Held back so lately that clients from before have not had the time to leave."""
        self._pace = _Pace(0.0)
        self._closing: set[Stream] = set()

    @property
    def leading(self) -> bool:
        """Whether this instance may start background work: not if another one is active."""
        return not self.stopping and self.role in (InstanceRole.ACTIVE, InstanceRole.UNKNOWN)

    @property
    def replaced(self) -> bool:
        """Whether another instance is active."""
        return self.role not in (InstanceRole.ACTIVE, InstanceRole.UNKNOWN)

    @property
    def remaining(self) -> float:
        """Seconds until the hard deadline; infinite before `stop`."""
        return max(0.0, self._deadline - self._clock())

    def set_role(self, role: InstanceRole, *, held: bool = False) -> None:
        """Shed connections when retired or `held`, and stop when active again.

        Ignored once nothing is accepted: another instance may use the slot, and the role of the
        port is that instance's.
        """
        if not self.accepting:
            return
        led, left = self.leading, self._leaving
        self.role, self._held = role, held
        self._clearing = role is InstanceRole.HELD_BACK and (led or left)
        self._shed(anew=self._leaving and not left)

    def stop(self) -> None:
        """Start the shutdown of this process. A second call has no effect."""
        if not self.stopping:
            leaves_anew = not self._leaving
            self.stopping = True
            self._deadline = self._clock() + self._timeout
            self._shed(anew=leaves_anew)

    def close_streams_now(self) -> None:
        """Close all streams at the next tick; the deadline stays."""
        self._close_now = True

    def expire(self) -> None:
        """Move the hard deadline to now."""
        self._deadline = min(self._deadline, self._clock())

    def remaining_work(self, server: Server) -> RemainingWork:
        """Count the open exchanges of the server."""
        kinds = [stream.kind for stream in server.streams()]
        idle = [connection.idle_since() is not None for connection in server.connections()]
        return RemainingWork(
            requests=max(0, idle.count(False) - len(kinds)),
            websockets=kinds.count(StreamKind.WEBSOCKET),
            event_streams=kinds.count(StreamKind.EVENTS),
            idle=idle.count(True),
        )

    def tick(self, server: Server) -> bool:
        """Close what is due; return whether the process may exit. Called every few 10 ms."""
        if not self.shedding:
            return False
        now = self._clock()
        if self._clearing and now - self._since >= self._idle_grace + HELD_BACK_SECONDS:
            self._clearing = False
            self.shedding = self._leaving or self._held
        connections = list(server.connections())
        if now - self._since >= self._idle_grace:  # before, no grace has passed
            self._close_idle(connections, now)
        streams = set(server.streams())
        if self._leaving:
            self._close_streams(streams, now)
        if not self.stopping:
            return False
        if self.accepting:
            # A connection accepted just now may not be visible yet: this is never the last tick.
            if now >= self._deadline or self._queue_is_empty(server, now):
                self.accepting = False
                server.stop_accepting()
            return False
        return now >= self._deadline or not (connections or streams)

    def _close_idle(self, connections: Iterable[Connection], now: float) -> None:
        for connection in connections:
            idle_since = connection.idle_since()
            if idle_since is not None and now - idle_since >= self._idle_grace:
                connection.close_if_unread()

    def _close_streams(self, streams: set[Stream], now: float) -> None:
        self._closing &= streams
        open_ = streams - self._closing
        end = min(self._since + CLOSING_SHARE * self._timeout, self._deadline)
        due = len(open_) if self._close_now else self._pace.due(len(open_), now=now, end=end)
        for _ in range(due):
            stream = open_.pop()
            self._closing.add(stream)
            try:
                stream.begin_close(replaced=self.replaced)
            except Exception:  # noqa: BLE001 - an adapter's, of any type
                # A fault of one stream must not keep the others open.
                _log.exception("closing a stream failed; it is cut at the deadline")

    def _queue_is_empty(self, server: Server, now: float) -> bool:
        return now - self._since >= self._settle and server.queue_length() == 0

    @property
    def _leaving(self) -> bool:
        return self.stopping or self._clearing or self.role is InstanceRole.RETIRED

    def _shed(self, *, anew: bool) -> None:
        """Set whether to shed; `anew`: from now on streams are closed, too."""
        shedding = self._leaving or self._held
        if anew or (shedding and not self.shedding):
            self._since = self._clock()
            self._pace = _Pace(self._since)
        self.shedding = shedding


class _Pace:
    """Spreads a number of actions evenly until an end; the number may change meanwhile.

    The first is due at once and the last at the end, so that a single one does not wait.
    """

    def __init__(self, now: float) -> None:
        self._last = now
        self._due = 1.0

    def due(self, count: int, *, now: float, end: float) -> int:
        """Return how many of the remaining `count` are due now."""
        if now >= end or count <= self._due:
            due = count
        else:
            # The number that is not due shrinks by the share of the time that has passed: a line.
            self._due += (count - self._due) * (now - self._last) / (end - self._last)
            due = min(count, math.floor(self._due))
        self._last = now
        # With nothing left to spread, the next one need not wait either.
        self._due = self._due - due if due < count else 1.0
        return due
