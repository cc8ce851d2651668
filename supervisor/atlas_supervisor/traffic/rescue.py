"""Relays the queue of a slot without a worker to the living worker, on either plane.

A listener takes connections into its queue even when no worker accepts from it. While its slot
has no worker, the daemon accepts them and relays them, so that no client waits for a dead worker.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.traffic.plane import RelayTraffic
from atlas_supervisor.traffic.relay import Relay, Target
from atlas_supervisor.traffic.relay_connection import RelayCounters


class Rescues:
    """The rescues of both slots; at most one for each at a time."""

    def __init__(self) -> None:
        self._running: dict[SlotName, Relay] = {}
        self._ending: list[Relay] = []
        """Relays that accept no more, and still have open connections."""
        self._carried = RelayCounters()

    def begin(
        self, dead: SlotName, queue: socket.socket, choose: Callable[[], Target | None]
    ) -> None:
        """Relay connections from the slot's queue from now on; does nothing a second time."""
        if dead not in self._running:
            self._running[dead] = Relay(queue, choose, self._carried)
            self._running[dead].start()

    def end(self, slot: SlotName) -> None:
        """Leave the queue to a worker; accepted connections go on to their end."""
        if rescue := self._running.pop(slot, None):
            rescue.stop()
            self._ending = [one for one in (*self._ending, rescue) if one.open_connections]

    def count(self, slot: SlotName) -> int:
        """Return how many connections were passed on since the slot lost its worker."""
        return self._running[slot].accepted if slot in self._running else 0

    def relayed(self) -> RelayTraffic:
        """Return the traffic of all rescues."""
        relays = (*self._running.values(), *self._ending)
        return RelayTraffic.of(self._carried, sum(relay.open_connections for relay in relays))

    async def close(self) -> None:
        """Accept no more, and reset open connections."""
        for relay in (*self._running.values(), *self._ending):
            await relay.close()
        self._running.clear()
        self._ending.clear()
