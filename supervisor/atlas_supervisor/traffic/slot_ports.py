"""The listeners of the slots, where the daemon accepts in place of a worker.

The own port of each slot leads to that slot's worker, never to the other slot. A worker that
inherited its own port's listener serves it by itself. For one that did not, the daemon relays.
While a slot has no worker, the daemon accepts and closes connections at once: in the queue they
would wait for an answer that never comes.

The public queue of a slot without a worker is rescued, on either plane: a listener takes
connections into its queue even when no worker accepts from it, so the daemon accepts them and
relays them to the living worker.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from functools import partial

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.system.descriptors import Purpose
from atlas_supervisor.traffic.plane import RelayTraffic
from atlas_supervisor.traffic.refusal import PATIENCE_SECONDS, Refusal
from atlas_supervisor.traffic.relay import Choice, Choose, Header, Relay, Target
from atlas_supervisor.traffic.relay_connection import Answers, RelayCounters


class SlotPorts:
    """Both slots' own listeners. `targets` has the relay's target where the daemon relays.

    There are no listeners if workers bind the ports by themselves.
    """

    def __init__(
        self,
        listeners: Mapping[SlotName, socket.socket],
        targets: Mapping[SlotName, Target],
        *,
        header: Header | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._targets = targets
        self._vacant: dict[SlotName, Refusal | None] = {}
        self._carried = RelayCounters()
        self._relays = {
            slot: Relay(
                listener,
                partial(self._target, slot),
                self._carried,
                header=header,
                patience_seconds=patience_seconds,
                purpose=Purpose.OWN_PORT,
            )
            for slot, listener in listeners.items()
        }
        for slot in targets:
            self._relays[slot].start()

    def _target(self, slot: SlotName, _client: socket.socket) -> Choice:
        return self._vacant[slot] if slot in self._vacant else self._targets.get(slot)

    def vacate(self, slot: SlotName, refusal: Refusal | None = None) -> None:
        """Close or refuse every connection from now on, those in the queue included."""
        self._vacant[slot] = refusal
        if relay := self._relays.get(slot):
            relay.start()

    def occupy(self, slot: SlotName) -> None:
        """Leave the port to the slot's worker again, or relay to it."""
        self._vacant.pop(slot, None)
        if slot in self._relays and slot not in self._targets:
            self._relays[slot].stop()

    def relayed(self) -> RelayTraffic:
        """Return the traffic of both; a connection that is closed at once counts as accepted."""
        open_now = sum(relay.open_connections for relay in self._relays.values())
        return RelayTraffic.of(self._carried, open_now)

    def answers(self) -> Answers:
        """Return whether an answer is pending on each relayed connection."""
        found: Answers = {}
        for relay in self._relays.values():
            found |= relay.answers()
        return found

    async def close(self) -> None:
        """Accept no more, and reset open connections. The listeners stay open."""
        for relay in self._relays.values():
            await relay.close()


class Parking:
    """The listener whose queue a hold fills, if there is one, and the relay that hands on."""

    def __init__(self, choose: Choose, patience_seconds: float) -> None:
        self._choose = choose
        self._patience_seconds = patience_seconds
        self._carried = RelayCounters()
        self._relay: Relay | None = None

    def open(self, listener: socket.socket) -> None:
        """Take the listener; connections wait in its queue."""
        patience = self._patience_seconds
        self._relay = Relay(listener, self._choose, self._carried, patience_seconds=patience)

    @property
    def listeners(self) -> list[socket.socket]:
        """The listener; empty before the first hold."""
        return [self._relay.listener] if self._relay else []

    def hold(self) -> None:
        """Let connections wait from now on."""
        if self._relay:
            self._relay.stop()

    def hand_on(self) -> None:
        """Relay what waits, in order, and what comes later."""
        if self._relay:
            self._relay.start()

    def relayed(self) -> RelayTraffic:
        """Return the traffic of what was handed on."""
        return RelayTraffic.of(self._carried, self._relay.open_connections if self._relay else 0)

    def answers(self) -> Answers:
        """Return whether an answer is pending on each connection that was handed on."""
        return self._relay.answers() if self._relay else {}

    async def close(self) -> None:
        """Hand on no more, and reset open connections. The listener stays open."""
        if self._relay:
            await self._relay.close()


class Rescues:
    """The rescues of both slots' public queues; at most one for each at a time.

    A queue that no worker serves may be refused instead. A rescue ends that, a worker that is being
    started does not: whether it comes up is not known yet.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._running: dict[SlotName, Relay] = {}
        self._refusals: dict[SlotName, Refusal] = {}
        self._refusing: dict[SlotName, Relay] = {}
        """Those whose queue is ours to read."""
        self._ending: list[Relay] = []
        """Relays that accept no more, and still have open connections."""
        self._carried = RelayCounters()

    def begin(self, dead: SlotName, queue: socket.socket, choose: Choose) -> None:
        """Relay connections from the slot's queue from now on; does nothing a second time."""
        self.admit(dead)
        if dead not in self._running:
            self._running[dead] = Relay(
                queue, choose, self._carried, patience_seconds=self._patience_seconds
            )
            self._running[dead].start()

    def is_running(self, slot: SlotName) -> bool:
        """Return whether the slot's queue is rescued."""
        return slot in self._running

    def end(self, slot: SlotName) -> None:
        """Leave the queue to a worker; accepted connections go on to their end."""
        if rescue := self._running.pop(slot, None):
            rescue.stop()
            self._ending = [one for one in (*self._ending, rescue) if one.open_connections]

    def refuse(self, slot: SlotName, queue: socket.socket | None, refusal: Refusal) -> None:
        """Refuse the slot's connections from now on, unless they are rescued."""
        if slot in self._running:
            return
        self._refusals[slot] = refusal
        if queue is not None and slot not in self._refusing:
            self._refusing[slot] = Relay(queue, lambda _client: refusal, self._carried)
            self._refusing[slot].start()

    def admit(self, slot: SlotName) -> None:
        """Refuse the slot's connections no more."""
        self._refusals.pop(slot, None)
        if relay := self._refusing.pop(slot, None):
            relay.stop()
            self._ending = [one for one in (*self._ending, relay) if one.open_connections]

    def refusal(self, slot: SlotName) -> Refusal | None:
        """Return the refusal for the slot's connections; None if it may serve."""
        return self._refusals.get(slot)

    def count(self, slot: SlotName) -> int:
        """Return how many connections were passed on since the slot lost its worker."""
        return self._running[slot].accepted if slot in self._running else 0

    def relayed(self) -> RelayTraffic:
        """Return the traffic of all rescues."""
        relays = (*self._running.values(), *self._refusing.values(), *self._ending)
        return RelayTraffic.of(self._carried, sum(relay.open_connections for relay in relays))

    def answers(self) -> Answers:
        """Return whether an answer is pending on each connection."""
        found: Answers = {}
        for relay in (*self._running.values(), *self._ending):
            found |= relay.answers()
        return found

    async def close(self) -> None:
        """Accept no more, and reset open connections."""
        for relay in (*self._running.values(), *self._refusing.values(), *self._ending):
            await relay.close()
        self._running.clear()
        self._refusing.clear()
        self._ending.clear()
