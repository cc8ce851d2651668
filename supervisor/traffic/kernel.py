"""The kernel plane: workers accept by themselves, and the kernel picks which one.

The public port's two listeners form a group whose program picks the slot (see `steering`). The
worker of a slot inherits the slot's listener, so no byte of a client passes through the daemon
and a dead daemon stops nobody.
"""

from __future__ import annotations

import socket
import time

import structlog

from supervisor.errors import StartRefusedError
from supervisor.model.hand_over import HandOver
from supervisor.model.slot import SlotName
from supervisor.procfs import describe_listeners, inode_of
from supervisor.sockdiag import TcpSocket
from supervisor.traffic import listeners
from supervisor.traffic.plane import Endpoints, Handed
from supervisor.traffic.relay import Relay, Target
from supervisor.traffic.rescue import Rescues
from supervisor.traffic.steering import DIRECT_SOURCE, Policy

log = structlog.get_logger(__name__)

_SELF_TEST_SECONDS = 2.0


class KernelPlane:
    """The listening group, the slots' own listeners, and the program between them."""

    name = "kernel"

    def __init__(self, endpoints: Endpoints, hand_over: HandOver) -> None:
        self._endpoints = endpoints
        self._by_descriptor = hand_over is HandOver.FD
        self._policy = Policy(SlotName.BLUE, direct=self._by_descriptor)
        self._public: dict[SlotName, socket.socket] = {}
        self._own: dict[SlotName, socket.socket] = {}
        self._doors: dict[SlotName, Relay] = {}
        self._rescues = Rescues()
        self._refusals = Rescues()
        self._vacant: set[SlotName] = set()

    @property
    def active(self) -> SlotName:
        """The slot that new connections go to."""
        return self._policy.active

    @property
    def weights(self) -> dict[str, float]:
        """Share of new connections per slot."""
        return self._policy.weights

    def open(self, active: SlotName) -> None:
        """Open the group, prove that the kernel steers it, and open the slots' own ports."""
        try:
            self._open_sockets(Policy(active, direct=self._by_descriptor))
            self._self_test()
        except OSError as error:
            self._close_sockets()
            raise StartRefusedError(f"this system can't run the kernel plane: {error}") from error
        except BaseException:
            self._close_sockets()
            raise
        if self._by_descriptor:
            for slot in SlotName:
                self._open_door(slot)

    def _open_sockets(self, policy: Policy) -> None:
        host, port = self._endpoints.public_host, self._endpoints.public_port
        listeners.refuse_strangers("PUBLIC_PORT", host, port)
        try:
            self._public = listeners.open_group(host, port, policy)
        except OSError as error:
            raise listeners.explain_bind_error("PUBLIC_PORT", host, port, error) from error
        self._policy = policy
        self._own = listeners.open_slot_ports(self._endpoints.slot_ports)

    def _self_test(self) -> None:
        """See with real connections that the program reaches both listeners. Raises OSError.

        Clients may be there already: they go to the active slot meanwhile, and only the
        addresses of `DIRECT_SOURCE` to a slot of their own.
        """
        host = listeners.loopback_of(self._endpoints.public_host)
        if ":" in host:
            return  # IPv6 has a single loopback address, so nothing can be told apart
        listeners.attach(self._public[self.active], Policy(self.active, direct=True))
        for slot, source in DIRECT_SOURCE.items():
            before = self.queued(slot)
            with socket.create_connection(
                (host, self._endpoints.public_port), _SELF_TEST_SECONDS, (str(source), 0)
            ):
                deadline = time.monotonic() + _SELF_TEST_SECONDS
                while self.queued(slot) == before:
                    if time.monotonic() > deadline:
                        raise OSError(f"a connection was not steered to {slot}")
        self.steer(self.active)

    def _open_door(self, slot: SlotName) -> None:
        """Serve the slot's own port for a worker that was handed the public socket alone."""
        target = Target(
            listeners.loopback_of(self._endpoints.public_host),
            self._endpoints.public_port,
            source=str(DIRECT_SOURCE[slot]),
        )
        self._doors[slot] = Relay(self._own[slot], lambda: None if slot in self._vacant else target)
        self._doors[slot].start()

    def handed(self, slot: SlotName) -> Handed:
        """Return the slot's public listener, its own one if it can take two, and the spare."""
        named = {"public": self._public[slot]}
        if not self._by_descriptor:
            named["private"] = self._own[slot]
        for sock in named.values():
            sock.setblocking(False)  # a flag that the worker before may have changed for all of us
        return Handed(named, spare=(self._public[slot.other],))

    def ports(self, slot: SlotName) -> frozenset[int]:
        """Return the public port and the slot's own one."""
        return frozenset({self._endpoints.public_port, self._endpoints.slot_ports[slot]})

    def steer(self, slot: SlotName) -> None:
        """Attach the program that sends new connections to the slot: the switch itself."""
        policy = Policy(slot, direct=self._by_descriptor)
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

    def relay_into(self, dead: SlotName, living: SlotName) -> None:
        """Hand the queue of a slot without a worker to the living one; refuse on its own port."""
        self._vacant.add(dead)
        target = Target("127.0.0.1", self._endpoints.slot_ports[living])
        self._rescues.begin(dead, self._public[dead], lambda: target)
        if not self._by_descriptor:
            self._refusals.begin(dead, self._own[dead], lambda: None)

    def stop_relay(self, slot: SlotName) -> None:
        """Leave the slot's queues to its worker again; what was rescued is carried to its end."""
        self._vacant.discard(slot)
        self._rescues.end(slot)
        self._refusals.end(slot)

    def rescued(self, slot: SlotName) -> int:
        """Return how many connections were handed on since the slot's worker is gone."""
        return self._rescues.count(slot)

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
        await self._refusals.close()
        for door in self._doors.values():
            await door.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for sock in (*self._public.values(), *self._own.values()):
            sock.close()
