"""What there is to know about deploys: the half of the daemon that answers and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from supervisor.config import Settings
from supervisor.deploy import refusals
from supervisor.deploy.events import Events
from supervisor.deploy.overview import Canaries, overview, release_views
from supervisor.deploy.runner import DeployRun
from supervisor.deploy.switching import Switch
from supervisor.model.deploy import DeployRecord
from supervisor.model.event import EventFeed, Transition, as_transition
from supervisor.model.release import ReleaseView
from supervisor.model.status import Status
from supervisor.store.database import Database
from supervisor.store.state_keeper import StateKeeper
from supervisor.traffic import Plane
from supervisor.workers.releases import Releases


class DeployKnowledge:
    """Answers questions; `service.DeployService` adds what can be asked for."""

    def __init__(
        self,
        *,
        settings: Settings,
        switch: Switch,
        plane: Plane,
        releases: Releases,
        database: Database,
        events: Events,
        state: StateKeeper,
        canaries: Canaries,
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
        records = await self._database.deploys(limit)
        return [self._fresh(record) for record in records]

    async def find(self, deploy_id: str) -> DeployRecord | None:
        """Return one deploy, or None."""
        if deploy_id in self._runs:
            return self._runs[deploy_id].record
        return await self._database.deploy(deploy_id)

    async def transitions(self, deploy_id: str) -> list[Transition]:
        """Return a deploy's story so far; what is not in the journal yet has no id."""
        written = await self._database.transitions(deploy_id)
        return [*written, *map(as_transition, self._events.unwritten(deploy_id))]

    async def events(self, *, after: int | None, deploy_id: str | None) -> EventFeed:
        """Return what happens to deploys, or to one, from now on or after an id."""
        if self._stopping:
            raise refusals.stopping()
        if deploy_id is not None and await self.find(deploy_id) is None:
            raise refusals.deploy_not_found()
        return await self._events.feed(after=after, deploy_id=deploy_id)

    async def releases(self) -> list[ReleaseView]:
        """Return the named releases that exist, by name."""
        found = await anyio.to_thread.run_sync(self._releases.all)
        last = await self._database.last_deploys_by_release()
        return release_views(found, self._switch, last)

    def _fresh(self, record: DeployRecord) -> DeployRecord:
        run = self._runs.get(record.deploy_id)
        return run.record if run else record

    def _current(self) -> DeployRun | None:
        """Return the deploy that holds the place, if any."""
        return next((run for run in self._runs.values() if run.in_progress), None)
