"""The daemon as the API sees it: what may begin now, and what must be refused.

It implements `api.ports.Deploys`. It decides whether a request can be done and lets the one
deploy at hand do it; what a deploy does is the table's affair.

The moment in which a deploy begins: written down as a whole, or not begun.

What a rollback goes back to when the version before is no longer warm.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import structlog
from anyio.abc import TaskGroup

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy import errors
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.executor import Executor
from atlas_supervisor.deploy.idempotency import IdempotentRequests
from atlas_supervisor.deploy.machine import Event, Plan
from atlas_supervisor.deploy.recorder import Recorder, new_record
from atlas_supervisor.deploy.recovery import resumed
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.deploy.status import CanaryOverview, DeployQueries
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.deploy import DeployRecord, Mode, Result
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.status import Status
from atlas_supervisor.model.step import StepDetail
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.deploys import UnfinishedDeploy
from atlas_supervisor.store.keys import KeyRow
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.releases import Releases, UnknownReleaseError
from atlas_supervisor.workers.slot import Slot
from atlas_supervisor.workers.slots import Slots

log = structlog.get_logger(__name__)


async def previous_release(database: Database, releases: Releases) -> Release:
    """Return what ran before, if it can be launched again. Raises RefusedError."""
    await database.outbox.flush()  # a switch that is not written yet would be passed over
    rows = await database.versions.all()
    if len(rows) < 2:
        raise errors.nothing_to_roll_back()
    before = rows[1].release
    try:
        found = await anyio.to_thread.run_sync(releases.find, before.name)
    except UnknownReleaseError as error:
        raise errors.previous_gone(before, str(error)) from error
    if found.name is None and found.version != before.version:
        why = f"{found.path} now holds version {found.version}"
        raise errors.previous_gone(before, why)
    return found


class DeployService(DeployQueries):
    """Begins deploys and answers for them; there is one at a time."""

    def __init__(
        self,
        *,
        settings: Settings,
        slots: Slots,
        plane: Plane,
        activities: Executor,
        recorder: Recorder,
        releases: Releases,
        database: Database,
        events: EventHub,
        state: StateKeeper,
        canaries: CanaryOverview,
        health_score: Callable[[], int],
        tasks: TaskGroup,
    ) -> None:
        super().__init__(
            settings=settings,
            slots=slots,
            plane=plane,
            releases=releases,
            database=database,
            events=events,
            state=state,
            canaries=canaries,
            health_score=health_score,
        )
        self._activities = activities
        self._recorder = recorder
        self._tasks = tasks
        self._repeats = IdempotentRequests(database.keys)
        self._beginning = anyio.Lock()

    # What can be asked for.

    async def deploy(
        self, *, release: str | None, dry_run: bool, actor: Actor, key: IdempotencyKey | None = None
    ) -> DeployRecord:
        """Begin a deploy, and return its record as soon as it is durable."""
        async with self._beginning:
            before = await self._repeats.find(key)
            if before is not None and before.deploy_id is not None:
                return await self._known(before.deploy_id)
            if self._state.state.mode is Mode.SINGLE:
                raise errors.mode_is_single(self._settings.deploy_mode)
            self._refuse_if_busy()
            plan = Plan(dry_run=dry_run, auto_switch=self._settings.auto_switch_on_health)
            try:
                found = await anyio.to_thread.run_sync(self._releases.find, release)
            except UnknownReleaseError as error:
                raise errors.unknown_release(str(error)) from error
            run = await self._begin(found, plan, actor, key)
        return run.record

    def _refuse_if_busy(self) -> None:
        if self._stopping:
            raise errors.stopping()
        if (current := self._current()) is not None:
            raise errors.in_progress(current)

    async def _begin(
        self, release: Release, plan: Plan, actor: Actor, key: IdempotencyKey | None
    ) -> DeployRun:
        """Write a new deploy down and let it run; to be called with `_beginning` held."""
        self._refuse_if_busy()
        record = new_record(release, plan, self._slots.ports())
        with anyio.CancelScope(shield=True):  # written down and begun, or neither
            await self._recorder.begin(record, plan, actor=actor, key=key)
            run = DeployRun(
                record, plan, release, effects=self._activities, transitions=self._recorder
            )
            self._adopt(run)
        return run

    def _adopt(self, run: DeployRun) -> None:
        self._runs[run.record.deploy_id] = run
        self._last = run.record
        self._tasks.start_soon(self._drive, run)

    async def resume(self, waiting: UnfinishedDeploy | None) -> None:
        """Show the last deploy, and go on with one that waited when the last daemon ended."""
        if waiting is not None:
            run = await resumed(
                self._database,
                waiting,
                self._releases,
                effects=self._activities,
                transitions=self._recorder,
            )
            if run is not None:
                self._adopt(run)
                return
        self._last = next(iter(await self._database.deploys.latest(1)), None)

    async def _drive(self, run: DeployRun) -> None:
        with structlog.contextvars.bound_contextvars(**run.record.facts):
            await run.drive()
        if self._last and self._last.deploy_id == run.record.deploy_id:
            self._last = run.record
        del self._runs[run.record.deploy_id]

    async def settled(self, deploy_id: str) -> DeployRecord:
        """Wait until the deploy has a result."""
        run = self._runs.get(deploy_id)
        if run is None:
            return await self._known(deploy_id)
        await run.settled.wait()
        if run.record.result is Result.SWITCHED:
            return run.record  # what failed, if anything, was to go back again
        return await self._answer(run)

    async def _known(self, deploy_id: str) -> DeployRecord:
        """Return the deploy as it is now. Raises LookupError."""
        record = await self.find(deploy_id)
        if record is None:
            raise LookupError(deploy_id)
        return record

    async def _answer(self, run: DeployRun) -> DeployRecord:
        await run.settled.wait()
        if run.switch_failure is not None:
            raise errors.switch_failed(run)
        return run.record

    async def switch(self, actor: Actor, key: IdempotencyKey | None = None) -> DeployRecord:
        """Go ahead with the waiting deploy; returns once it has switched, or failed to."""
        return await self._tell_current(Event.SWITCH_REQUESTED, "switch", actor, key)

    async def abort(self, actor: Actor, key: IdempotencyKey | None = None) -> DeployRecord:
        """Give up the deploy in progress; returns once staging is stopped."""
        async with self._repeats.forgotten_if_refused(key):
            record = await self._tell_current(Event.ABORT_REQUESTED, "abort", actor, key)
            if record.result is not Result.ABORTED:
                raise errors.too_late(record)
        return record

    async def _tell_current(
        self, event: Event, action: str, actor: Actor, key: IdempotencyKey | None
    ) -> DeployRecord:
        if key is None:  # a disk that fails must not stand between an operator and an abort
            return await self._audited(await self._told(event, action, actor, key), action, actor)
        async with self._beginning:
            before = await self._repeats.find(key)
            run = await self._told(event, action, actor, key) if before is None else None
        if run is not None:
            async with self._repeats.forgotten_if_refused(key):
                return await self._audited(run, action, actor)
        return await self._repeated(before)

    async def _repeated(self, before: KeyRow | None) -> DeployRecord:
        """Return what came of a request that is made once more."""
        if before is None or before.deploy_id is None:
            raise LookupError("this key is no deploy's")
        run = self._runs.get(before.deploy_id)
        return await (self._answer(run) if run else self._known(before.deploy_id))

    async def _told(
        self, event: Event, action: str, actor: Actor, key: IdempotencyKey | None
    ) -> DeployRun:
        """Return the deploy that has taken the event. Raises RefusedError if none does."""
        if self._stopping:
            raise errors.stopping()
        for run in list(self._runs.values()):
            if await self._repeats.steer(run, event, f"{action} requested by {actor.name}", key):
                return run
        raise errors.nothing_to(action, self._current())

    async def _audited(self, run: DeployRun, action: str, actor: Actor) -> DeployRecord:
        outcome = "failed"
        try:
            record = await self._answer(run)
            outcome = record.result.value if record.result else "unknown"
        finally:
            database, subject = self._database, run.record.deploy_id
            await database.audit.record(actor, action, outcome, subject=subject)
        return record

    async def rollback(self, actor: Actor, key: IdempotencyKey | None = None) -> DeployRecord:
        """Go back to the version before: at once if it is warm, else through the gates."""
        run = warm = None
        async with self._beginning:  # two at once are not to go back twice
            before = await self._repeats.find(key)
            if before is None:
                self._refuse_if_busy()
                warm = await self._rolled_back_warm(actor, key)
            if before is None and warm is None:
                release = await previous_release(self._database, self._releases)
                run = await self._begin(release, Plan(rollback=True), actor, key)
        if warm is not None:
            async with self._repeats.forgotten_if_refused(key):
                return await self._audited(warm, "rollback", actor)
        return await (self.settled(run.record.deploy_id) if run else self._repeated(before))

    async def _rolled_back_warm(self, actor: Actor, key: IdempotencyKey | None) -> DeployRun | None:
        """Return the deploy that goes back to its warm version, if there is one."""
        if not self._slots.staging.serving:
            return None
        event, cause = Event.ROLLBACK_REQUESTED, f"rollback requested by {actor.name}"
        for run in list(self._runs.values()):
            if await self._repeats.steer(run, event, cause, key):
                return run
        return None

    async def set_mode(self, mode: Mode, actor: Actor, key: IdempotencyKey | None = None) -> Status:
        """Set the mode durably."""
        async with self._beginning:  # not while a deploy is on its way past the check of it
            if await self._repeats.find(key) is None:
                await self._set_mode(mode, actor)
                await self._repeats.mode_set(key)
        return self.status()

    async def _set_mode(self, mode: Mode, actor: Actor) -> None:
        if mode is Mode.BLUEGREEN and self._settings.deploy_mode is Mode.SINGLE:
            raise errors.single_by_settings()
        try:
            await self._state.change(mode=mode)
        except OSError as error:
            what = "the mode could not be written down, so it is as before"
            raise errors.not_durable(what, error) from error
        await self._state.copy_to_database()
        await self._database.audit.record(actor, "mode", mode.value)

    # What happens by itself.

    async def worker_down(self, slot: Slot, cause: str) -> bool:
        """Tell the deploys that an instance went down or hangs; return whether it concerned one.

        Returns once that deploy has come to an answer: it may have reverted to a warm version.
        """
        active = self._slots.active is slot
        event = Event.ACTIVE_DIED if active else Event.STAGING_DIED
        if active and not self._slots.staging.serving:
            return False  # nobody is there to take over
        role = "active" if active else "staging"
        for run in self._runs.values():
            cause_in_words = f"the {role} instance went down: {cause}"
            if run.offer(event, cause_in_words, StepDetail(output=slot.log.last_lines())):
                await run.settled.wait()
                return True
        return False

    async def stop(self) -> None:
        """Bring every deploy to an end that its record explains; a waiting one goes on waiting."""
        async with self._beginning:
            self._stopping = True
        for run in list(self._runs.values()):
            await run.finish(Event.SUPERVISOR_STOPPED, "the supervisor was stopped")
        self._events.close()
