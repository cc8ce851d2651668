"""The deploy's world: what each effect of the table does on real slots, sockets and disks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.config.smoke_file import SmokePlan, load_smoke_file
from atlas_supervisor.deploy.effects import StepOutcome
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.switch import Switch
from atlas_supervisor.errors import SettingsError
from atlas_supervisor.health.worker_report import complaint
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.deploy import DeployRecord, Mode
from atlas_supervisor.model.event import DeployEvent, PublishedEvent
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
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
        self._was_rollback = False
        """Whether the last flip went to the version before, so that a revert undoes that."""
        self._catching_up = anyio.Lock()
        self._unremembered: list[Callable[[], Awaitable[None]]] = []

    def ports(self) -> tuple[int, int]:
        """Return the active and the staging port as they are now."""
        return self._switch.ports()

    async def preflight(self, release: Release) -> StepOutcome:
        """Check the release, the smoke file and the ports, and free the staging slot."""
        watch = Stopwatch()
        if not release.path.is_dir():
            return StepOutcome(ok=False, message=f"the release's folder {release.path} is gone")
        try:
            await self._smoke_plan()
        except SettingsError as error:
            return StepOutcome(ok=False, message=str(error))
        if strangers := await anyio.to_thread.run_sync(self._plane.strangers):
            return StepOutcome(
                ok=False,
                message=f"somebody else takes our connections: {'; '.join(strangers)}",
                detail={"strangers": strangers},
            )
        await self._make_room()
        staging = self._switch.staging
        await self._let_go(staging.name)
        if staging.instance is not None:  # left behind by a step that failed
            await staging.stop()
        return StepOutcome(
            ok=True,
            message=f"version {release.version} can be launched on {self._switch.staging.name}",
            detail={"version": release.version, "waited_ms": watch.milliseconds},
        )

    async def _smoke_plan(self) -> SmokePlan:
        if self._settings.smoke_file is None:
            return SmokePlan()
        return await anyio.to_thread.run_sync(load_smoke_file, self._settings.smoke_file)

    async def launch(self, release: Release) -> StepOutcome:
        """Start the release on staging; a failure carries the last lines that it printed."""
        try:
            detail = await self._switch.staging.start(release)
        except LaunchError as error:
            return StepOutcome(ok=False, message=str(error), detail=error.detail)
        return StepOutcome(ok=True, message=detail["message"], detail=detail)

    async def smoke(self, deploy_id: str) -> StepOutcome:
        """Run every smoke test against staging's own port."""
        plan = await self._smoke_plan()
        slot, instance = self._switch.staging, self._switch.staging.instance
        if instance is None:
            return StepOutcome(ok=False, message="staging is gone", staging_died=True)
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
            deploy_id=deploy_id,
        )
        failed = [check for check in checks if not check.ok]
        detail = {"checks": [check.model_dump(mode="json") for check in checks]}
        if failed:
            names = ", ".join(f"{check.name!r}: {check.message}" for check in failed)
            message = f"{len(failed)} of {len(checks)} smoke tests failed: {names}"
            return StepOutcome(False, message, {**detail, "output": slot.log.last_lines()})
        message = f"{len(checks)} smoke tests passed" if checks else "there are no smoke tests"
        return StepOutcome(ok=True, message=message, detail=detail)

    async def health(self) -> StepOutcome:
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
        detail = {"probes": [probe.model_dump(mode="json") for probe in gate.probes]}
        if gate.verdict is Verdict.PASS:
            return StepOutcome(ok=True, message=gate.message, detail=detail)
        return StepOutcome(False, gate.message, {**detail, "output": slot.log.last_lines()})

    async def flip(self, release: Release, *, rollback: bool) -> StepOutcome:
        """Switch to staging and remember which version has the traffic now."""
        finding = await self._switch.flip()
        if finding.ok:
            self._warm_since = Stopwatch()
            self._was_rollback = rollback
            await self._remember(None if rollback else release)
        return finding

    async def flip_back(self) -> StepOutcome:
        """Switch back to the warm version, and hand it what a dead one had queued."""
        finding = await self._switch.flip()
        if not finding.ok:
            return StepOutcome(False, finding.message, finding.detail)  # it is no staging that died
        if _given_up(self._switch.staging):
            self._rescue()
        back = self._switch.active.instance
        await self._remember(back.release if self._was_rollback and back else None)
        self._was_rollback = False
        return finding

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

    async def watch(self) -> StepOutcome:
        """Probe the new version for the guard time; too many failures in a row fail it."""
        await self._let_go(self._switch.staging.name)
        settings, slot = self._settings, self._switch.active
        seconds = min(settings.guard_seconds, self._warm_seconds)
        if seconds <= 0:
            why = "GUARD_SECONDS is 0" if not settings.guard_seconds else "no version is kept warm"
            return StepOutcome(
                ok=True, message=f"not guarded: {why}", detail={"guarded_seconds": 0}
            )
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
                return StepOutcome(
                    ok=False,
                    message=f"the new version failed {failures} probes in a row: {result.message}",
                    detail={
                        "probes": probes,
                        "failed_probe": result.model_dump(mode="json"),
                        "output": slot.log.last_lines(),
                    },
                )
        return StepOutcome(
            ok=True,
            message=f"{probes} probes in {seconds:g} s, no reason to revert",
            detail={"guarded_seconds": seconds, "probes": probes},
        )

    async def keep_warm(self) -> StepOutcome:
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
        return StepOutcome(ok=True, message="the warm time is over")

    async def drain_staging(self, freed: Callable[[], None], known: dict[str, Any]) -> StepOutcome:
        """Drain the instance without traffic, and pass on what is still queued for its slot."""
        slot, old = self._switch.staging, self._switch.staging.instance
        await self._let_go(slot.name)
        if _given_up(slot):
            self._rescue()
            await slot.stop()  # it may hang, and what it started may have outlived it
            self._rescue()
            await anyio.sleep(SETTLE_SECONDS)
            rescued = self._plane.rescued(slot.name)
            message = f"{slot.name} was dead; {rescued} of its connections were handed on"
            freed()
            return StepOutcome(ok=True, message=message, detail={"rescued": rescued})

        def leave() -> None:  # from here on the queues may be another instance's at any moment
            self._plane.vacate(slot.name, slot.name.other)
            freed()

        try:
            detail = await slot.drain(leave)
        finally:
            known |= counts(old) if old else {}
        return StepOutcome(ok=True, message=detail["message"], detail=detail)

    async def stop_staging(self) -> StepOutcome:
        """End the instance that never had traffic."""
        slot = self._switch.staging
        await slot.stop()
        self._rescue()
        return StepOutcome(ok=True, message=f"{slot.name} is stopped")

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
