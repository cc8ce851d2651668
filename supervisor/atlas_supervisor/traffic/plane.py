"""The interface of the two planes, which carry the public port's connections.

A plane owns every listening socket, chooses the sockets that a worker inherits, and steers. In the
kernel plane workers accept by themselves; the relay plane copies bytes for workers that can't
inherit a socket. The layers above don't depend on which one is in use.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, Self

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.traffic.refusal import PATIENCE_SECONDS, Refusal
from atlas_supervisor.traffic.relay_connection import Answers, RelayCounters
from atlas_supervisor.traffic.request_tally import RequestTally
from atlas_supervisor.traffic.steering import Split, SteeringPolicy


@dataclass(frozen=True)
class Endpoints:
    """The addresses that the plane serves."""

    public_host: str
    public_port: int
    """0 turns the public port off."""
    slot_ports: dict[SlotName, int]
    proxy_protocol: bool = False
    """Whether workers that bind their own port get the client's address by PROXY protocol."""
    patience_seconds: float = PATIENCE_SECONDS
    """How long a relayed client waits for a worker that can't be reached."""
    count_requests: bool = True
    """Whether the relay counts the requests of plain HTTP/1."""


@dataclass(frozen=True)
class InheritedSockets:
    """The sockets that a worker starts with, from descriptor 3 on.

    `spare` are carried but never touched, so that one living worker keeps the whole group open.
    """

    named: dict[str, socket.socket]
    spare: tuple[socket.socket, ...] = ()


@dataclass(frozen=True)
class TakenBack:
    """The sockets of an earlier daemon and its workers, and who accepts from them."""

    group: tuple[socket.socket, ...] = ()
    """The public port's sockets, in the order of the group; one that was closed is missing."""
    parked: socket.socket | None = None
    """The listener behind them, whose queue a hold fills; it was passed to us."""
    traffic: int = 0
    """Which of them the kernel's program steers to."""
    accepts: Mapping[int, int] = field(default_factory=dict)
    """Which of them a process accepts from, by its pid."""
    own: Mapping[tuple[SlotName, int], socket.socket] = field(default_factory=dict)
    """A slot's own listener, by slot and by the pid that has it; 0: it was passed to us."""
    inner: Mapping[int, socket.socket] = field(default_factory=dict)
    """The listener to which the relay connects, by the pid that has it."""
    kept: tuple[socket.socket, ...] = ()
    """All listeners of own ports. They stay open: else their groups would be reordered."""
    inodes: frozenset[int] = frozenset()
    """All listeners on our ports that these processes have open."""
    complete: bool = True
    """Whether every one of them could be had, and the group can be used."""

    def close(self) -> None:
        """Close the copies; the workers' own descriptors stay open."""
        parked = (self.parked,) if self.parked else ()
        for sock in (*self.group, *parked, *self.inner.values(), *self.own.values(), *self.kept):
            sock.close()

    def own_of(self, slot: SlotName, pid: int | None) -> socket.socket | None:
        """Return the own listener of a slot whose worker, if any, has this pid.

        None if there is none, or if a process accepts from it that is no worker of the slot.
        """
        if pid is not None and (slot, pid) in self.own:
            return self.own[slot, pid]
        passed = self.own.get((slot, 0))
        shared = any(sock is passed for (_, holder), sock in self.own.items() if holder)
        return None if shared else passed


class RelayTraffic(NamedTuple):
    """Traffic that the daemon relays for one purpose."""

    open_connections: int
    connections: int
    """Accepted so far."""
    from_clients: int
    to_clients: int
    """Bytes so far."""

    @classmethod
    def of(cls, carried: RelayCounters, open_connections: int) -> Self:
        """Return the traffic so far, and the connections that are open now."""
        return cls(open_connections, carried.connections, carried.from_clients, carried.to_clients)


class Plane(Protocol):
    """Carries the public port's connections to one slot or the other."""

    @property
    def name(self) -> str:
        """`kernel`, `relay` or `none`."""

    @property
    def active(self) -> SlotName:
        """The slot that new connections go to."""

    @property
    def policy(self) -> SteeringPolicy:
        """Where new connections go."""

    def take_back(self, pids: Collection[int], passed: PassedSockets) -> TakenBack:
        """Look at the addresses, and take sockets back from workers of an earlier daemon.

        Nothing changes for the workers. Raises StartRefusedError if an address can't be had.
        """

    def adoptable(self, slot: SlotName, pids: Collection[int], taken: TakenBack) -> int | None:
        """Return the process of a worker whose sockets were all taken back; None if there is none.

        With it the worker can be the slot's own.
        """

    def open(
        self,
        active: SlotName,
        taken: TakenBack | None = None,
        adopted: Mapping[SlotName, int] | None = None,
        split: Split | None = None,
        *,
        held: bool = False,
    ) -> None:
        """Open every listening socket that was not taken back. Raises StartRefusedError.

        `adopted` has the processes of the slots' own workers; with both, the split is that of the
        daemon before. While another worker of an earlier daemon serves, it keeps the traffic, and
        has the other slot. `held`: connections wait on, if the queue was passed on; else those that
        have waited are handed on.
        """

    @property
    def held(self) -> bool:
        """Whether new connections to the public port wait."""

    @property
    def waiting(self) -> int:
        """How many wait, those included whose hold has just ended."""

    def prepare_hold(self) -> None:
        """Open what a hold needs; it is one of `sockets` from then on. Raises OSError."""

    def hold(self) -> None:
        """Let new connections wait from now on, in the order of their arrival.

        Raises OSError, and then nothing changed.
        """

    def release(self) -> None:
        """Hand waiting connections on to the active slot, and new ones as before the hold.

        Raises OSError if new ones still go to where they waited; they are handed on, too.
        """

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        """Host and port of each of `sockets`, by name."""

    def sockets(self) -> dict[str, socket.socket]:
        """Return the sockets that a later daemon needs, by the names to pass them on under."""

    def direct(
        self, slot: SlotName, pid: int | None, taken: TakenBack
    ) -> tuple[str, int, str | None]:
        """Return host, port and source by which an adoptable worker is reached before `open`."""

    def inherited(self, slot: SlotName) -> InheritedSockets:
        """Return the sockets that a worker of the slot starts with."""

    def ports(self, slot: SlotName) -> frozenset[int]:
        """Return the local ports of the client connections of a worker in the slot."""

    def probe_port(self, port: int) -> int:
        """Return the loopback port by which the daemon's requests reach a slot's own `port`."""

    def steer(self, slot: SlotName) -> None:
        """Send every new connection to the slot. Raises OSError, and then nothing changed."""

    def split(self, split: Split) -> None:
        """Give the other slot this part of the new connections, until the next `steer`.

        Raises OSError, and then nothing changed.
        """

    def refresh(self, slot: SlotName) -> None:
        """Restore what a worker may have changed on the sockets that it shares with us."""

    def restore(self, *, turned: bool) -> None:
        """Listen and steer again after a worker has changed that. Raises OSError.

        `turned`: in the other order of the group, which changes if a worker ends a listener.
        """

    def locked(self) -> bool:
        """Return whether a worker has locked the filters of sockets that it shares with us."""

    def queued(self, slot: SlotName) -> int:
        """Return how many of the slot's connections wait to be accepted."""

    def vacate(self, slot: SlotName, heir: SlotName) -> None:
        """Take over the queues of a slot without a worker.

        Connections to the public port are relayed to the heir; those to the slot's own port are
        closed at once, since they are for a worker that is not there.
        """

    def occupy(self, slot: SlotName) -> None:
        """Leave the slot's queues to its worker again."""

    def refuse(self, slot: SlotName, refusal: Refusal, launching: bool, /) -> None:
        """Refuse the slot's clients, waiting and new; launches go on meanwhile.

        To be called again when a launch has failed: without a public port it ends the refusal.
        """

    def admit(self, slot: SlotName) -> None:
        """Leave them to its worker again."""

    def rescued(self, slot: SlotName) -> int:
        """Return how many of the slot's connections were passed on since it lost its worker."""

    def answers(self) -> Answers:
        """Return whether an answer is pending on each connection that the daemon relays."""

    def relayed(self) -> dict[str, RelayTraffic]:
        """Return the relayed traffic by purpose: `public`, `own_port`, `rescue`."""

    def tallies(self) -> Mapping[SlotName, RequestTally]:
        """Return the counts of users' requests that the daemon relays, by slot."""

    def foreign_listeners(self) -> list[str]:
        """Return the listeners of other programs on our addresses, in words."""

    def stop_accepting(self) -> bool:
        """Give the workers no more clients, since they are about to end; return whether it does."""

    def pause(self) -> None:
        """Let new connections wait in their queue, where this process would carry them."""

    def answering(self) -> bool:
        """Return whether an answer is pending on a connection that can't be passed on."""

    def pass_on(self) -> dict[str, int]:
        """Return descriptors by name with which the next program goes on with connections."""

    def resume(self) -> None:
        """Accept them again: there is no next program."""

    async def close(self) -> None:
        """Close everything: the daemon ends."""
