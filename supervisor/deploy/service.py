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
from supervisor.deploy.activities import Activities
from supervisor.deploy.machine import FIRST_EFFECT, FIRST_PHASE, Effect, Event, Phase, Plan
from supervisor.deploy.runner import DeployRun
from supervisor.deploy.suggestions import suggestions
from supervisor.deploy.switching import Switch
from supervisor.errors import RefusedError
from supervisor.model.actor import Actor
from supervisor.model.deploy import DeployRecord, Mode, Result
from supervisor.model.release import Release, ReleaseView
from supervisor.model.slot import Role, SlotName
from supervisor.model.status import Status, Traffic
from supervisor.store.database import Database, StoreError
from supervisor.store.state_keeper import StateKeeper
from supervisor.traffic import Plane
from supervisor.workers.releases import Releases, UnknownReleaseError

log = structlog.get_logger(__name__)


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
        active, staging = self._switch.active, self._switch.staging
        roles = {active.name: Role.ACTIVE, staging.name: Role.STAGING}
        slots = {slot.name: slot for slot in (active, staging)}
        state = self._state.state
        return Status(
            mode=state.mode,
            active_port=state.active_port,
            staging_port=state.staging_port,
            public_port=self._settings.public_port or None,
            health_score=None,
            version=active.instance.release.version if active.instance else None,
            channel=self._settings.channel,
            last_deploy=self._latest_record(),
            canary_stats=None,
            fallback_suggestions=suggestions(self._settings, state, active),
            slots=[slots[name].view(roles[name]) for name in SlotName],
            traffic=Traffic(plane=self._plane.name, weights=self._plane.weights),
            deploy_in_progress=self._current() is not None,
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
        slots = (self._switch.active, self._switch.staging)
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

    def _fresh(self, record: DeployRecord) -> DeployRecord:
        run = self._runs.get(record.deploy_id)
        return run.record if run else record

    def _latest_record(self) -> DeployRecord | None:
        return self._fresh(self._last) if self._last else None

    def _current(self) -> DeployRun | None:
        """Return the deploy that holds the place, if any."""
        return next((run for run in self._runs.values() if run.in_progress), None)

    # What can be asked for.

    async def deploy(self, *, release: str | None, dry_run: bool, actor: Actor) -> DeployRecord:
        """Begin a deploy, and return its record as soon as it is durable."""
        if self._state.state.mode is Mode.SINGLE:
            raise RefusedError(
                "mode_is_single",
                "deploys are off: the mode is single",
                status=409,
                hint="see fallback_suggestions in GET /deploy/status for why; then "
                'POST /deploy/mode {"mode": "bluegreen"} (atlasctl mode bluegreen) resets it',
            )
        plan = Plan(dry_run=dry_run, auto_switch=self._settings.auto_switch_on_health)
        found = await self._find_release(release)
        run = await self._begin(found, plan, actor)
        return run.record

    async def _find_release(self, name: str | None) -> Release:
        try:
            return await anyio.to_thread.run_sync(self._releases.find, name)
        except UnknownReleaseError as error:
            raise RefusedError(
                "unknown_release",
                str(error),
                status=404,
                hint="a release is a folder below RELEASES_DIR; without one the worker directory "
                "is deployed",
            ) from error

    async def _begin(self, release: Release, plan: Plan, actor: Actor) -> DeployRun:
        async with self._beginning:
            if self._stopping:
                raise RefusedError(
                    "stopping", "the supervisor is stopping", status=503, hint="try again later"
                )
            if (current := self._current()) is not None:
                raise RefusedError(
                    "deploy_in_progress",
                    f"deploy {current.record.deploy_id} is in progress ({current.phase})",
                    status=409,
                    hint="wait for it, or POST /deploy/abort (atlasctl abort) gives it up",
                )
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
            await self._write_down(record, plan, actor, action)
            run = DeployRun(record, plan, release, self._activities, FIRST_PHASE)
            self._adopt(run, FIRST_EFFECT)
        return run

    async def _write_down(
        self, record: DeployRecord, plan: Plan, actor: Actor, action: str
    ) -> None:
        try:
            await self._database.begin_deploy(record, auto_switch=plan.auto_switch)
            await self._database.audit(
                actor, action, "begun", subject=record.deploy_id, release=record.release
            )
            await self._state.change(last_deploy_ts=record.started_ts)
        except (StoreError, OSError) as error:
            raise RefusedError(
                "not_durable",
                f"the deploy could not be written down, so it was not begun: {error}",
                status=503,
                hint="see whether the disk of STATE_DIR is full or read-only",
            ) from error

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
        for run in list(self._runs.values()):
            if run.phase is not FIRST_PHASE:
                run.offer(Event.SUPERSEDED, "the next deploy has begun")
                await run.ended.wait()

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
            raise RefusedError(
                "switch_failed",
                f"the switch could not be done: {run.switch_failure}",
                status=503,
                hint="ports and mode are as before; mend the cause, then POST /deploy/switch "
                "(atlasctl switch) tries again"
                if run.phase is Phase.AWAITING_SWITCH
                else "ports and mode are as before",
                extra=run.record.model_dump(mode="json"),
            )
        return run.record

    async def switch(self, actor: Actor) -> DeployRecord:
        """Go ahead with the waiting deploy; returns once it has switched, or failed to."""
        return await self._tell_current(Event.SWITCH_REQUESTED, "switch", actor)

    async def abort(self, actor: Actor) -> DeployRecord:
        """Give up the deploy in progress; returns once staging is stopped."""
        record = await self._tell_current(Event.ABORT_REQUESTED, "abort", actor)
        if record.result is not Result.ABORTED:
            raise RefusedError(
                "too_late",
                f"the deploy could not be aborted any more: it is {record.result}",
                status=409,
                hint="POST /deploy/rollback (atlasctl rollback) goes back to the version before",
                extra=record.model_dump(mode="json"),
            )
        return record

    async def _tell_current(self, event: Event, action: str, actor: Actor) -> DeployRecord:
        run = self._current()
        if run is None or not run.offer(event, f"{action} requested by {actor.name}"):
            what = f"the deploy is in {run.phase}" if run else "no deploy is in progress"
            raise RefusedError(
                f"nothing_to_{action}",
                f"there is nothing to {action}: {what}",
                status=409,
                hint="GET /deploy/status (atlasctl status) shows what is going on",
            )
        return await self._audited(run, action, actor)

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
        for run in self._runs.values():
            if self._switch.staging.alive and run.offer(
                Event.ROLLBACK_REQUESTED, f"rollback requested by {actor.name}"
            ):
                return await self._audited(run, "rollback", actor)
        release = await self._previous_release()
        run = await self._begin(release, Plan(rollback=True), actor)
        return await self._answer(run)

    async def _previous_release(self) -> Release:
        """Return what ran before, if it can be launched again. Raises RefusedError."""
        rows = await self._database.versions()
        if len(rows) < 2:
            raise RefusedError(
                "nothing_to_roll_back",
                "no version had the traffic before this one",
                status=409,
                hint="POST /deploy/bluegreen (atlasctl deploy) deploys another version",
            )
        before = rows[1].release
        try:
            found = await anyio.to_thread.run_sync(self._releases.find, before.name)
        except UnknownReleaseError as error:
            raise _previous_gone(before, str(error)) from error
        if found.name is None and found.version != before.version:
            raise _previous_gone(before, f"{found.path} now holds version {found.version}")
        return found

    async def set_mode(self, mode: Mode, actor: Actor) -> Status:
        """Set the mode durably."""
        if mode is Mode.BLUEGREEN and self._settings.deploy_mode is Mode.SINGLE:
            raise RefusedError(
                "single_by_settings",
                "DEPLOY_MODE=single in the settings always wins",
                status=409,
                hint="set DEPLOY_MODE=bluegreen in the env file and restart the daemon",
            )
        try:
            await self._state.change(mode=mode)
        except OSError as error:
            raise RefusedError(
                "not_durable",
                f"the mode could not be written down, so it is as before: {error}",
                status=503,
                hint="see whether the disk of STATE_DIR is full or read-only",
            ) from error
        await self._state.copy_to_database()
        await self._audit(actor, "mode", mode.value)
        return self.status()

    # What happens by itself.

    async def active_died(self, cause: str) -> bool:
        """Let the warm version take over from a dead or hung one; return whether it did."""
        if not self._switch.staging.alive:
            return False
        dead = self._switch.active
        for run in self._runs.values():
            if run.offer(Event.ACTIVE_DIED, f"the active instance went down: {cause}"):
                await run.settled.wait()
                return self._switch.active is not dead
        return False

    def staging_died(self, cause: str) -> bool:
        """Tell the deploy that its instance went down; return whether one was concerned."""
        return any(
            run.offer(Event.STAGING_DIED, f"the staging instance went down: {cause}")
            for run in self._runs.values()
        )

    async def stop(self) -> None:
        """Bring every deploy to an end that its record explains; a waiting one goes on waiting."""
        async with self._beginning:
            self._stopping = True
        for run in list(self._runs.values()):
            if run.phase in {Phase.SWITCH, Phase.REVERT}:
                await run.settled.wait()
            if run.phase is Phase.AWAITING_SWITCH:
                continue
            if run.offer(Event.SUPERVISOR_STOPPED, "the supervisor was stopped"):
                await run.ended.wait()


def _previous_gone(release: Release, why: str) -> RefusedError:
    return RefusedError(
        "previous_version_gone",
        f"version {release.version} can't be launched again: {why}",
        status=409,
        hint="with RELEASES_DIR every release keeps its own folder, and can be gone back to",
    )
