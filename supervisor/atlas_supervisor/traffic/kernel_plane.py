"""The kernel plane: workers accept by themselves, and the kernel picks the slot.

The public port has two listeners, one for each slot, in one SO_REUSEPORT group. The worker of a
slot inherits the slot's listener, and the group's program picks the listener of every new
connection (see `steering`). No byte of a client passes through the daemon, and connections go on
when the daemon dies.

What always holds:
- The listeners are opened once, and stay open while the daemon lives. The program's result is an
  index in the group, in the order of `listen()`; closing a listener would move the other one, and
  reset every connection in its queue.
- Each worker also carries the other slot's public listener, without using it. So one living worker
  keeps the whole group open when the daemon dies, and the next daemon takes it back (`takeback`).
  Where it can't take the worker over, too, that one keeps the traffic and its listener; the active
  slot gets the other one, and the traffic once its fresh worker is ready.
- A slot's queue has one owner. With a worker, that is the worker (`occupy`). Without one, the
  daemon accepts the queue's connections and relays them to the other slot (`vacate`), so that no
  client waits in the queue of a dead worker.
- While traffic is held, new connections wait in a third listener of the group, the parked one. It
  is opened at the first hold, behind the other two. Outside of a hold the daemon accepts from it
  and relays to the active slot: what has waited, and a handshake that began before the release.
- A slot's own port leads to that slot's worker or to a closed connection, never to the other slot:
  probes and smoke tests rely on it.

The order around a launch: `occupy` (the queue is the new worker's), launch, ready, then `refresh`:
the worker shares the sockets, and servers shrink the backlog or could replace the program, so both
are set again. The order around a switch: `steer`, then the state file, then the drain; a connection
whose handshake began before `steer` still arrives in the old queue, which is why the old worker
accepts until its queue is empty (see `workers.drain`).
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import structlog

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.system.failpoints import seam
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.system.procfs import describe_listeners, inode_of
from atlas_supervisor.system.sockdiag import TcpSocket
from atlas_supervisor.system.tcp_info import queue_length
from atlas_supervisor.traffic import listeners
from atlas_supervisor.traffic.plane import Endpoints, InheritedSockets, RelayTraffic, TakenBack
from atlas_supervisor.traffic.refusal import Refusal
from atlas_supervisor.traffic.relay import Choice, Target
from atlas_supervisor.traffic.relay_connection import Answers
from atlas_supervisor.traffic.request_tally import RequestTally
from atlas_supervisor.traffic.slot_ports import Parking, Rescues, SlotPorts
from atlas_supervisor.traffic.steering import DIRECT_SOURCE, Split, SteeringPolicy
from atlas_supervisor.traffic.takeback import (
    PARKED_NAME,
    PUBLIC_NAME,
    continued_group,
    drop_passed,
    own_addresses,
    own_name,
    public_name,
    take_back,
)

log = structlog.get_logger(__name__)


class KernelPlane:
    """The listening group, the slots' own listeners, and the program between them."""

    name = "kernel"

    def __init__(self, endpoints: Endpoints, socket_passing: SocketPassing) -> None:
        self._endpoints = endpoints
        self._by_descriptor = socket_passing is SocketPassing.FD
        self._policy = SteeringPolicy(SlotName.BLUE, self._by_descriptor)
        self._public: dict[SlotName, socket.socket] = {}
        """In the order of the group."""
        self._own: dict[SlotName, socket.socket] = {}
        self._own_ports: SlotPorts
        self._rescues = Rescues(endpoints.patience_seconds)
        self._parking = Parking(self._released, endpoints.patience_seconds)
        self._kept: tuple[socket.socket, ...] = ()

    @property
    def active(self) -> SlotName:
        """The slot that new connections go to."""
        return self._policy.active

    @property
    def policy(self) -> SteeringPolicy:
        """Where new connections go."""
        return self._policy

    @seam("take-back")
    def take_back(self, pids: Collection[int], passed: PassedSockets) -> TakenBack:
        """Look at the addresses, and take the group back from workers of an earlier daemon."""
        drop_passed(passed, [PUBLIC_NAME])
        taken = take_back(self._endpoints, pids, passed)
        try:
            host, port = self._endpoints.public_host, self._endpoints.public_port
            listeners.refuse_unusable("PUBLIC_PORT", host, port, taken.inodes)
            for slot, own_port in self._endpoints.slot_ports.items():
                label = listeners.own_port_label(slot)
                listeners.refuse_unusable(label, "127.0.0.1", own_port, taken.inodes)
        except BaseException:
            taken.close()
            raise
        return taken

    def adoptable(self, slot: SlotName, pids: Collection[int], taken: TakenBack) -> int | None:
        """Return the process that accepts from a public socket and, if it takes two, its own."""
        for pid in pids:
            if pid in taken.accepts and (self._by_descriptor or (slot, pid) in taken.own):
                return pid
        return None

    @seam("open-plane")
    def open(
        self,
        active: SlotName,
        taken: TakenBack | None = None,
        adopted: Mapping[SlotName, int] | None = None,
        split: Split | None = None,
        *,
        held: bool = False,
    ) -> None:
        """Open the group and the slots' own ports, with what was taken back."""
        taken, adopted = taken or TakenBack(), adopted or {}
        self._kept = taken.kept
        self._policy = replace(self._policy, held=held and taken.parked is not None)
        try:
            self._open_sockets(active, taken, adopted, split or Split())
            if taken.parked:
                self._parking.open(taken.parked)
            if self.active is active and not self.held:  # else once its fresh worker is ready
                self._parking.hand_on()
        except BaseException:
            self._close_sockets()
            raise
        targets = {slot: self._target_of(slot) for slot in SlotName} if self._by_descriptor else {}
        self._own_ports = SlotPorts(self._own, targets)

    def _open_sockets(
        self, active: SlotName, taken: TakenBack, adopted: Mapping[SlotName, int], split: Split
    ) -> None:
        host, port = self._endpoints.public_host, self._endpoints.public_port
        listeners.refuse_foreign_listeners("PUBLIC_PORT", host, port, taken.inodes)
        served = not adopted and taken.traffic in taken.accepts.values()
        with_traffic = active.other if served else active
        self._policy = replace(self._policy, active=with_traffic)
        if len(adopted) == len(SlotName):
            self._policy = replace(self._policy, split=split)
        try:
            if taken.group:
                self._public = continued_group(taken, adopted, with_traffic, host, port)
            else:
                self._public = listeners.open_group(host, port, self._policy)
        except OSError as error:
            raise listeners.explain_bind_error("PUBLIC_PORT", host, port, error) from error
        self._attach(self._policy)
        had = {
            slot: sock
            for slot in self._endpoints.slot_ports
            if (sock := taken.own_of(slot, adopted.get(slot)))
        }
        for sock in had.values():
            listeners.restore_backlog(sock)
        self._own = had | listeners.open_slot_ports(
            {slot: port for slot, port in self._endpoints.slot_ports.items() if slot not in had},
            listeners.listen_in_front,
            taken.inodes,
        )

    @property
    def held(self) -> bool:
        """Whether new connections wait."""
        return self._policy.held

    @property
    def waiting(self) -> int:
        """The length of the parked queue."""
        return sum(map(queue_length, self._parking.listeners))

    @seam("park")
    def prepare_hold(self) -> None:
        """Open the parked listener behind the other two: their order stays."""
        if not self._parking.listeners:
            host, port = self._endpoints.public_host, self._endpoints.public_port
            self._parking.open(listeners.listen(host, port, reuse_port=True))
            self._parking.hand_on()

    def _released(self, _client: socket.socket) -> Choice:
        return self._rescues.refusal(self.active) or self._relayed_to(self.active)

    def _relayed_to(self, slot: SlotName) -> Target:
        if self._by_descriptor:
            return self._target_of(slot)
        return Target("127.0.0.1", self._endpoints.slot_ports[slot])

    @seam("hold")
    def hold(self) -> None:
        """Steer new connections to the parked queue, which nothing accepts from."""
        self.prepare_hold()
        self._attach(replace(self._policy, held=True))
        self._parking.hold()

    @seam("release")
    def release(self) -> None:
        """Steer as before, and relay what waits, for which a daemon's start may wait longer."""
        if self.held:
            self._parking.hand_on()
            self._attach(replace(self._policy, held=False))

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        """The public address, also of the parked listener, and the slots' own ports."""
        public = self._endpoints.public_host, self._endpoints.public_port
        names = [*map(public_name, SlotName), PARKED_NAME]
        return dict.fromkeys(names, public) | own_addresses(self._endpoints)

    def sockets(self) -> dict[str, socket.socket]:
        """Return all public sockets and those of the slots' own ports."""
        public = {public_name(slot): sock for slot, sock in self._public.items()}
        for sock in self._parking.listeners:
            public[PARKED_NAME] = sock
        return public | {own_name(slot): sock for slot, sock in self._own.items()}

    def direct(
        self, slot: SlotName, _pid: int | None, _taken: TakenBack
    ) -> tuple[str, int, str | None]:
        """Return the slot's own port; of a worker without it, the public one."""
        return self._relayed_to(slot)

    def _target_of(self, slot: SlotName) -> Target:
        """Return the address of a worker that inherited the public socket alone."""
        return Target(
            listeners.loopback_of(self._endpoints.public_host),
            self._endpoints.public_port,
            source=str(DIRECT_SOURCE[slot]),
        )

    def inherited(self, slot: SlotName) -> InheritedSockets:
        """Return the slot's public listener, its own one if the worker takes two, and the spare."""
        named = {"public": self._public[slot]}
        if not self._by_descriptor:
            named["private"] = self._own[slot]
        for sock in named.values():
            sock.setblocking(False)  # the flag is shared, and the last worker may have changed it
        return InheritedSockets(named, spare=(self._public[slot.other],))

    def ports(self, slot: SlotName) -> frozenset[int]:
        """Return the public port and the slot's own one."""
        return frozenset({self._endpoints.public_port, self._endpoints.slot_ports[slot]})

    def probe_port(self, port: int) -> int:
        """Return the slot's own port: it leads to the worker directly."""
        return port

    @seam("steer")
    def steer(self, slot: SlotName) -> None:
        """Attach the program that sends new connections to the slot: the switch itself."""
        self._attach(replace(self._policy, active=slot, split=Split()))
        if not self.held:
            self._parking.hand_on()

    @seam("split")
    def split(self, split: Split) -> None:
        """Attach the program that gives the staging slot its part."""
        self._attach(replace(self._policy, split=split))

    def _attach(self, policy: SteeringPolicy) -> None:
        """Attach the policy. The mark is the active slot's, also while there is a split."""
        first, second = self._public
        policy = replace(policy, order=(first, second))
        listeners.attach_to_group(self._public[policy.active], policy)
        self._policy = policy
        listeners.mark(list(self._public.values()), traffic=self._public[policy.active])

    def refresh(self, slot: SlotName) -> None:
        """Set the queue's size and the program again: the worker shares the sockets."""
        listeners.restore_backlog(self._public[slot])
        listeners.restore_backlog(self._own[slot])
        self._attach(self._policy)

    def restore(self, *, turned: bool) -> None:
        """Listen and steer again after a worker has changed that."""
        if turned:
            self._public = dict(reversed(self._public.items()))
        for sock in (*self._public.values(), *self._own.values()):
            listeners.restore_backlog(sock)
        for sock in self._parking.listeners:  # outside of a hold its queue is empty
            listeners.listen_last(sock)
        self._attach(self._policy)

    def locked(self) -> bool:
        """Return whether a worker has locked a listener's filters."""
        return any(listeners.is_locked(sock) for sock in self._public.values())

    def queued(self, slot: SlotName) -> int:
        """Return the length of the slot's public queue."""
        return queue_length(self._public[slot])

    @seam("vacate")
    def vacate(self, slot: SlotName, heir: SlotName) -> None:
        """Relay the public queue of a slot without a worker to the heir; close on its own port."""
        target = Target("127.0.0.1", self._endpoints.slot_ports[heir])
        self._rescues.begin(
            slot, self._public[slot], lambda _client: self._rescues.refusal(heir) or target
        )
        self._own_ports.vacate(slot)

    @seam("occupy")
    def occupy(self, slot: SlotName) -> None:
        """Leave the slot's queues to its worker again; rescued connections go on to their end."""
        self._rescues.end(slot)
        self._own_ports.occupy(slot)

    def refuse(self, slot: SlotName, refusal: Refusal, _launching: bool, /) -> None:
        """Refuse the slot's public queue; a worker that is launched shares it."""
        self._rescues.refuse(slot, self._public[slot], refusal)

    def admit(self, slot: SlotName) -> None:
        """Leave the public queue to the slot's worker again."""
        self._rescues.admit(slot)

    def rescued(self, slot: SlotName) -> int:
        """Return how many connections were passed on since the slot lost its worker."""
        return self._rescues.count(slot)

    def answers(self) -> Answers:
        """Return whether an answer is pending on each connection that the daemon relays."""
        return self._rescues.answers() | self._parking.answers() | self._own_ports.answers()

    def relayed(self) -> dict[str, RelayTraffic]:
        """Return the relayed traffic: rescues, own ports of `{fd}` workers, and after a hold."""
        found = {"own_port": self._own_ports.relayed(), "rescue": self._rescues.relayed()}
        return {**found, "hold": self._parking.relayed()}

    def tallies(self) -> Mapping[SlotName, RequestTally]:
        """Return none: users' bytes pass by this process."""
        return {}

    def foreign_listeners(self) -> list[str]:
        """Return foreign listeners on the public port and on the slots' own ports."""
        found: list[TcpSocket] = []
        ours = {inode_of(sock) for sock in self._opened()}
        found += listeners.foreign_listeners(
            self._endpoints.public_host, self._endpoints.public_port, ours
        )
        for port in self._endpoints.slot_ports.values():
            found += listeners.foreign_listeners("127.0.0.1", port, ours)
        return [describe_listeners([listener]) for listener in found]

    def stop_accepting(self) -> bool:
        """Let new connections wait in the other slot's queue, where it has no worker.

        The marks stay: to a daemon that follows a kill, the worker has the traffic.
        """
        active = self._policy.active
        if not self._rescues.is_running(active.other):
            return False
        self._rescues.end(active.other)
        policy = replace(self._policy, active=active.other, split=Split())
        try:
            listeners.attach(self._public[active], policy)
        except OSError as error:
            log.error("stop_not_steered", why=str(error))
            return False
        return True

    def pause(self) -> None:
        """Do nothing: workers accept by themselves."""

    def answering(self) -> bool:
        """Return whether an answer is pending on a connection that the daemon relays."""
        return any(self.answers().values())

    def pass_on(self) -> dict[str, int]:
        """Return nothing: clients' connections are their workers'."""
        return {}

    def resume(self) -> None:
        """Do nothing: see `pause`."""

    async def close(self) -> None:
        """Close every socket; what is still queued is reset by the kernel."""
        await self._rescues.close()
        await self._own_ports.close()
        await self._parking.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for sock in self._opened():
            sock.close()

    def _opened(self) -> Iterator[socket.socket]:
        yield from (*self._public.values(), *self._own.values(), *self._kept)
        yield from self._parking.listeners
