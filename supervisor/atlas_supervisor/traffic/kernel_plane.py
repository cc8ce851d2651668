"""The kernel plane: workers accept by themselves, and the kernel picks which one.

The public port's two listeners form a group whose program picks the slot (see `steering`). The
worker of a slot inherits the slot's listener, so no byte of a client passes through the daemon
and a dead daemon stops nobody.
"""

from __future__ import annotations

import socket

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.system.procfs import describe_listeners, inode_of
from atlas_supervisor.system.sockdiag import TcpSocket
from atlas_supervisor.traffic import listeners
from atlas_supervisor.traffic.plane import Endpoints, InheritedSockets, RelayTraffic
from atlas_supervisor.traffic.relay import Target
from atlas_supervisor.traffic.rescue import Rescues
from atlas_supervisor.traffic.slot_ports import SlotPorts
from atlas_supervisor.traffic.steering import DIRECT_SOURCE, SteeringPolicy


class KernelPlane:
    """The listening group, the slots' own listeners, and the program between them."""

    name = "kernel"

    def __init__(self, endpoints: Endpoints, hand_over: SocketPassing) -> None:
        self._endpoints = endpoints
        self._by_descriptor = hand_over is SocketPassing.FD
        self._policy = SteeringPolicy(SlotName.BLUE, direct=self._by_descriptor)
        self._public: dict[SlotName, socket.socket] = {}
        self._own: dict[SlotName, socket.socket] = {}
        self._own_ports: SlotPorts
        self._rescues = Rescues()

    @property
    def active(self) -> SlotName:
        """The slot that new connections go to."""
        return self._policy.active

    @property
    def weights(self) -> dict[str, float]:
        """Share of new connections per slot."""
        return self._policy.weights

    def open(self, active: SlotName) -> None:
        """Open the group and the slots' own ports."""
        try:
            self._open_sockets(SteeringPolicy(active, direct=self._by_descriptor))
        except BaseException:
            self._close_sockets()
            raise
        ways_in = {slot: self._way_into(slot) for slot in SlotName} if self._by_descriptor else {}
        self._own_ports = SlotPorts(self._own, ways_in)

    def _open_sockets(self, policy: SteeringPolicy) -> None:
        host, port = self._endpoints.public_host, self._endpoints.public_port
        listeners.refuse_strangers("PUBLIC_PORT", host, port)
        try:
            self._public = listeners.open_group(host, port, policy)
        except OSError as error:
            raise listeners.explain_bind_error("PUBLIC_PORT", host, port, error) from error
        self._policy = policy
        self._own = listeners.open_slot_ports(self._endpoints.slot_ports)

    def _way_into(self, slot: SlotName) -> Target:
        """Return how a worker is reached that was handed the public socket alone."""
        return Target(
            listeners.loopback_of(self._endpoints.public_host),
            self._endpoints.public_port,
            source=str(DIRECT_SOURCE[slot]),
        )

    def handed(self, slot: SlotName) -> InheritedSockets:
        """Return the slot's public listener, its own one if it can take two, and the spare."""
        named = {"public": self._public[slot]}
        if not self._by_descriptor:
            named["private"] = self._own[slot]
        for sock in named.values():
            sock.setblocking(False)  # a flag that the worker before may have changed for all of us
        return InheritedSockets(named, spare=(self._public[slot.other],))

    def ports(self, slot: SlotName) -> frozenset[int]:
        """Return the public port and the slot's own one."""
        return frozenset({self._endpoints.public_port, self._endpoints.slot_ports[slot]})

    def steer(self, slot: SlotName) -> None:
        """Attach the program that sends new connections to the slot: the switch itself."""
        policy = SteeringPolicy(slot, direct=self._by_descriptor)
        listeners.attach(self._public[slot], policy)
        self._policy = policy

    def refresh(self, slot: SlotName) -> None:
        """Set the queue's size and the program again: the worker shares the sockets."""
        listeners.restore_backlog(self._public[slot])
        listeners.restore_backlog(self._own[slot])
        self.steer(self._policy.active)

    def queued(self, slot: SlotName) -> int:
        """Return the length of the slot's public queue."""
        return listeners.queue_length(self._public[slot])

    def vacate(self, slot: SlotName, heir: SlotName) -> None:
        """Hand the public queue of a slot without a worker to the heir; refuse on its own port."""
        target = Target("127.0.0.1", self._endpoints.slot_ports[heir])
        self._rescues.begin(slot, self._public[slot], lambda: target)
        self._own_ports.vacate(slot)

    def occupy(self, slot: SlotName) -> None:
        """Leave the slot's queues to its worker again; what was rescued is carried to its end."""
        self._rescues.end(slot)
        self._own_ports.occupy(slot)

    def rescued(self, slot: SlotName) -> int:
        """Return how many connections were handed on since the slot's worker is gone."""
        return self._rescues.count(slot)

    def relayed(self) -> dict[str, RelayTraffic]:
        """Return what the daemon carries: rescues, and the own ports of `{fd}` workers."""
        return {"own_port": self._own_ports.relayed(), "rescue": self._rescues.relayed()}

    def strangers(self) -> list[str]:
        """Return foreign listeners on the public port and on the slots' own ports."""
        found: list[TcpSocket] = []
        ours = {inode_of(sock) for sock in (*self._public.values(), *self._own.values())}
        found += listeners.strangers(self._endpoints.public_host, self._endpoints.public_port, ours)
        for port in self._endpoints.slot_ports.values():
            found += listeners.strangers("127.0.0.1", port, ours)
        return [describe_listeners([listener]) for listener in found]

    async def close(self) -> None:
        """Close every socket; what is still queued is reset by the kernel."""
        await self._rescues.close()
        await self._own_ports.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for sock in (*self._public.values(), *self._own.values()):
            sock.close()
