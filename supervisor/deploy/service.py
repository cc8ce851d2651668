"""The daemon as the API sees it: what may begin now, what must be refused, and the status.

It implements `api.control.Control`. It decides whether a request can be done and lets the one
deploy at hand do it; what a deploy does is the table's affair.
"""

from __future__ import annotations

import secrets

import anyio
import structlog
from anyio.abc import TaskGroup

from supervisor.clock import now
from supervisor.config import Settings
from supervisor.deploy import refusals
from supervisor.deploy.activities import Activities
from supervisor.deploy.machine import FIRST_EFFECT, FIRST_PHASE, Effect, Event, Phase, Plan
from supervisor.deploy.overview import overview, release_views
from supervisor.deploy.runner import DeployRun
from supervisor.deploy.switching import Switch
from supervisor.model.actor import Actor
from supervisor.model.deploy import DeployRecord, Mode, Result
from supervisor.model.release import Release, ReleaseView
from supervisor.model.status import Status
from supervisor.store.database import Database, StoreError
from supervisor.store.state_keeper import StateKeeper
from supervisor.traffic import Plane
from supervisor.workers.releases import Releases, UnknownReleaseError
from supervisor.workers.slot import Slot

log = structlog.get_logger(__name__)

_HURRY_AGAIN_SECONDS = 0.1

_HURRY_SECONDS = 0.1


class DeployService:
    """Begins deploys and answers for them; there is one at a time."""

    def __init__(
        self,
        *,
        settings: Settings,
        switch: Switch,
        plane: Plane,
        activities: Activities,
        releases: Releases,
        database: Database,
        state: StateKeeper,
        tasks: TaskGroup,
    ) -> None:
        self._settings = settings
        self._switch = switch
        self._plane = plane
        self._activities = activities
        self._releases = releases
        self._database = database
        self._state = state
        self._tasks = tasks
        self._runs: dict[str, DeployRun] = {}
        """Deploys that have not ended; at most one of them is in progress."""
        self._last: DeployRecord | None = None
        self._beginning = anyio.Lock()
        self._stopping = False

    # What is known.

    def status(self) -> Status:
        """Return everything at a glance, from memory."""
        return overview(
            self._settings,
            self._state.state,
            self._switch,
            self._plane,
            last_deploy=self._fresh(self._last) if self._last else None,
            in_progress=self._current() is not None,
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

    # What can be asked for.

    async def deploy(self, *, release: str | None, dry_run: bool, actor: Actor) -> DeployRecord:
        """Begin a deploy, and return its record as soon as it is durable."""
        if self._state.state.mode is Mode.SINGLE:
            raise refusals.mode_is_single()
        plan = Plan(dry_run=dry_run, auto_switch=self._settings.auto_switch_on_health)
        try:
            found = await anyio.to_thread.run_sync(self._releases.find, release)
        except UnknownReleaseError as error:
            raise refusals.unknown_release(str(error)) from error
        async with self._beginning:
            run = await self._begin(found, plan, actor)
        return run.record

    def _refuse_if_busy(self) -> None:
        if self._stopping:
            raise refusals.stopping()
        if (current := self._current()) is not None:
            raise refusals.in_progress(current)

    async def _begin(self, release: Release, plan: Plan, actor: Actor) -> DeployRun:
        """Write a new deploy down and let it run; to be called with `_beginning` held."""
        self._refuse_if_busy()
        active_port, staging_port = self._switch.ports()
        record = DeployRecord(
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
        action = "rollback" if plan.rollback else "dry_run" if plan.dry_run else "deploy"
        with anyio.CancelScope(shield=True):  # written down and begun, or neither
            await self._write_down(record, plan, actor, action)
            run = DeployRun(record, plan, release, self._activities, FIRST_PHASE)
            self._adopt(run, FIRST_EFFECT)
        return run

    async def _write_down(
        self, record: DeployRecord, plan: Plan, actor: Actor, action: str
    ) -> None:
        begun = False
        try:
            await self._database.begin_deploy(record, auto_switch=plan.auto_switch)
            begun = True
            await self._database.audit(
                actor, action, "begun", subject=record.deploy_id, release=record.release
            )
            await self._state.change(last_deploy_ts=record.started_ts)
        except (StoreError, OSError) as error:
            what = "the deploy could not be written down, so it was not begun"
            if begun:
                await self._end_unbegun(record, f"{what}: {error}")
            raise refusals.not_durable(what, error) from error

    async def _end_unbegun(self, record: DeployRecord, why: str) -> None:
        """Say of a deploy that was half written down that it never began."""
        ended = record.model_copy(
            update={
                "phase": Phase.ENDED.value,
                "result": Result.FAILED,
                "reason": why,
                "ended_ts": now(),
            }
        )
        try:
            await self._database.write_transition(
                ended, source=FIRST_PHASE, event=Event.FAILED, cause=why, step=None
            )
        except StoreError as error:  # the next daemon says that it was interrupted
            log.error("deploy_not_ended", deploy_id=record.deploy_id, why=str(error))

    def _adopt(self, run: DeployRun, effect: Effect) -> None:
        self._runs[run.record.deploy_id] = run
        self._last = run.record
        self._tasks.start_soon(self._drive, run, effect)

    def resume(self, run: DeployRun) -> None:
        """Go on with a deploy that waited for its switch when the last daemon ended."""
        self._adopt(run, Effect.LAUNCH_STAGING)

    def remember_last(self, record: DeployRecord | None) -> None:
        """Show this deploy as the last one until there is another."""
        self._last = record

    async def _drive(self, run: DeployRun, effect: Effect) -> None:
        with structlog.contextvars.bound_contextvars(deploy_id=run.record.deploy_id):
            await run.drive(effect)
        if self._last and self._last.deploy_id == run.record.deploy_id:
            self._last = run.record
        del self._runs[run.record.deploy_id]

    async def make_room(self) -> None:
        """End the guard, warm time and drain of the deploys before; return when they are over."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._hurry)
            for run in list(self._runs.values()):
                if run.phase is not FIRST_PHASE:
                    await run.finish(Event.SUPERSEDED, "the next deploy has begun")
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
            record = await self._database.deploy(deploy_id)
            if record is None:
                raise LookupError(deploy_id)
            return record
        return await self._answer(run)

    async def _answer(self, run: DeployRun) -> DeployRecord:
        await run.settled.wait()
        if run.switch_failure is not None:
            raise refusals.switch_failed(run)
        return run.record

    async def switch(self, actor: Actor) -> DeployRecord:
        """Go ahead with the waiting deploy; returns once it has switched, or failed to."""
        return await self._tell_current(Event.SWITCH_REQUESTED, "switch", actor)

    async def abort(self, actor: Actor) -> DeployRecord:
        """Give up the deploy in progress; returns once staging is stopped."""
        record = await self._tell_current(Event.ABORT_REQUESTED, "abort", actor)
        if record.result is not Result.ABORTED:
            raise refusals.too_late(record)
        return record

    async def _tell_current(self, event: Event, action: str, actor: Actor) -> DeployRecord:
        if self._stopping:
            raise refusals.stopping()
        for run in self._runs.values():
            if run.offer(event, f"{action} requested by {actor.name}"):
                return await self._audited(run, action, actor)
        raise refusals.nothing_to(action, self._current())

    async def _audited(self, run: DeployRun, action: str, actor: Actor) -> DeployRecord:
        outcome = "failed"
        try:
            record = await self._answer(run)
            outcome = record.result.value if record.result else "unknown"
        finally:
            await self._audit(actor, action, outcome, subject=run.record.deploy_id)
        return record

    async def _audit(
        self, actor: Actor, action: str, outcome: str, *, subject: str | None = None
    ) -> None:
        """Audit what has happened already; a failure can't take it back, so it is only logged."""
        try:
            await self._database.audit(actor, action, outcome, subject=subject)
        except StoreError as error:
            log.error("audit_failed", action=action, why=str(error))

    async def rollback(self, actor: Actor) -> DeployRecord:
        """Go back to the version before: at once if it is warm, else through the gates."""
        async with self._beginning:  # two at once are not to go back twice
            self._refuse_if_busy()
            cause = f"rollback requested by {actor.name}"
            runs = self._runs.values() if self._switch.staging.serving else ()
            warm = next((run for run in runs if run.offer(Event.ROLLBACK_REQUESTED, cause)), None)
            if warm is None:
                release = await self._previous_release()
                run = await self._begin(release, Plan(rollback=True), actor)
        if warm is not None:
            return await self._audited(warm, "rollback", actor)
        return await self._answer(run)

    async def _previous_release(self) -> Release:
        """Return what ran before, if it can be launched again. Raises RefusedError."""
        rows = await self._database.versions()
        if len(rows) < 2:
            raise refusals.nothing_to_roll_back()
        before = rows[1].release
        try:
            found = await anyio.to_thread.run_sync(self._releases.find, before.name)
        except UnknownReleaseError as error:
            raise refusals.previous_gone(before, str(error)) from error
        if found.name is None and found.version != before.version:
            why = f"{found.path} now holds version {found.version}"
            raise refusals.previous_gone(before, why)
        return found

    async def set_mode(self, mode: Mode, actor: Actor) -> Status:
        """Set the mode durably."""
        if mode is Mode.BLUEGREEN and self._settings.deploy_mode is Mode.SINGLE:
            raise refusals.single_by_settings()
        try:
            await self._state.change(mode=mode)
        except OSError as error:
            what = "the mode could not be written down, so it is as before"
            raise refusals.not_durable(what, error) from error
        await self._state.copy_to_database()
        await self._audit(actor, "mode", mode.value)
        return self.status()

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
            if run.offer(event, f"the {role} instance went down: {cause}"):
                await run.settled.wait()
                return True
        return False

    async def stop(self) -> None:
        """Bring every deploy to an end that its record explains; a waiting one goes on waiting."""
        async with self._beginning:
            self._stopping = True
        for run in list(self._runs.values()):
            await run.finish(Event.SUPERVISOR_STOPPED, "the supervisor was stopped")
