"""Feature canaries and a fleet that remember what they were asked, for tests of the API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from atlas_supervisor.api import examples, fleet_examples
from atlas_supervisor.errors import AtlasError, RefusedError
from atlas_supervisor.fleet.view import FleetView, RolloutAction
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.canary import CanaryReport, CanaryView, FeatureView, SimulationView
from atlas_supervisor.model.idempotency_key import IdempotencyKey


@dataclass
class PlayedCanaries:
    """Answers with the document's examples."""

    refusal: RefusedError | None = None
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def view(self) -> CanaryView:
        return examples.VIEW

    async def set_percentage(self, feature: str, percentage: float, actor: Actor) -> FeatureView:
        return self._answer("set", feature, percentage, actor.name)

    async def ramp(
        self, feature: str, action: str, actor: Actor, key: IdempotencyKey | None = None
    ) -> FeatureView:
        return self._answer("ramp", feature, action, actor.name, key and key.value)

    async def reset(
        self, feature: str | None, actor: Actor, key: IdempotencyKey | None = None
    ) -> CanaryView:
        self._answer("reset", feature, actor.name, key and key.value)
        return examples.VIEW

    async def report(self, hours: int) -> CanaryReport:
        self._answer("report", hours)
        return examples.REPORT

    async def simulate(
        self, keys: int, error_rate: float, shares: tuple[float, ...] | None
    ) -> SimulationView:
        self._answer("simulate", keys, error_rate, shares)
        return examples.SIMULATION

    def _answer(self, *asked: Any) -> FeatureView:
        self.asked.append(asked)
        if self.refusal:
            raise self.refusal
        return examples.FEATURE


@dataclass
class PlayedFleet:
    """Answers with the document's example, or another view."""

    refusal: AtlasError | None = None
    shown: FleetView = fleet_examples.FLEET
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    async def view(self) -> FleetView:
        return self.shown

    async def begin(
        self, release: str, *, max_unavailable: int, waves: Sequence[float], actor: Actor
    ) -> FleetView:
        return self._answer("begin", release, max_unavailable, list(waves), actor.name)

    async def steer(self, action: RolloutAction, actor: Actor) -> FleetView:
        return self._answer(action.value, actor.name)

    async def break_slot(self, host: str, generation: int, actor: Actor) -> FleetView:
        return self._answer("break", host, generation, actor.name)

    async def kill(self, feature: str | None, actor: Actor) -> FleetView:
        return self._answer("kill", feature, actor.name)

    async def reset(self, actor: Actor) -> FleetView:
        return self._answer("reset", actor.name)

    async def forget(self, host: str, actor: Actor) -> FleetView:
        return self._answer("forget", host, actor.name)

    def _answer(self, *asked: Any) -> FleetView:
        self.asked.append(asked)
        if self.refusal:
            raise self.refusal
        return self.shown
