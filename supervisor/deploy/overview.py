"""What the status shows, put together from whoever knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from supervisor.config import Settings
from supervisor.deploy.suggestions import suggestions
from supervisor.deploy.switching import Switch
from supervisor.health.instance import Subject
from supervisor.model.canary import CanaryStats
from supervisor.model.deploy import DeployRecord
from supervisor.model.release import LastDeploy, Release, ReleaseView
from supervisor.model.slot import Role, SlotName
from supervisor.model.state import DeployState
from supervisor.model.status import Status, Suggestion, Traffic
from supervisor.traffic import Plane
from supervisor.workers.slot import Slot


class Canaries(Protocol):
    """What the status shows of feature canaries, from memory."""

    def stats(self) -> CanaryStats:
        """Return the last hour's numbers."""

    def suggestions(self) -> list[Suggestion]:
        """Return what an operator should do about them, if anything."""


def overview(
    settings: Settings,
    state: DeployState,
    switch: Switch,
    plane: Plane,
    *,
    health_score: int,
    last_deploy: DeployRecord | None,
    in_progress: bool,
    canaries: Canaries,
) -> Status:
    """Return everything at a glance, from memory."""
    active, staging = switch.active, switch.staging
    roles = {active.name: Role.ACTIVE, staging.name: Role.STAGING}
    slots = {slot.name: slot for slot in (active, staging)}
    return Status(
        mode=state.mode,
        active_port=state.active_port,
        staging_port=state.staging_port,
        public_port=settings.public_port or None,
        health_score=health_score,
        version=active.instance.release.version if active.instance else None,
        channel=settings.channel,
        last_deploy=last_deploy,
        canary_stats=canaries.stats(),
        fallback_suggestions=[*suggestions(settings, state, active), *canaries.suggestions()],
        slots=[slots[name].view(roles[name]) for name in SlotName],
        draining=active.departures.views(),
        traffic=Traffic(plane=plane.name, weights=plane.weights),
        deploy_in_progress=in_progress,
    )


def subject(active: Slot) -> Subject:
    """Return whom the health is about."""
    instance = active.instance
    version = instance.release.version if instance else None
    if instance is not None and active.serving:
        return Subject(active.name, active.port, instance.name, version)
    why = f"{active.name} is {active.state}"
    if active.last_exit:
        why += f"; the last time, {active.last_exit}"
    return Subject(active.name, active.port, None, version, absence=why)


def release_views(
    found: Sequence[Release], switch: Switch, last: dict[str, LastDeploy]
) -> list[ReleaseView]:
    """Return the named releases with where they run and how their last deploy ended."""
    slots = (switch.active, switch.staging)
    return [
        ReleaseView(
            name=release.name or "",
            version=release.version,
            slots=[
                slot.name
                for slot in slots
                if slot.instance and slot.instance.release.name == release.name
            ],
            last_deploy=last.get(release.name or ""),
        )
        for release in found
    ]
