"""What the status shows, put together from whoever knows it.

What an operator should do about the state that the daemon is in, if anything.

What there is to know about deploys: the half of the daemon that answers and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import anyio

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy import errors
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.deploy.switch import Switch
from atlas_supervisor.health.worker_checks import ActiveWorker
from atlas_supervisor.model.canary import CanaryStats
from atlas_supervisor.model.deploy import DeployRecord, Mode
from atlas_supervisor.model.event import EventFeed, Transition, as_transition
from atlas_supervisor.model.release import LastDeploy, Release, ReleaseView
from atlas_supervisor.model.slot import Role, SlotName, SlotState
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.model.status import Status, Suggestion, Traffic
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.releases import Releases
from atlas_supervisor.workers.slot import Slot


def suggestions(settings: Settings, state: DeployState, active: Slot) -> list[Suggestion]:
    """Return what is wrong and what would mend it; empty when all is well."""
    found = []
    logs = settings.state_dir / "logs"
    log = logs / f"worker-{active.name}.log"
    if state.mode is Mode.SINGLE and settings.deploy_mode is Mode.BLUEGREEN:
        found.append(
            Suggestion(
                code="mode_is_single",
                message="No deploys are taken: one did not pass or was reverted, or an operator "
                "has set the mode.",
                action="Look at it with `atlasctl history` and `atlasctl show`, then reset: "
                "`atlasctl mode bluegreen`.",
            )
        )
    if active.state is SlotState.BACKOFF:
        found.append(
            Suggestion(
                code="active_worker_crashes",
                message="The active worker keeps dying, or does not answer 2xx on "
                f"{settings.health_path}; {active.restarts} restarts so far.",
                action=f"{logs / 'supervisor.jsonl'} says why, {log} what it printed; "
                "`atlasctl rollback` goes back.",
            )
        )
    if active.state is SlotState.FAILED:
        found.append(
            Suggestion(
                code="active_worker_given_up",
                message="The active worker died too often and was given up: nobody serves.",
                action=f"Look at {log}; deploy a version that works "
                "(`atlasctl deploy`), or restart the daemon once the cause is mended.",
            )
        )
    return found


class CanaryOverview(Protocol):
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
    canaries: CanaryOverview,
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


def subject(active: Slot) -> ActiveWorker:
    """Return whom the health is about."""
    instance = active.instance
    version = instance.release.version if instance else None
    if instance is not None and active.serving:
        return ActiveWorker(active.name, active.port, instance.name, version)
    why = f"{active.name} is {active.state}"
    if active.last_exit:
        why += f"; the last time, {active.last_exit}"
    return ActiveWorker(active.name, active.port, None, version, absence=why)


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


class DeployQueries:
    """Answers questions; `service.DeployService` adds what can be asked for."""

    def __init__(
        self,
        *,
        settings: Settings,
        switch: Switch,
        plane: Plane,
        releases: Releases,
        database: Database,
        events: EventHub,
        state: StateKeeper,
        canaries: CanaryOverview,
        health_score: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._switch = switch
        self._plane = plane
        self._releases = releases
        self._database = database
        self._events = events
        self._state = state
        self._canaries = canaries
        self._health_score = health_score
        self._runs: dict[str, DeployRun] = {}
        """Deploys that have not ended; at most one of them is in progress."""
        self._last: DeployRecord | None = None
        self._stopping = False

    def status(self) -> Status:
        """Return everything at a glance, from memory."""
        return overview(
            self._settings,
            self._state.state,
            self._switch,
            self._plane,
            health_score=self._health_score(),
            last_deploy=self._fresh(self._last) if self._last else None,
            in_progress=self._current() is not None,
            canaries=self._canaries,
        )

    def ready(self) -> bool:
        """Tell whether an active worker takes traffic."""
        return self._switch.active.serving

    async def history(self, limit: int) -> list[DeployRecord]:
        """Return the latest deploys, newest first."""
        records = await self._database.deploys.latest(limit)
        return [self._fresh(record) for record in records]

    async def find(self, deploy_id: str) -> DeployRecord | None:
        """Return one deploy, or None."""
        if deploy_id in self._runs:
            return self._runs[deploy_id].record
        return await self._database.deploys.find(deploy_id)

    async def transitions(self, deploy_id: str) -> list[Transition]:
        """Return a deploy's story so far; what is not in the journal yet has no id."""
        written = await self._database.transitions.of_deploy(deploy_id)
        return [*written, *map(as_transition, self._events.unwritten(deploy_id))]

    async def events(self, *, after: int | None, deploy_id: str | None) -> EventFeed:
        """Return what happens to deploys, or to one, from now on or after an id."""
        if self._stopping:
            raise errors.stopping()
        if deploy_id is not None and await self.find(deploy_id) is None:
            raise errors.deploy_not_found()
        return await self._events.feed(after=after, deploy_id=deploy_id)

    async def releases(self) -> list[ReleaseView]:
        """Return the named releases that exist, by name."""
        found = await anyio.to_thread.run_sync(self._releases.all)
        last = await self._database.deploys.last_by_release()
        return release_views(found, self._switch, last)

    def _fresh(self, record: DeployRecord) -> DeployRecord:
        run = self._runs.get(record.deploy_id)
        return run.record if run else record

    def _current(self) -> DeployRun | None:
        """Return the deploy that holds the place, if any."""
        return next((run for run in self._runs.values() if run.in_progress), None)
