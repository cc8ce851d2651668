"""The relay plane: the daemon accepts on the public port and copies bytes to the active slot.

It serves workers that bind their own port, and systems where the kernel can't steer. It costs a
copy of every byte, and the public port closes with the daemon. The promise is the same: a
connection stays with the version where it began, and a switch loses none.

Without a public port (`PUBLIC_PORT=0`) the same class serves the slots' own ports alone.

With PROXY protocol a worker that binds its own port expects a header on each connection, those of
probes and smoke tests included. So these connect to a listener of ours, which adds the header.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from random import getrandbits

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.system.failpoints import seam
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.system.procfs import describe_listeners, inode_of
from atlas_supervisor.system.tcp_info import queue_length
from atlas_supervisor.traffic import carry_over, listeners
from atlas_supervisor.traffic.carry_over import CarriedConnection
from atlas_supervisor.traffic.plane import Endpoints, InheritedSockets, RelayTraffic, TakenBack
from atlas_supervisor.traffic.refusal import Refusal
from atlas_supervisor.traffic.relay import Relay, Target, client_header, local_header
from atlas_supervisor.traffic.relay_connection import Answers
from atlas_supervisor.traffic.request_tally import RequestTally
from atlas_supervisor.traffic.slot_ports import Rescues, SlotPorts
from atlas_supervisor.traffic.steering import DIRECT_SOURCE, Split, SteeringPolicy, choose
from atlas_supervisor.traffic.takeback import (
    PARKED_NAME,
    PUBLIC_NAME,
    drop_passed,
    holders,
    looked_at,
    own_addresses,
    own_name,
    public_name,
    reserved_name,
    take_back,
    take_inner,
    take_passed,
)


class RelayPlane:
    """The public listener, the relay's targets, and the slots' own ports."""

    def __init__(self, endpoints: Endpoints, socket_passing: SocketPassing) -> None:
        self._endpoints = endpoints
        self._socket_passing = socket_passing
        self._policy = SteeringPolicy(SlotName.BLUE)
        self._public: socket.socket | None = None
        self.held = False
        """Whether new connections wait: nothing is accepted."""
        self._relay: Relay | None = None
        self._own: dict[SlotName, socket.socket] = {}
        self._inner: dict[SlotName, socket.socket] = {}
        """Inherited in place of the public socket; the relay connects to it."""
        self._probe_listeners: dict[SlotName, socket.socket] = {}
        """Where the daemon's own requests connect to, if the worker expects a header."""
        binds = socket_passing is SocketPassing.PORT
        self._own_name = reserved_name if binds else own_name
        by_port = binds and endpoints.public_port
        self._with_header = bool(by_port and endpoints.proxy_protocol)
        self._own_ports: SlotPorts
        self._tallies = {s: RequestTally() for s in SlotName if endpoints.count_requests}
        self._rescues = Rescues(endpoints.patience_seconds)
        self._carried: list[CarriedConnection] = []
        """Clients' connections from before a reload."""
        self._passed_on: int | None = None
        """The file with what is known of those that are passed on."""
        self._kept: tuple[socket.socket, ...] = ()

    @property
    def name(self) -> str:
        """`relay`, or `none` where there is no public port."""
        return "relay" if self._endpoints.public_port else "none"

    @property
    def active(self) -> SlotName:
        """The slot that new connections go to."""
        return self._policy.active

    @property
    def policy(self) -> SteeringPolicy:
        """Where new connections go."""
        return self._policy

    def take_back(self, pids: Collection[int], passed: PassedSockets) -> TakenBack:
        """Look at the addresses; of what workers of an earlier daemon have, own ports are shared.

        The public port was passed on, or died with that daemon and is opened at once: clients wait
        then. Where its workers still listen in the way of this plane, the result is not complete.
        """
        host, port = self._endpoints.public_host, self._endpoints.public_port
        drop_passed(passed, [*map(public_name, SlotName), PARKED_NAME])
        if self._socket_passing is SocketPassing.PORT:
            taken = looked_at(self._endpoints, pids, passed)
        else:
            taken = take_back(self._endpoints, pids, passed)
            if port:
                taken = replace(taken, inner=take_inner(self._endpoints, pids))
        self._carried = list(carry_over.taken_from(passed))
        try:
            self._public = take_passed(passed, PUBLIC_NAME, host, port)
            ours = {*taken.inodes, *([inode_of(self._public)] if self._public else [])}
            if port:
                listeners.refuse_unusable("PUBLIC_PORT", host, port, ours)
            for slot, own_port in self._endpoints.slot_ports.items():
                label = listeners.own_port_label(slot)
                listeners.refuse_unusable(label, "127.0.0.1", own_port, taken.inodes)
            if port and not taken.group and self._public is None:
                self._public = self._listen()
        except BaseException:
            taken.close()
            raise
        return replace(taken, accepts={}, complete=taken.complete and not taken.group)

    def adoptable(self, slot: SlotName, pids: Collection[int], taken: TakenBack) -> int | None:
        """Return the process that has what the relay connects to, and the slot's own port."""
        if self._socket_passing is SocketPassing.PORT:
            return next(iter(holders(self._endpoints.slot_ports[slot], pids)), None)
        relayed, by_own = bool(self._endpoints.public_port), SocketPassing.ACTIVATION
        for pid in pids:
            if (pid in taken.inner or not relayed) and (
                (slot, pid) in taken.own or (relayed and self._socket_passing is not by_own)
            ):
                return pid
        return None

    def open(
        self,
        active: SlotName,
        taken: TakenBack | None = None,
        adopted: Mapping[SlotName, int] | None = None,
        split: Split | None = None,
        *,
        held: bool = False,
    ) -> None:
        """Open the public listener and the slots' own ports."""
        taken, adopted = taken or TakenBack(), adopted or {}
        self._policy, self.held = SteeringPolicy(active), held
        if split and len(adopted) == len(SlotName):
            self.split(split)
        self._kept = (*taken.kept, *taken.inner.values())
        try:
            self._open_sockets(taken, adopted)
        except BaseException:
            self._close_sockets()
            raise
        self._own_ports = self._serve_own_ports()
        if self._public is not None:
            header = client_header if self._with_header else None
            patience = self._endpoints.patience_seconds
            tallies = {self._target_of(slot).port: each for slot, each in self._tallies.items()}
            self._relay = Relay(
                self._public,
                self._target,
                header=header,
                patience_seconds=patience,
                tallies=tallies,
            )
            self.resume()
            for each in self._carried:
                self._relay.resume(*each)

    def _open_sockets(self, taken: TakenBack, adopted: Mapping[SlotName, int]) -> None:
        # A worker binds its own port beside our reservation (SO_REUSEADDR).
        binds = self._socket_passing is SocketPassing.PORT
        open_one = listeners.bind if binds else listeners.listen_in_front
        ports = self._endpoints.slot_ports
        had = {slot: sock for slot in ports if (sock := taken.own_of(slot, adopted.get(slot)))}
        missing = {
            slot: port
            for slot, port in ports.items()
            if slot not in had and not (binds and slot in adopted)
        }
        self._own = had | listeners.open_slot_ports(missing, open_one, taken.inodes)
        for slot in had:
            self.refresh(slot)
        if not self._endpoints.public_port:
            return
        self._public = self._public or self._listen()
        if self._socket_passing is not SocketPassing.PORT:
            for slot in SlotName:
                inner = taken.inner.get(adopted.get(slot, 0))
                self._inner[slot] = inner or listeners.listen("127.0.0.1", 0)
        elif self._with_header:
            for slot in SlotName:
                self._probe_listeners[slot] = listeners.listen("127.0.0.1", 0)

    def _listen(self) -> socket.socket:
        host, port = self._endpoints.public_host, self._endpoints.public_port
        listeners.refuse_foreign_listeners("PUBLIC_PORT", host, port)
        try:
            return listeners.listen(host, port)
        except OSError as error:
            raise listeners.explain_bind_error("PUBLIC_PORT", host, port, error) from error

    def _serve_own_ports(self) -> SlotPorts:
        if self._socket_passing is SocketPassing.PORT:
            targets = {slot: self._target_of(slot) for slot in self._probe_listeners}
            return SlotPorts(
                self._probe_listeners, targets, header=local_header, patience_seconds=0
            )
        if self._socket_passing is SocketPassing.ACTIVATION or not self._inner:
            return SlotPorts(self._own, {})
        # By the source, a probe differs from a client while clients are refused.
        sources = {slot: str(DIRECT_SOURCE[slot]) for slot in SlotName}
        return SlotPorts(
            self._own,
            {slot: self._target_of(slot)._replace(source=sources[slot]) for slot in SlotName},
        )

    def _target(self, client: socket.socket) -> Target | Refusal:
        return self._clients_of(self._chosen(client) if self._policy.split else self.active)

    def _chosen(self, client: socket.socket) -> SlotName:
        try:
            source = ip_address(client.getpeername()[0].partition("%")[0])
        except OSError:  # the client has reset the connection
            return self.active
        return choose(self._policy, source, getrandbits(32))

    def _clients_of(self, slot: SlotName) -> Target | Refusal:
        return self._rescues.refusal(slot) or self._target_of(slot)

    def _target_of(self, slot: SlotName) -> Target:
        if slot in self._inner:
            return Target("127.0.0.1", self._inner[slot].getsockname()[1])
        return Target("127.0.0.1", self._endpoints.slot_ports[slot])

    def inherited(self, slot: SlotName) -> InheritedSockets:
        """Return the worker's sockets: none if it binds its own port, one if it takes one alone."""
        if self._socket_passing is SocketPassing.PORT:
            return InheritedSockets({})
        named = {"public": self._inner[slot]} if slot in self._inner else {}
        if self._socket_passing is SocketPassing.ACTIVATION or not named:
            named["private"] = self._own[slot]
        for sock in named.values():
            sock.setblocking(False)  # the flag is shared, and the last worker may have changed it
        return InheritedSockets(named)

    def ports(self, slot: SlotName) -> frozenset[int]:
        """Return the slot's own port, and the one that the relay connects to."""
        return frozenset({self._endpoints.slot_ports[slot], self._target_of(slot).port})

    def probe_port(self, port: int) -> int:
        """Return the slot's own port, or that of the listener that adds the header."""
        for slot, listener in self._probe_listeners.items():
            if self._endpoints.slot_ports[slot] == port:
                return int(listener.getsockname()[1])
        return port

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        """The public address, if there is one, and the slots' own ports."""
        public = self._endpoints.public_host, self._endpoints.public_port
        own = own_addresses(self._endpoints, self._own_name)
        return ({PUBLIC_NAME: public} if public[1] else {}) | own

    def sockets(self) -> dict[str, socket.socket]:
        """Return the public socket and those of the slots' own ports."""
        public = {PUBLIC_NAME: self._public} if self._public is not None else {}
        return public | {self._own_name(slot): sock for slot, sock in self._own.items()}

    def direct(
        self, slot: SlotName, pid: int | None, taken: TakenBack
    ) -> tuple[str, int, str | None]:
        """Return the slot's own port, or the listener that the relay connects to."""
        inner = taken.inner.get(pid or 0)
        port = inner.getsockname()[1] if inner else self._endpoints.slot_ports[slot]
        return "127.0.0.1", port, None

    def steer(self, slot: SlotName) -> None:
        """Choose the slot for every connection that is accepted from now on."""
        self._policy = SteeringPolicy(slot)

    @property
    def waiting(self) -> int:
        """The length of the public queue."""
        return queue_length(self._public) if self._public is not None else 0

    def prepare_hold(self) -> None:
        """Do nothing: clients wait in the public queue."""

    @seam("hold")
    def hold(self) -> None:
        """Accept no more; open connections go on."""
        self.held = True
        self.pause()

    @seam("release")
    def release(self) -> None:
        """Accept again."""
        self.held = False
        self.resume()

    def split(self, split: Split) -> None:
        """Give the other slot its part of what is accepted from now on."""
        self._policy = replace(self._policy, split=split)
        for tally in self._tallies.values():
            tally.drawn = not split.testers

    def refresh(self, slot: SlotName) -> None:
        """Set the queues' sizes again: the worker shares the sockets."""
        if self._socket_passing is SocketPassing.PORT:
            return
        listeners.restore_backlog(self._own[slot])
        if slot in self._inner:
            listeners.restore_backlog(self._inner[slot])

    def restore(self, *, turned: bool) -> None:
        """Do nothing: the public port's socket is the daemon's alone."""

    def locked(self) -> bool:
        """Return that no worker could: see `restore`."""
        return False

    def queued(self, slot: SlotName) -> int:
        """Return how many relayed connections the slot's worker has not accepted yet.

        The queue of a worker that binds its own port can't be read: connections count that have
        sent something and got no byte back.
        """
        if self._socket_passing is not SocketPassing.PORT:
            return queue_length(self._inner.get(slot, self._own[slot]))
        return self._relay.unanswered(self._target_of(slot)) if self._relay is not None else 0

    def vacate(self, slot: SlotName, heir: SlotName) -> None:
        """Relay what the last worker did not accept to the heir; close on its own port."""
        if slot in self._inner:
            self._rescues.begin(slot, self._inner[slot], lambda _client: self._clients_of(heir))
        self._own_ports.vacate(slot)

    def occupy(self, slot: SlotName) -> None:
        """Leave the slot's queues to its worker again; rescued connections go on to their end."""
        self._rescues.end(slot)
        self._own_ports.occupy(slot)
        if slot not in self._own:  # an adopted worker was on its port
            with suppress(OSError):
                self._own[slot] = listeners.bind("127.0.0.1", self._endpoints.slot_ports[slot])

    def refuse(self, slot: SlotName, refusal: Refusal, launching: bool, /) -> None:
        """Refuse the slot's clients, those included that its last worker did not accept.

        Without a public port they use the slot's own one, as the probes of a launch do.
        """
        self._rescues.refuse(slot, self._inner.get(slot), refusal)
        if self._public is None and not launching:
            self._own_ports.vacate(slot, refusal)

    def admit(self, slot: SlotName) -> None:
        """Relay clients to the slot's worker again."""
        self._rescues.admit(slot)

    def rescued(self, slot: SlotName) -> int:
        """Return how many connections were passed on since the slot lost its worker."""
        return self._rescues.count(slot)

    def answers(self) -> Answers:
        """Return whether an answer is pending on each connection that the daemon relays."""
        public = self._relay.answers() if self._relay is not None else {}
        return public | self._rescues.answers() | self._own_ports.answers()

    def relayed(self) -> dict[str, RelayTraffic]:
        """Return the daemon's relayed traffic: the public port, rescues and own ports."""
        found = {"own_port": self._own_ports.relayed(), "rescue": self._rescues.relayed()}
        if self._relay is not None:
            found["public"] = RelayTraffic.of(self._relay.carried, self._relay.open_connections)
        return found

    def tallies(self) -> Mapping[SlotName, RequestTally]:
        """Return the counts of users' requests that the daemon relays, by slot."""
        return self._tallies

    def foreign_listeners(self) -> list[str]:
        """Return foreign listeners on the public port."""
        if self._public is None:
            return []
        host, port = self._endpoints.public_host, self._endpoints.public_port
        found = listeners.foreign_listeners(host, port, {inode_of(self._public)})
        return [describe_listeners([listener]) for listener in found]

    def stop_accepting(self) -> bool:
        """Accept no more clients; open connections go on."""
        self.pause()
        return self._relay is not None

    def pause(self) -> None:
        """Let new clients wait in the queue; open connections go on."""
        if self._relay is not None:
            self._relay.stop()

    def answering(self) -> bool:
        """Return whether a client is not connected yet, or one of a rescue or an own port waits."""
        others = self._rescues.answers() | self._own_ports.answers()
        return any(others.values()) or (self._relay is not None and self._relay.connecting)

    def pass_on(self) -> dict[str, int]:
        """Return the descriptors of all clients' connections."""
        found = carry_over.pass_on(self._relay.pairs) if self._relay is not None else {}
        self._passed_on = next(iter(found.values()), None)
        return found

    def resume(self) -> None:
        """Accept clients again."""
        if self._passed_on is not None:
            os.close(self._passed_on)
            self._passed_on = None
        if self._relay is not None and not self.held:
            self._relay.start()

    async def close(self) -> None:
        """Close every socket and reset relayed connections."""
        if self._relay is not None:
            await self._relay.close()
        await self._rescues.close()
        await self._own_ports.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        opened = (self._own, self._inner, self._probe_listeners)
        ours = (sock for each in opened for sock in each.values())
        for sock in (self._public, *ours, *self._kept):
            if sock is not None:
                sock.close()
