"""Questions about deploys: the status, the history, the transitions, the events.

Nothing here changes anything. The status comes from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy import errors
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.machine import Phase
from atlas_supervisor.deploy.recorder import Runs
from atlas_supervisor.deploy.recycler import Recycler
from atlas_supervisor.deploy.rollback import Target, targets
from atlas_supervisor.model.canary import CanaryStats
from atlas_supervisor.model.deploy import (
    AfterFailure,
    DeployRecord,
    EventFeed,
    Mode,
    Result,
    StepName,
    Transition,
    as_transition,
)
from atlas_supervisor.model.release import (
    EarlierVersion,
    EarlierVersions,
    ReleaseView,
    VersionSource,
)
from atlas_supervisor.model.requests import RecentRequests, RequestFigures
from atlas_supervisor.model.slot import SlotState, SlotView
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.model.status import DaemonView, HoldView, Status, Suggestion, Traffic
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.releases import Releases, UnknownReleaseError
from atlas_supervisor.workers.slot import Slot
from atlas_supervisor.workers.slots import Slots

_GATES = {StepName.LAUNCH, StepName.SMOKE, StepName.HEALTH}
"""The steps whose failure sets the mode to `single`, besides the guard."""


_ROLLBACK_REQUESTED = f"{Phase.GUARD}: rollback requested by "


_WRITES_INTO_ITSELF = (
    " If the application itself or its output changed the folder, let them write elsewhere, or "
    "give the release a `VERSION` file: then other files do not count."
)
_NO_WAY_BACK = (
    "there is no version to go back to, so mend what it needs, or deploy one that works with "
    "`atlasctl deploy`."
)


def failure(last: DeployRecord | None) -> str | None:
    """Return how the latest deploy failed a gate or its guard; None if it did not."""
    failed = (
        {step.name for step in last.steps if not step.ok} if last and not last.dry_run else set()
    )
    if last and last.result is Result.FAILED:
        for gate in failed & _GATES:
            return f"deploy {last.deploy_id} failed at {gate}"
    if last and last.result is Result.ROLLED_BACK and StepName.SWITCH in failed:
        return f"deploy {last.deploy_id} was reverted in its ramp"
    requested = last is not None and (last.reason or "").startswith(_ROLLBACK_REQUESTED)
    if last and last.result is Result.ROLLED_BACK and StepName.GUARD in failed and not requested:
        return f"deploy {last.deploy_id} was reverted by its guard"
    return None


def suggestions(
    settings: Settings,
    state: DeployState,
    active: Slot,
    last: DeployRecord | None,
    complaint: str | None = None,
    *,
    can_go_back: bool = True,
) -> list[Suggestion]:
    """Return problems and their fixes; empty if there are none."""
    found = []
    logs = settings.state_dir / "logs"
    log = logs / f"worker-{active.name}.log"
    if state.mode is Mode.SINGLE and settings.deploy_mode is Mode.BLUEGREEN:
        found.append(
            Suggestion(
                code="mode_is_single",
                message=f"Deploys are disabled: {failure(last) or 'the mode is single'}.",
                action="Re-enable with `atlasctl mode bluegreen`.",
            )
        )
    elif settings.after_failure is AfterFailure.STAY and last and (why := failure(last)):
        found.append(
            Suggestion(
                code="last_deploy_failed",
                message=f"AFTER_FAILURE=stay keeps deploys enabled, but {why}.",
                action=f"See `atlasctl show {last.deploy_id}`.",
            )
        )
    if complaint is not None:
        found.append(
            Suggestion(
                code="revert_held",
                message=f"The active version did not pass its watch: {complaint}.",
                action="Deploy a version that mends it (`atlasctl deploy`). An earlier one, which "
                "may not suit the data any more, takes over only by hand: `atlasctl rollback`.",
            )
        )
    if active.release_gone is not None and not active.serving:
        found.append(
            Suggestion(
                code="active_release_gone",
                message=f"The active worker can't be started: {active.release_gone}.",
                action="Go back with `atlasctl rollback`, deploy another release (`atlasctl "
                "deploy`), or put the folder back.",
            )
        )
    elif active.state in {SlotState.BACKOFF, SlotState.STARTING} and active.restarts:
        found.append(
            Suggestion(
                code="active_worker_crashes",
                message=f"The active worker does not stay up: {active.last_exit or 'it crashed'}; "
                f"{active.restarts} restarts so far. It is tried again, at pauses of up to a "
                "minute.",
                action=f"See {logs / 'supervisor.jsonl'} for the reasons and {log} for its output; "
                + ("go back with `atlasctl rollback`." if can_go_back else _NO_WAY_BACK),
            )
        )
    if active.instance is not None and (problem := active.instance.release.problem) is not None:
        is_digest = active.instance.release.source is VersionSource.DIGEST
        found.append(
            Suggestion(
                code="active_release_changed",
                message=f"What serves is not what was deployed: {problem}.",
                action="Deploy a release, so that it passes the gates (`atlasctl deploy`), or go "
                "back with `atlasctl rollback`." + (_WRITES_INTO_ITSELF if is_digest else ""),
            )
        )
    return found


class CanaryOverview(Protocol):
    """What the status shows of feature canaries, from memory."""

    def stats(self) -> CanaryStats:
        """Return the last hour's numbers."""

    def suggestions(self) -> list[Suggestion]:
        """Return problems with them and their fixes."""


class DeployQueries:
    """Answers questions about deploys; it satisfies `api.ports.QueryPort`."""

    def __init__(
        self,
        *,
        settings: Settings,
        slots: Slots,
        plane: Plane,
        releases: Releases,
        database: Database,
        events: EventHub,
        state: StateKeeper,
        runs: Runs,
        canaries: CanaryOverview,
        request_figures: Callable[[str], RequestFigures | None],
        recent_requests: Callable[[], RecentRequests],
        health_score: Callable[[], int],
        recycler: Recycler,
        daemon: Callable[[], DaemonView],
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._plane = plane
        self._releases = releases
        self._database = database
        self._events = events
        self._state = state
        self._runs = runs
        self._canaries = canaries
        self._request_figures = request_figures
        self._recent_requests = recent_requests
        self._health_score = health_score
        self._recycler = recycler
        self._daemon = daemon

    def status(self) -> Status:
        """Return the current status, from memory."""
        settings, state, latest = self._settings, self._state.state, self._runs.latest
        active = self._slots.active
        slots = [self._with_requests(view) for view in self._slots.views()]
        return Status(
            mode=state.mode,
            active_port=state.active_port,
            staging_port=state.staging_port,
            public_port=settings.public_port or None,
            health_score=self._health_score(),
            version=active.instance.release.version if active.instance else None,
            channel=settings.channel,
            last_deploy=latest,
            canary_stats=self._canaries.stats(),
            fallback_suggestions=[
                *self._history_lost(),
                *suggestions(
                    settings,
                    state,
                    active,
                    self._runs.requested,
                    self._slots.complaint,
                    can_go_back=self._can_go_back(),
                ),
                *self._recycler.suggestions(),
                *self._canaries.suggestions(),
            ],
            slots=slots,
            draining=self._slots.drains.views(),
            requests=self._recent_requests() if any(each.requests for each in slots) else None,
            traffic=Traffic(
                plane=self._plane.name, weights=self._plane.policy.weights, held=self._hold()
            ),
            daemon=self._daemon(),
            recycle=self._recycler.view(),
            deploy_in_progress=self._runs.current is not None,
        )

    def _history_lost(self) -> Iterator[Suggestion]:
        if (lost := self._database.lost) is not None:
            yield Suggestion(
                code="history_lost",
                message="The database was damaged or gone: deploys, audit and canary counts of "
                "before are missing, and a rollback knows no earlier version. What is left of it "
                f"is {lost}.",
                action="Restore a backup, or go on without: either way move that file away, which "
                "ends this notice.",
            )

    def _can_go_back(self) -> bool:
        """Return whether a version served before the active one, as far as memory knows."""
        last = self._runs.latest
        switched = {step.name for step in last.steps if step.ok} if last else set()
        return self._database.versions.depth > 1 or StepName.SWITCH in switched

    def _hold(self) -> HoldView | None:
        hold = self._state.state.hold
        if hold is None or not self._plane.held:
            return None
        return HoldView(**hold.model_dump(), waiting=self._plane.waiting)

    def _with_requests(self, view: SlotView) -> SlotView:
        instance = self._slots[view.slot].instance
        figures = self._request_figures(instance.name) if instance else None
        return view.model_copy(update={"requests": figures}) if figures else view

    def summary(self) -> str:
        """Return the state in one line that anyone may read."""
        active, run = self._slots.active, self._runs.current
        slot = active if active.can_serve else self._slots.staging  # an earlier daemon's
        text = f"no worker serves: {active.name} is {active.state}"
        if self.ready() and slot.instance is not None:
            text = f"version {slot.instance.release.version} serves on port {slot.port}"
        return f"{text}; deploy {run.record.deploy_id}: {run.record.phase}" if run else text

    def ready(self) -> bool:
        """Return whether a worker takes traffic: a ready one, or one of an earlier daemon."""
        return self._slots.serves

    async def history(self, limit: int) -> list[DeployRecord]:
        """Return the latest deploys, newest first."""
        records = await self._database.deploys.latest(limit)
        return [self._runs.fresh(record) for record in records]

    async def find(self, deploy_id: str) -> DeployRecord | None:
        """Return one deploy, or None."""
        run = self._runs.get(deploy_id)
        return run.record if run else await self._database.deploys.find(deploy_id)

    async def transitions(self, deploy_id: str) -> list[Transition]:
        """Return a deploy's transitions so far; one that is not in the journal yet has no id."""
        pending = self._database.transitions.pending()
        written = await self._database.transitions.of_deploy(deploy_id)
        last = (written[-1].id or 0) if written else 0
        # One that was written while we read may be among those that were read.
        missing = [
            event
            for event in pending
            if event.event.deploy_id == deploy_id
            and (event.journal_id is None or event.journal_id > last)
        ]
        return [*written, *map(as_transition, missing)]

    async def events(self, *, after: int | None, deploy_id: str | None) -> EventFeed:
        """Return the events of all deploys, or of one, from now on or after an id."""
        if self._runs.stopping:
            raise errors.stopping()
        if deploy_id is not None and await self.find(deploy_id) is None:
            raise errors.deploy_not_found()
        return await self._events.subscribe(after=after, deploy_id=deploy_id)

    async def earlier(self, *, thorough: bool) -> EarlierVersions:
        """Return the versions that can be gone back to; `thorough`: git may be run for it."""
        found = targets(await self._database.versions.served())
        views = [await self._earlier(target, thorough=thorough) for target in found]
        active = self._slots.active.instance
        return EarlierVersions(
            active_version=active.release.version if active else None, versions=views
        )

    async def _earlier(self, target: Target, *, thorough: bool) -> EarlierVersion:
        release, staging = target.version.release, self._slots.staging
        gone = await in_thread(partial(self._releases.why_gone, release, thorough=thorough))
        warm = staging.instance.release if staging.instance and staging.can_serve else None
        is_warm = warm is not None and warm.is_same(release)
        why_not_fast = target.why_not_fast(now())
        return EarlierVersion(
            version=release.version,
            release=release.name,
            last_served_ts=target.version.until,
            warm=is_warm,
            next=target.is_next,
            fast=why_not_fast is None,
            why_not_fast=why_not_fast,
            gone=None if is_warm else gone,
            past_irreversible=list(target.past),
        )

    async def releases(self, *, with_git: bool) -> list[ReleaseView]:
        """Return the named releases that exist, by name. Raises RefusedError."""
        try:
            found = await in_thread(partial(self._releases.all, with_git=with_git))
        except UnknownReleaseError as error:
            raise errors.releases_unreadable(str(error)) from error
        last = await self._database.deploys.last_by_release()
        return [
            ReleaseView(
                name=release.name or "",
                version=release.version or None,
                version_source=release.source,
                note=release.note,
                slots=[
                    slot.name
                    for slot in self._slots
                    if slot.instance and slot.instance.release.name == release.name
                ],
                last_deploy=last.get(release.name or ""),
            )
            for release in found
        ]
