"""The deploy's world: what each effect of the table does on real slots, sockets and disks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.config.smoke_file import SmokePlan, load_smoke_file
from atlas_supervisor.deploy.effects import ActiveDeploy, StepOutcome
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.switch import Switch
from atlas_supervisor.errors import SettingsError
from atlas_supervisor.health.worker_report import complaint
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.deploy import DeployRecord, Mode
from atlas_supervisor.model.event import DeployEvent, PublishedEvent
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.step import (
    DrainDetail,
    GuardDetail,
    HealthDetail,
    LaunchDetail,
    PreflightDetail,
    SmokeDetail,
)
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import HttpProber, health_gate
from atlas_supervisor.probes.smoke import run_smoke
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.drain import counts
from atlas_supervisor.workers.environment import worker_environment
from atlas_supervisor.workers.readiness import LaunchError
from atlas_supervisor.workers.slot import SETTLE_SECONDS, Slot

log = structlog.get_logger(__name__)

_SMALLEST_GUARD_INTERVAL_SECONDS = 0.5
_ALONE_POLL_SECONDS = 0.05


class Executor:
    """Performs the effects. One for the daemon's life: deploys come one after the other."""

    def __init__(
        self,
        *,
        settings: Settings,
        switch: Switch,
        plane: Plane,
        prober: HttpProber,
        database: Database,
        events: EventHub,
        state: StateKeeper,
        make_room: Callable[[], Awaitable[None]],
        let_go: Callable[[SlotName], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._switch = switch
        self._plane = plane
        self._prober = prober
        self._database = database
        self._events = events
        self._state = state
        self._make_room = make_room
        """Ends what the deploy before left on the staging slot; returns when the slot is free."""
        self._let_go = let_go
        """Ends the care for a slot that had the traffic; returns when nobody starts it again."""
        self._warm_since = Stopwatch()
        self._catching_up = anyio.Lock()
        self._unremembered: list[Callable[[], Awaitable[None]]] = []

    def ports(self) -> tuple[int, int]:
        """Return the active and the staging port as they are now."""
        return self._switch.ports()

    async def preflight(self, deploy: ActiveDeploy) -> StepOutcome:
        """Check the release, the smoke file and the ports, and free the staging slot."""
        watch, release = Stopwatch(), deploy.release
        if not release.path.is_dir():
            return StepOutcome.failed(f"the release's folder {release.path} is gone")
        try:
            await self._smoke_plan()
        except SettingsError as error:
            return StepOutcome.failed(str(error))
        if strangers := await anyio.to_thread.run_sync(self._plane.strangers):
            return StepOutcome.failed(
                f"another program receives our connections: {'; '.join(strangers)}",
                PreflightDetail(strangers=strangers),
            )
        await self._make_room()
        staging = self._switch.staging
        await self._let_go(staging.name)
        if staging.instance is not None:  # left behind by a step that failed
            await staging.stop()
        return StepOutcome.passed(
            f"version {release.version} can be launched on {self._switch.staging.name}",
            PreflightDetail(version=release.version, waited_ms=watch.milliseconds),
        )

    async def _smoke_plan(self) -> SmokePlan:
        if self._settings.smoke_file is None:
            return SmokePlan()
        return await anyio.to_thread.run_sync(load_smoke_file, self._settings.smoke_file)

    async def launch(self, deploy: ActiveDeploy) -> StepOutcome:
        """Start the release on staging; a failure carries the last lines that it printed."""
        try:
            detail = LaunchDetail.model_validate(await self._switch.staging.start(deploy.release))
        except LaunchError as error:
            return StepOutcome.failed(str(error), LaunchDetail.model_validate(error.detail))
        return StepOutcome.passed(detail.message, detail)

    async def smoke(self, deploy: ActiveDeploy) -> StepOutcome:
        """Run every smoke test against staging's own port."""
        plan = await self._smoke_plan()
        slot, instance = self._switch.staging, self._switch.staging.instance
        if instance is None:
            return StepOutcome.staging_died("staging is gone")
        checks = await run_smoke(
            plan,
            base_url=f"http://127.0.0.1:{slot.port}",
            env=worker_environment(
                self._settings,
                slot=slot.name,
                port=slot.port,
                instance=instance.name,
                release=instance.release,
            ),
            directory=instance.release.path,
            deploy_id=deploy.record.deploy_id,
        )
        if failed := [check for check in checks if not check.ok]:
            names = ", ".join(f"{check.name!r}: {check.message}" for check in failed)
            return StepOutcome.failed(
                f"{len(failed)} of {len(checks)} smoke tests failed: {names}",
                SmokeDetail(checks=checks, output=slot.log.last_lines()),
            )
        message = f"{len(checks)} smoke tests passed" if checks else "there are no smoke tests"
        return StepOutcome.passed(message, SmokeDetail(checks=checks))

    async def health(self, _deploy: ActiveDeploy) -> StepOutcome:
        """Probe staging; every one of the probes must pass, and complain of nothing itself."""
        slot, settings = self._switch.staging, self._settings
        gate = await health_gate(
            self._prober,
            slot.port,
            settings.health_path,
            probes=settings.health_probes,
            interval_seconds=settings.health_interval_seconds,
            timeout_seconds=settings.health_timeout_seconds,
            expect_instance=slot.instance.name if slot.instance else None,
            complaint=complaint,
        )
        if gate.verdict is Verdict.PASS:
            return StepOutcome.passed(gate.message, HealthDetail(probes=gate.probes))
        detail = HealthDetail(probes=gate.probes, output=slot.log.last_lines())
        return StepOutcome.failed(gate.message, detail)

    async def switch(self, deploy: ActiveDeploy) -> StepOutcome:
        """Switch to staging and remember which version has the traffic now."""
        outcome = await self._switch.flip()
        if outcome.has_passed:
            self._warm_since = Stopwatch()
            await self._remember(None if deploy.plan.rollback else deploy.release)
        return outcome

    async def revert(self, deploy: ActiveDeploy) -> StepOutcome:
        """Switch back to the warm version, and pass on what a dead one had queued."""
        outcome = await self._switch.flip()
        if not outcome.has_passed:
            return StepOutcome.failed(outcome.message, outcome.detail)  # no staging has died
        if _given_up(self._switch.staging):
            self._rescue()
        back = self._switch.active.instance
        await self._remember(back.release if deploy.plan.rollback and back else None)
        return outcome

    async def _remember(self, release: Release | None) -> None:
        """Note the version that has the traffic now; None: the one before, which has it again."""
        state, slot = self._state.state, self._switch.active.name
        database = self._database
        self._unremembered.append(
            partial(database.versions.pop, state)
            if release is None
            else partial(database.versions.push, slot, release, state)
        )
        try:
            await self._catch_up()
        except StoreError as error:
            log.error("version_not_remembered", why=str(error))

    async def _catch_up(self) -> None:
        """Write the versions that are not written yet, in order. Raises StoreError.

        One at a time: a deploy whose old version lingers may write beside the next one.
        """
        async with self._catching_up:
            while self._unremembered:
                await self._unremembered[0]()
                self._unremembered.pop(0)

    def _rescue(self) -> None:
        self._plane.vacate(self._switch.staging.name, self._switch.active.name)

    @property
    def _warm_seconds(self) -> float:
        """How long the old version is kept; a foreign one can't let its clients go by itself."""
        old = self._switch.staging.instance
        if old is None or not (old.kit or self._settings.keep_warm_foreign):
            return 0.0
        return self._settings.keep_warm_seconds

    async def guard(self, _deploy: ActiveDeploy) -> StepOutcome:
        """Probe the new version for the guard time; too many failures in a row fail it."""
        await self._let_go(self._switch.staging.name)
        settings, slot = self._settings, self._switch.active
        seconds = min(settings.guard_seconds, self._warm_seconds)
        if seconds <= 0:
            why = "GUARD_SECONDS is 0" if not settings.guard_seconds else "no version is kept warm"
            return StepOutcome.passed(f"not guarded: {why}", GuardDetail(guarded_seconds=0))
        interval = max(settings.health_interval_seconds, _SMALLEST_GUARD_INTERVAL_SECONDS)
        failures = probes = 0
        while (left := seconds - self._warm_since.seconds) > 0:
            await anyio.sleep(min(interval, left))
            result = await self._prober.probe(
                slot.port,
                settings.health_path,
                timeout_seconds=settings.health_timeout_seconds,
                expect_instance=slot.instance.name if slot.instance else None,
            )
            probes += 1
            failures = failures + 1 if result.verdict is Verdict.FAIL else 0
            if failures >= settings.liveness_failures:
                output = slot.log.last_lines()
                return StepOutcome.failed(
                    f"the new version failed {failures} probes in a row: {result.message}",
                    GuardDetail(probes=probes, failed_probe=result, output=output),
                )
        return StepOutcome.passed(
            f"{probes} probes in {seconds:g} s, no reason to revert",
            GuardDetail(guarded_seconds=seconds, probes=probes),
        )

    async def warm(self, _deploy: ActiveDeploy) -> StepOutcome:
        """Wait for the rest of the warm time, or for the end of the warm instance.

        It does not end while the old version is the only one that lives.
        """
        old = self._switch.staging.instance
        left = self._warm_seconds - self._warm_since.seconds
        if old is not None and left > 0:
            with anyio.move_on_after(left):
                await old.exited.wait()
        while self._switch.staging.serving and not self._switch.active.serving:  # noqa: ASYNC110  # several states, no one event
            await anyio.sleep(_ALONE_POLL_SECONDS)
        return StepOutcome.passed("the warm time is over")

    async def drain(self, deploy: ActiveDeploy) -> StepOutcome:
        """Drain the instance without traffic, and pass on what is still queued for its slot."""
        slot, old = self._switch.staging, self._switch.staging.instance
        await self._let_go(slot.name)
        if _given_up(slot):
            return await self._end_dead(slot, deploy)

        def leave() -> None:  # from here on the queues may be another instance's at any moment
            self._plane.vacate(slot.name, slot.name.other)
            deploy.leave_slot()

        try:
            detail = DrainDetail.model_validate(await slot.drain(leave))
        finally:
            if old is not None:
                deploy.note(DrainDetail.model_validate(counts(old)))
        return StepOutcome.passed(detail.message, detail)

    async def _end_dead(self, slot: Slot, deploy: ActiveDeploy) -> StepOutcome:
        """End the rest of a dead instance; its connections go to the other slot."""
        self._rescue()
        await slot.stop()  # it may hang, and what it started may have outlived it
        self._rescue()
        await anyio.sleep(SETTLE_SECONDS)
        rescued = self._plane.rescued(slot.name)
        deploy.leave_slot()
        message = f"{slot.name} was dead; {rescued} of its connections were passed on"
        return StepOutcome.passed(message, DrainDetail(rescued=rescued))

    async def unstage(self, _deploy: ActiveDeploy) -> StepOutcome:
        """End the instance that never had traffic."""
        slot = self._switch.staging
        await slot.stop()
        self._rescue()
        return StepOutcome.passed(f"{slot.name} is stopped")

    async def fall_back_to_single(self, reason: str) -> None:
        """Take no more deploys until an operator resets it."""
        log.warning("fell_back_to_single", why=reason)
        await self._state.change(mode=Mode.SINGLE)
        await self._state.copy_to_database()
        await self._database.audit.write(SUPERVISOR, "mode", "single", reason=reason)

    async def audit(self, action: str, outcome: str, record: DeployRecord, reason: str) -> None:
        """Write an entry of the audit trail in the daemon's name."""
        await self._database.audit.write(
            SUPERVISOR,
            action,
            outcome,
            subject=record.deploy_id,
            reason=reason,
            version=record.version,
        )

    async def audit_result(self, record: DeployRecord) -> None:
        """Have it audited what the deploy has come to; nobody waits for that.

        Should the daemon die first, the next one audits the end that it gives the deploy.
        """
        self._database.audit.enqueue(
            SUPERVISOR,
            "deploy",
            str(record.result),
            subject=record.deploy_id,
            reason=record.reason,
            version=record.version,
        )

    async def journal(self, record: DeployRecord, event: DeployEvent) -> int:
        """Write a transition down, durably; return its id in the journal. Raises StoreError.

        Never before the version that it brought is written: recovery goes by the journal.
        """
        await self._catch_up()
        return await self._database.deploys.write_transition(
            record,
            source=event.source or "",
            event=event.event,
            cause=event.cause,
            step=event.step,
            duration_ms=event.duration_ms,
            ts=event.ts,
        )

    def tell(self, announcement: PublishedEvent, journal_id: int | None) -> None:
        """Tell whoever listens; None: it could not be written, but it has happened."""
        self._events.tell(announcement, journal_id)


def _given_up(slot: Slot) -> bool:
    """Tell whether the slot's instance is dead, or hung and was told to be down."""
    return not slot.alive or (slot.instance is not None and slot.instance.expected_to_exit)
