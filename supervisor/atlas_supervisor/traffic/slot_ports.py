"""The slots' own ports: each leads to the instance in its slot, or to nobody, never to the other.

A worker that was handed its own port's listener serves it by itself. For one that was not, the
daemon relays to wherever the worker can be reached. While a slot is without a worker, whoever
asks for it is refused at once, since a listener that nobody accepts from would keep him waiting.
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
    """Both slots' own listeners. `ways_in` says where a slot's worker is reached, if we relay.

    Workers that bind the ports by themselves leave nothing to do: then there are no listeners.
    """

    def __init__(
        self, listeners: Mapping[SlotName, socket.socket], ways_in: Mapping[SlotName, Target]
    ) -> None:
        self._ways_in = ways_in
        self._vacant: set[SlotName] = set()
        self._carried = RelayCounters()
        self._relays = {
            slot: Relay(listener, partial(self._way_into, slot), self._carried)
            for slot, listener in listeners.items()
        }
        for slot in ways_in:
            self._relays[slot].start()

    def _way_into(self, slot: SlotName) -> Target | None:
        return None if slot in self._vacant else self._ways_in.get(slot)

    def vacate(self, slot: SlotName) -> None:
        """Refuse from now on; also what waits in the queue."""
        self._vacant.add(slot)
        if relay := self._relays.get(slot):
            relay.start()

    def occupy(self, slot: SlotName) -> None:
        """Leave the port to the slot's worker again, or relay to it."""
        self._vacant.discard(slot)
        if slot in self._relays and slot not in self._ways_in:
            self._relays[slot].stop()

    def relayed(self) -> RelayTraffic:
        """Return what both carry, and have carried; who is refused counts as accepted."""
        open_now = sum(relay.open_connections for relay in self._relays.values())
        return RelayTraffic.of(self._carried, open_now)

    async def close(self) -> None:
        """Accept no more, and cut what is open. The listeners stay open."""
        for relay in self._relays.values():
            await relay.close()
