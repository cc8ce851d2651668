"""Reads for a scrape what the parts of the daemon know, and hands it to `gauges`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric

from supervisor.deploy.events import Events
from supervisor.deploy.gauges import Sight, gauges
from supervisor.deploy.knowledge import DeployKnowledge
from supervisor.deploy.switching import Switch
from supervisor.model.slot import SlotName
from supervisor.store.state_keeper import StateKeeper
from supervisor.telemetry.metrics import Metrics
from supervisor.telemetry.metrics.exposition import Exposition
from supervisor.telemetry.metrics.usage import Running, WorkerUsage
from supervisor.traffic import Plane


class Lookout:
    """Sees everything that is so at a moment, from memory."""

    def __init__(
        self,
        *,
        knowledge: DeployKnowledge,
        switch: Switch,
        plane: Plane,
        events: Events,
        state: StateKeeper,
    ) -> None:
        self._knowledge = knowledge
        self._switch = switch
        self._plane = plane
        self._events = events
        self._state = state

    def exposition(self, metrics: Metrics) -> Exposition:
        """Return the instruments and what is seen from here as one; to be called once."""
        WorkerUsage(metrics.registry, self._running)
        return Exposition(metrics, self._look)

    def _look(self) -> Iterator[Metric]:
        return gauges(
            Sight(
                status=self._knowledge.status(),
                state=self._state.state,
                ready=self._knowledge.ready(),
                queued={slot: self._plane.queued(slot) for slot in SlotName},
                relayed=self._plane.relayed(),
                listeners=self._events.listeners,
            )
        )

    def _running(self) -> Iterator[Running]:
        """Yield the workers in the slots. From any thread: it reads each attribute once."""
        for slot in (self._switch.active, self._switch.staging):
            if (instance := slot.instance) is not None:
                yield Running(slot.name.value, instance.release.version, instance.pid)
