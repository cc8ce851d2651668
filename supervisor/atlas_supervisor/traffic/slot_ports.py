"""The slots' own ports: each leads to its own slot's worker, never to the other slot.

A worker that inherited its own port's listener serves it by itself. For one that did not, the
daemon relays. While a slot has no worker, the daemon accepts and closes connections at once: in
the queue they would wait for an answer that never comes.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from functools import partial

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.traffic.plane import RelayTraffic
from atlas_supervisor.traffic.relay import Relay, Target
from atlas_supervisor.traffic.relay_connection import RelayCounters


class SlotPorts:
    """Both slots' own listeners. `targets` has the relay's target where the daemon relays.

    There are no listeners if workers bind the ports by themselves.
    """

    def __init__(
        self, listeners: Mapping[SlotName, socket.socket], targets: Mapping[SlotName, Target]
    ) -> None:
        self._targets = targets
        self._vacant: set[SlotName] = set()
        self._carried = RelayCounters()
        self._relays = {
            slot: Relay(listener, partial(self._target, slot), self._carried)
            for slot, listener in listeners.items()
        }
        for slot in targets:
            self._relays[slot].start()

    def _target(self, slot: SlotName) -> Target | None:
        return None if slot in self._vacant else self._targets.get(slot)

    def vacate(self, slot: SlotName) -> None:
        """Close every connection from now on, those in the queue included."""
        self._vacant.add(slot)
        if relay := self._relays.get(slot):
            relay.start()

    def occupy(self, slot: SlotName) -> None:
        """Leave the port to the slot's worker again, or relay to it."""
        self._vacant.discard(slot)
        if slot in self._relays and slot not in self._targets:
            self._relays[slot].stop()

    def relayed(self) -> RelayTraffic:
        """Return the traffic of both; a connection that is closed at once counts as accepted."""
        open_now = sum(relay.open_connections for relay in self._relays.values())
        return RelayTraffic.of(self._carried, open_now)

    async def close(self) -> None:
        """Accept no more, and reset open connections. The listeners stay open."""
        for relay in self._relays.values():
            await relay.close()
