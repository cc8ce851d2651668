"""Deploys as an operator steers them: what may start now, and what must be refused.

The service decides whether a request is possible. Then it starts a deploy, or offers the request as
an event to the deploy that it concerns; what follows is decided by the table (`machine`).

Deploys start one at a time, under a lock: the check that no other deploy is in progress holds
until the new one is written. A request with an `Idempotency-Key` takes the lock, too, so that of
two equal requests one has an effect and the other one gets its answer.
"""

from __future__ import annotations

from dataclasses import replace

import anyio
import structlog
from anyio.abc import TaskGroup

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy import errors
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.executor import Executor
from atlas_supervisor.deploy.idempotency import IdempotentRequests
from atlas_supervisor.deploy.machine import FLIPS, Event, Phase, Plan
from atlas_supervisor.deploy.ramp import described
from atlas_supervisor.deploy.recorder import Recorder, Runs, new_record
from atlas_supervisor.deploy.recovery import lost_in_ramp, plan_of, resumed
from atlas_supervisor.deploy.rollback import (
    Target,
    chosen,
    is_named,
    past_irreversible,
    refuse_active,
)
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.deploy.status import DeployQueries
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.deploy import DeployRecord, Mode, Result, StepDetail
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.release import Release
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.deploys import UnfinishedDeploy
from atlas_supervisor.store.keys import KeyRow
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.releases import Releases, UnknownReleaseError
from atlas_supervisor.workers.slot import Slot
from atlas_supervisor.workers.slots import Slots

_EFFECTS = {
    Event.SWITCH_REQUESTED: frozenset({Result.SWITCHED, Result.ROLLED_BACK, Result.ABORTED}),
    Event.ABORT_REQUESTED: frozenset({Result.ABORTED}),
    Event.ROLLBACK_REQUESTED: frozenset({Result.ROLLED_BACK}),
}
"""The results of a deploy that has done what was requested.

What switched may be reverted, and a ramp that a switch has begun may be aborted.
"""

_SETTLED_OTHERWISE = frozenset({Result.SWITCHED, Result.ABORTED})
"""Results that a failed flip does not explain: another one succeeded, or none was wanted."""


async def launchable(
    database: Database, releases: Releases, version: str | None = None
) -> tuple[Target, Release]:
    """Return a rollback's target, and its release if it is unchanged. Raises RefusedError."""
    await database.outbox.flush()  # a switch that is not written yet would be passed over
    target = chosen(await database.versions.served(), version)
    try:
        return target, await in_thread(releases.unchanged, target.release)
    except UnknownReleaseError as error:
        raise errors.previous_gone(target.release, str(error)) from error


class DeployService:
    """Starts and steers deploys; it satisfies `api.ports.DeployPort`."""

    def __init__(
        self,
        *,
        settings: Settings,
        slots: Slots,
        executor: Executor,
        recorder: Recorder,
        releases: Releases,
        database: Database,
        events: EventHub,
        state: StateKeeper,
        runs: Runs,
        queries: DeployQueries,
        tasks: TaskGroup,
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._executor = executor
        self._recorder = recorder
        self._releases = releases
        self._database = database
        self._events = events
        self._state = state
        self._runs = runs
        self._queries = queries
        self._tasks = tasks
        self._keys = database.keys
        self._requests = IdempotentRequests(database.keys)
        self._starting = anyio.Lock()
        self._rolling_back: DeployRun | None = None
        """Goes back to its warm version for a request that is not answered yet."""

    # Starting a deploy.

    async def deploy(
        self, *, release: str | None, dry_run: bool, actor: Actor, key: IdempotencyKey | None = None
    ) -> DeployRecord:
        """Start a deploy; return its record as soon as it is durable."""
        async with self._starting:
            before = await self._keys.find(key) if key else None
            if before is not None and before.deploy_id is not None:
                return await self._known(before.deploy_id)
            if self._state.state.mode is Mode.SINGLE:
                raise errors.mode_is_single(self._settings.deploy_mode)
            self._refuse_if_busy()
            found = await self.find_release(release)
            settings = self._settings
            auto, ramp = settings.auto_switch_on_health, () if dry_run else settings.ramp
            plan = Plan(dry_run, auto, irreversible=found.irreversible, ramp=ramp)
            run = await self._begin(found, plan, actor, key)
        return run.record

    async def find_release(self, name: str | None) -> Release:
        """Return the release that a deploy of this name launches. Raises RefusedError."""
        try:
            return await in_thread(self._releases.find, name)
        except UnknownReleaseError as error:
            raise errors.unknown_release(str(error)) from error

    def _refuse_if_busy(self) -> None:
        if self._runs.stopping:
            raise errors.stopping()
        current = self._runs.current
        if current is not None and not current.plan.recycle:
            raise errors.in_progress(current)

    async def _begin(
        self,
        release: Release,
        plan: Plan,
        actor: Actor,
        key: IdempotencyKey | None = None,
        why: str | None = None,
    ) -> DeployRun:
        """Write a new deploy and start it; to be called with `_starting` held."""
        self._refuse_if_busy()
        await self._runs.make_way(f"it gives way to a request of {actor.name}")
        self._refuse_if_busy()
        record = new_record(release, plan, self._slots.ports(), actor=actor, why=why)
        with anyio.CancelScope(shield=True):  # written and started, or neither
            await self._recorder.begin(record, plan, release=release, actor=actor, key=key, why=why)
            run = DeployRun(
                record, plan, release, effects=self._executor, transitions=self._recorder
            )
            self._start(run)
        return run

    async def recycle(self, worker: WorkerProcess, why: str) -> DeployRecord | None:
        """Let a fresh worker of the same release take over, and return how that went.

        None if the worker is not the active one any more, or another deploy has begun. Raises
        AtlasError if the deploy can't be written.
        """
        async with self._starting:
            active = self._slots.active
            is_current = active.instance is worker and active.can_serve
            if self._runs.stopping or self._runs.current is not None or not is_current:
                return None
            try:
                release = await in_thread(self._releases.unchanged, worker.release)
            except UnknownReleaseError as error:  # that is a failure of its preflight
                problem = f"{error}; a recycle starts only what was deployed"
                release = worker.release.model_copy(update={"problem": problem})
            run = await self._begin(release, Plan(recycle=True), SUPERVISOR, why=why)
        return await run.settled.wait()

    def _start(self, run: DeployRun) -> None:
        self._runs.add(run)
        self._tasks.start_soon(self._drive, run)

    async def _drive(self, run: DeployRun) -> None:
        with structlog.contextvars.bound_contextvars(**run.record.facts):
            await run.drive()
        self._runs.remove(run)

    async def resume(self, unfinished: UnfinishedDeploy | None) -> None:
        """Show the latest deploy, and go on with one that the last daemon did not end."""
        state, lives = self._state.state, self._slots.adopted_in_staging
        release = None
        if unfinished is not None:
            record, release = await resumed(
                self._database, unfinished, self._releases, state, self._settings, lives=lives
            )
        for active in (await self._database.versions.all())[:1]:
            self._slots.complaint = active.complaint
        if unfinished is not None and release is not None:
            self._executor.resume(state.last_switch_ts)
            is_ahead = record.ramp is None and not unfinished.rollback
            ramp = self._settings.ramp if is_ahead else ()
            run = DeployRun(
                record,
                replace(plan_of(unfinished, auto_switch=False), ramp=ramp),
                release,
                effects=self._executor,
                transitions=self._recorder,
                phase=Phase(record.phase),
            )
            self._start(run)
            if run.waits:
                self._slots.keep_staging()
            return
        if unfinished is not None and record.phase == Phase.RAMP:
            for transition in lost_in_ramp(record):
                await self._recorder.write(transition)
            await self._keys.forget_undone()
        if unfinished is not None and state.staging_weight:  # a holdback without its old version
            await self._executor.end_sharing()
        if lives is not None:
            self._slots.abandon_staging()
        deploys = self._database.deploys
        latest = next(iter(await deploys.latest(1)), None)
        self._runs.show(
            latest,
            requested=await deploys.latest_requested(),
            answered=await deploys.latest_answered(),
        )

    # Answering.

    async def settled(self, deploy_id: str) -> DeployRecord:
        """Wait until the deploy has a result."""
        run = self._runs.get(deploy_id)
        return await (self._answer(run) if run else self._known(deploy_id))

    async def _known(self, deploy_id: str) -> DeployRecord:
        """Return the deploy as it is now. Raises LookupError."""
        record = await self._queries.find(deploy_id)
        if record is None:
            raise LookupError(deploy_id)
        return record

    async def _answer(self, run: DeployRun) -> DeployRecord:
        settled = run.settled  # a later request has an answer of its own
        record = await settled.wait()
        if settled.switch_failure is not None and record.result not in _SETTLED_OTHERWISE:
            raise errors.switch_failed(record, settled.switch_failure)
        return record

    async def _done(self, run: DeployRun, event: Event) -> DeployRecord:
        """Return the answer to a request that had its effect. Raises RefusedError if it had not."""
        settled = run.settled
        record = await settled.wait()
        if record.result in _EFFECTS[event]:
            return record
        if event is Event.ABORT_REQUESTED:
            raise errors.too_late(record)
        raise errors.switch_failed(record, settled.switch_failure)

    async def _audited(
        self, run: DeployRun, event: Event, action: str, actor: Actor
    ) -> DeployRecord:
        """Return the answer to a request that the deploy has accepted; audit the request."""
        outcome, subject = "failed", run.record.deploy_id
        try:
            record = await self._done(run, event)
            outcome = str(record.result)
        finally:
            await self._database.audit.record(actor, action, outcome, subject=subject)
        return record

    async def _repeated(self, before: KeyRow | None) -> DeployRecord:
        """Return the answer to a request that was made before under the same key."""
        if before is None or before.deploy_id is None:
            raise LookupError("this key is no deploy's")
        run = self._runs.get(before.deploy_id)
        return await (self._answer(run) if run else self._known(before.deploy_id))

    # Steering a deploy.

    async def switch(self, actor: Actor, key: IdempotencyKey | None = None) -> DeployRecord:
        """Switch to the waiting deploy; return once that has succeeded or failed."""
        return await self._steer(Event.SWITCH_REQUESTED, "switch", actor, key)

    async def abort(self, actor: Actor, key: IdempotencyKey | None = None) -> DeployRecord:
        """Abort the deploy in progress; return once staging is stopped."""
        return await self._steer(Event.ABORT_REQUESTED, "abort", actor, key)

    async def _steer(
        self, event: Event, action: str, actor: Actor, key: IdempotencyKey | None
    ) -> DeployRecord:
        if key is None:  # a failing disk must not prevent an abort
            taker = await self._taker(event, action, actor)
            return await self._audited(taker, event, action, actor)
        async with self._starting:
            before = await self._keys.find(key)
            run = await self._taker(event, action, actor, key) if before is None else None
        if run is None:
            return await self._repeated(before)
        async with self._requests.forgotten_if_refused(key):
            return await self._audited(run, event, action, actor)

    async def _taker(
        self, event: Event, action: str, actor: Actor, key: IdempotencyKey | None = None
    ) -> DeployRun:
        """Return the deploy that has accepted the event. Raises RefusedError if none does."""
        if self._runs.stopping:
            raise errors.stopping()
        run = await self._offered(event, f"{action} requested by {actor.name}", key)
        if run is None:
            raise errors.nothing_to(action, self._runs.current)
        return run

    async def _offered(
        self, event: Event, cause: str, key: IdempotencyKey | None
    ) -> DeployRun | None:
        for run in self._runs:
            if await self._requests.steer(run, event, cause, key):
                return run
        return None

    async def rollback(
        self,
        actor: Actor,
        key: IdempotencyKey | None = None,
        *,
        version: str | None = None,
        fast: bool = False,
    ) -> DeployRecord:
        """Go back to a version, or to the one before: at once if it is warm, else it is launched.

        `fast`: without smoke tests and health gate, if it ran without complaint not long ago.
        """
        warm = cold = None
        async with self._starting:  # two requests at once must not go back twice
            before = await self._keys.find(key) if key else None
            if before is None:
                self._refuse_if_busy()
                if self._rolling_back is not None:  # done perhaps, but not answered yet
                    raise errors.in_progress(self._rolling_back)
                warm = self._rolling_back = await self._warm_rollback(actor, key, version)
            if before is None and warm is None:
                release, plan = await self._cold_rollback(version, fast=fast)
                cold = await self._begin(release, plan, actor, key)
        if warm is None:
            return await (self.settled(cold.record.deploy_id) if cold else self._repeated(before))
        try:
            async with self._requests.forgotten_if_refused(key):
                return await self._audited(warm, Event.ROLLBACK_REQUESTED, "rollback", actor)
        except RefusedError:
            if self._slots.staging.can_serve:
                raise
        finally:
            self._rolling_back = None
        # Too late for the warm version: it has ended.
        return await self.rollback(actor, key, version=version, fast=fast)

    async def _warm_rollback(
        self, actor: Actor, key: IdempotencyKey | None, version: str | None
    ) -> DeployRun | None:
        """Return the deploy that goes back to its warm version; None if none can."""
        staging = self._slots.staging
        if version is not None:
            active = self._slots.active.instance
            refuse_active(active.release if active else None, version)
            if staging.instance is None or not is_named(staging.instance.release, version):
                return None
        if not staging.can_serve:
            return None
        for run in self._runs:
            cause = f"rollback requested by {actor.name}"
            if run.plan.irreversible:
                cause += f", {past_irreversible([run.release.version])}"
            if await self._requests.steer(run, Event.ROLLBACK_REQUESTED, cause, key):
                return run
        return None

    async def _cold_rollback(self, version: str | None, *, fast: bool) -> tuple[Release, Plan]:
        """Return the release to go back to, and how. Raises RefusedError."""
        target, release = await launchable(self._database, self._releases, version)
        if fast and (why := target.why_not_fast(now())):
            raise errors.fast_not_allowed(release, why)
        irreversible, remark = release.irreversible, target.remark
        return release, Plan(rollback=True, fast=fast, irreversible=irreversible, remark=remark)

    async def set_mode(self, mode: Mode, actor: Actor, key: IdempotencyKey | None = None) -> None:
        """Set the mode durably."""
        async with self._starting:  # not between a deploy's check of the mode and its start
            if key is None or await self._keys.find(key) is None:
                await self._set_mode(mode, actor)
                await self._requests.mode_set(key)

    async def _set_mode(self, mode: Mode, actor: Actor) -> None:
        if mode is Mode.BLUEGREEN and self._settings.deploy_mode is Mode.SINGLE:
            raise errors.single_by_settings()
        try:
            await self._recorder.finish_fallback()
            await self._state.change(mode=mode)
        except (StoreError, OSError) as error:
            what = "the mode could not be saved, so it is unchanged"
            raise errors.not_durable(what, error) from error
        await self._state.copy_to_database()
        await self._database.audit.record(actor, "mode", mode.value)

    # Events that no request causes.

    async def worker_down(self, slot: Slot, cause: str) -> bool:
        """Offer to the deploys that a worker ended or hangs; return whether one accepts it.

        Return once that deploy has settled: it may have reverted to a warm version.
        """
        for run in self._runs:
            active = slot.port == self._active_port_for(run)
            if active and not self._slots.staging.can_serve:
                continue  # no other version can take over
            event = Event.ACTIVE_DIED if active else Event.STAGING_DIED
            role = "active" if slot is self._slots.active else "staging"
            cause_in_words = f"the {role} instance went down: {cause}"
            if run.phase is Phase.RAMP and run.record.ramp is not None:
                cause_in_words += f" (at {described(run.record.ramp)})"
            if run.offer(event, cause_in_words, StepDetail(output=slot.log.last_lines())):
                await run.settled.wait()
                return True
        return False

    def _active_port_for(self, run: DeployRun) -> int:
        """Return the active port; for a deploy that flips, the one before the flip.

        The flip exchanges the roles before the phase ends.
        """
        return run.record.active_port if run.phase in FLIPS else self._slots.active.port

    async def stop(self) -> None:
        """End every deploy in a way that its record explains; a waiting one goes on waiting."""
        async with self._starting:
            self._runs.stopping = True
        for run in self._runs:
            await run.finish(Event.SUPERVISOR_STOPPED, "the supervisor was stopped")
        self._events.close()
