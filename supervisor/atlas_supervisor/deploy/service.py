"""The daemon as the API sees it: what may begin now, and what must be refused.

It implements `api.ports.Deploys`. It decides whether a request can be done and lets the one
deploy at hand do it; what a deploy does is the table's affair.

The moment in which a deploy begins: written down as a whole, or not begun.

What a rollback goes back to when the version before is no longer warm.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import anyio
import structlog
from anyio.abc import TaskGroup

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy import errors
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.executor import Executor
from atlas_supervisor.deploy.idempotency import IdempotentRequests
from atlas_supervisor.deploy.machine import FIRST_PHASE, Event, Phase, Plan
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.deploy.status import CanaryOverview, DeployQueries
from atlas_supervisor.deploy.switch import Switch
from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.deploy import DeployRecord, Mode, Result
from atlas_supervisor.model.event import BEGUN, DeployEvent, PublishedEvent
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.status import Status
from atlas_supervisor.model.step import StepDetail
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.keys import KeyRow
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import now
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.releases import Releases, UnknownReleaseError
from atlas_supervisor.workers.slot import Slot

log = structlog.get_logger(__name__)


def new_record(release: Release, plan: Plan, ports: tuple[int, int]) -> DeployRecord:
    """Return the record of a deploy that is about to begin."""
    active_port, staging_port = ports
    return DeployRecord(
        deploy_id=f"{now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        result=None,
        dry_run=plan.dry_run,
        release=release.name,
        version=release.version,
        active_port=active_port,
        staging_port=staging_port,
        steps=[],
        reason=None,
        phase=FIRST_PHASE.value,
        started_ts=now(),
        ended_ts=None,
    )


async def write_down(
    database: Database,
    state: StateKeeper,
    record: DeployRecord,
    plan: Plan,
    *,
    actor: Actor,
    key: IdempotencyKey | None,
    events: EventHub,
) -> None:
    """Write a new deploy down wherever it shows. Raises RefusedError; then it has not begun."""
    action = "rollback" if plan.rollback else "dry_run" if plan.dry_run else "deploy"
    begun = False
    try:
        cause = f"{action.replace('_', ' ')} requested by {actor.name}"
        journal_id = await database.deploys.begin(
            record, auto_switch=plan.auto_switch, rollback=plan.rollback, key=key, cause=cause
        )
        event = DeployEvent.of(record, ts=record.started_ts, source=None, event=BEGUN, cause=cause)
        events.tell(PublishedEvent(event, rollback=plan.rollback), journal_id)
        begun = True
        await database.audit.write(
            actor, action, "begun", subject=record.deploy_id, release=record.release
        )
        await state.change(last_deploy_ts=record.started_ts)
    except (StoreError, OSError) as error:
        what = "the deploy could not be written down, so it was not begun"
        if begun:
            await _end_unbegun(database, record, f"{what}: {error}", key, events)
        raise errors.not_durable(what, error) from error


async def _end_unbegun(
    database: Database, record: DeployRecord, why: str, key: IdempotencyKey | None, events: EventHub
) -> None:
    """Say of a deploy that was half written down that it never began."""
    ended = record.model_copy(
        update={
            "phase": Phase.ENDED.value,
            "result": Result.FAILED,
            "reason": why,
            "ended_ts": now(),
        }
    )
    event = DeployEvent.of(ended, ts=now(), source=FIRST_PHASE, event=Event.FAILED, cause=why)
    announcement = PublishedEvent(event)
    database.audit.enqueue(SUPERVISOR, "deploy", "failed", subject=record.deploy_id, reason=why)
    try:
        journal_id = await database.deploys.write_transition(
            ended, source=FIRST_PHASE, event=Event.FAILED, cause=why, step=None
        )
        events.tell(announcement, journal_id)
        if key is not None:
            await database.keys.forget(key)
    except StoreError as error:  # the next daemon says that it was interrupted
        events.tell(announcement, None)
        log.error("deploy_not_ended", **record.facts, why=str(error))


async def previous_release(database: Database, releases: Releases) -> Release:
    """Return what ran before, if it can be launched again. Raises RefusedError."""
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


_HURRY_AGAIN_SECONDS = 0.1


class DeployService(DeployQueries):
    """Begins deploys and answers for them; there is one at a time."""

    def __init__(
        self,
        *,
        settings: Settings,
        switch: Switch,
        plane: Plane,
        activities: Executor,
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
            switch=switch,
            plane=plane,
            releases=releases,
            database=database,
            events=events,
            state=state,
            canaries=canaries,
            health_score=health_score,
        )
        self._activities = activities
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
                raise errors.mode_is_single()
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
        record = new_record(release, plan, self._switch.ports())
        with anyio.CancelScope(shield=True):  # written down and begun, or neither
            await write_down(
                self._database, self._state, record, plan, actor=actor, key=key, events=self._events
            )
            run = DeployRun(record, plan, release, self._activities, FIRST_PHASE)
            self._adopt(run)
        return run

    def _adopt(self, run: DeployRun) -> None:
        self._runs[run.record.deploy_id] = run
        self._last = run.record
        self._tasks.start_soon(self._drive, run)

    def resume(self, run: DeployRun) -> None:
        """Go on with a deploy that waited for its switch when the last daemon ended."""
        self._adopt(run)

    def remember_last(self, record: DeployRecord | None) -> None:
        """Show this deploy as the last one until there is another."""
        self._last = record

    async def _drive(self, run: DeployRun) -> None:
        with structlog.contextvars.bound_contextvars(**run.record.facts):
            await run.drive()
        if self._last and self._last.deploy_id == run.record.deploy_id:
            self._last = run.record
        del self._runs[run.record.deploy_id]

    async def make_room(self) -> None:
        """End the guard and warm time of the deploys before; return when the slot is free.

        What they drain may go on beside the next instance, see `workers.drain`.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._hurry)
            for run in list(self._runs.values()):
                if run.phase is not FIRST_PHASE:
                    await run.make_way(Event.SUPERSEDED, "the next deploy has begun")
            group.cancel_scope.cancel()

    async def _hurry(self) -> None:
        """Bound whatever drain there is, or will be: the first call sets its deadline."""
        while True:
            self._switch.staging.hurry()
            await anyio.sleep(_HURRY_AGAIN_SECONDS)

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
        if not self._switch.staging.serving:
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

    async def went_down(self, slot: Slot, cause: str) -> bool:
        """Tell the deploys that an instance went down or hangs; return whether it concerned one.

        Returns once that deploy has come to an answer: it may have reverted to a warm version.
        """
        active = self._switch.active is slot
        event = Event.ACTIVE_DIED if active else Event.STAGING_DIED
        if active and not self._switch.staging.serving:
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
