"""The activities of the phases, on real slots, sockets and files; it satisfies `Effects`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.config.smoke_file import SmokePlan, load_smoke_file
from atlas_supervisor.deploy.effects import ActiveDeploy
from atlas_supervisor.deploy.guard import Guard
from atlas_supervisor.deploy.machine import HELD_WHY, Event, StepOutcome, When
from atlas_supervisor.deploy.ramping import RampControl
from atlas_supervisor.deploy.switch import Switch
from atlas_supervisor.errors import SettingsError
from atlas_supervisor.model.deploy import (
    DeployRecord,
    DrainDetail,
    GuardDetail,
    HealthDetail,
    LaunchDetail,
    PreflightDetail,
    SmokeDetail,
)
from atlas_supervisor.model.ramp import Ramp
from atlas_supervisor.model.release import Release, Version, VersionChange, VersionSource
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import HttpProber, health_gate
from atlas_supervisor.probes.http_client import RequestShape
from atlas_supervisor.probes.smoke import run_smoke
from atlas_supervisor.requests.collector import RequestCollector
from atlas_supervisor.system.clock import Stopwatch, now
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.drain import counts
from atlas_supervisor.workers.launch import LaunchError, worker_environment
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.releases import missing
from atlas_supervisor.workers.slots import Slots

log = structlog.get_logger(__name__)

_ALONE_POLL_SECONDS = 0.05
_SKIPPED = "skipped: a fast rollback to a version that ran without complaint"
_NAMED_BY: dict[VersionSource | None, str] = {
    VersionSource.GIT: "git's description",
    VersionSource.NAME: "its folder's name",
    VersionSource.DIGEST: "a digest of its files",
}


class Executor:
    """Performs the activities. There is one for the daemon's life: deploys follow one another."""

    def __init__(
        self,
        *,
        settings: Settings,
        slots: Slots,
        switch: Switch,
        plane: Plane,
        prober: HttpProber,
        requests: RequestCollector,
        save_ramp: Callable[[DeployRecord], Awaitable[None]],
        check_landing: Callable[[anyio.Event], None] | None = None,
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._switch = switch
        self._plane = plane
        self._prober = prober
        self._requests = requests
        self._ramps = RampControl(
            settings=settings,
            slots=slots,
            switch=switch,
            plane=plane,
            prober=prober,
            requests=requests,
            save=save_ramp,
        )
        self._check_landing = check_landing
        """Asks for a check of where connections arrive; the event is set once it is over."""
        self._warm_since = Stopwatch()

    def resume(self, switched: datetime | None) -> None:
        """Count guard and warm time from the switch, which was before this daemon's start."""
        self._warm_since = Stopwatch.since(switched)
        self._switch.has_shared = True  # perhaps

    async def end_sharing(self) -> None:
        """Take staging's part of the traffic away, as of a deploy that can't go on."""
        await self._switch.close_split()

    def ports(self) -> tuple[int, int]:
        """Return the active and the staging port as they are now."""
        return self._slots.ports()

    def weight(self) -> float:
        """Return the share of the traffic that staging has."""
        return self._switch.weight

    async def preflight(self, deploy: ActiveDeploy) -> StepOutcome:
        """Check the release, the smoke file and the ports, and free the staging slot."""
        watch, release = Stopwatch(), deploy.release
        if gone := await _gone(release):
            return gone
        if (fault := release.problem or release.fault) is not None:
            return StepOutcome.failed(fault)
        try:
            await self._smoke_plan()
        except SettingsError as error:
            return StepOutcome.failed(str(error))
        if strangers := await in_thread(self._plane.foreign_listeners):
            return StepOutcome.failed(
                f"another program receives our connections: {'; '.join(strangers)}",
                PreflightDetail(strangers=strangers),
            )
        await self._slots.free_staging()
        message = f"version {release.version} can be launched on {self._slots.staging.name}"
        facts: dict[str, Any] = {"version": release.version, "version_source": release.source}
        if release.note is not None:
            message += f"; {release.note}, so its version is {_NAMED_BY[release.source]}"
            facts["version_note"] = release.note
        if deploy.plan.irreversible:
            message += "; it is irreversible: nothing reverts it by itself after the switch"
            facts["irreversible"] = True
        message += f"; {deploy.plan.remark}" if deploy.plan.remark else ""
        return StepOutcome.passed(message, PreflightDetail(**facts, waited_ms=watch.milliseconds))

    async def _smoke_plan(self) -> SmokePlan | None:
        """Read the smoke file, which may have changed; None if there is none."""
        if self._settings.smoke_file is None:
            return None
        return await in_thread(load_smoke_file, self._settings.smoke_file)

    async def launch(self, deploy: ActiveDeploy) -> StepOutcome:
        """Start the release on staging; a failure carries the last lines that it printed."""
        await self._slots.free_staging()  # a deploy that is resumed had its preflight before
        self._switch.has_shared = False
        await self._landing_checked()  # what is found after the launch is the new worker's doing
        try:
            detail = LaunchDetail.model_validate(await self._slots.staging.start(deploy.release))
        except LaunchError as error:
            return StepOutcome.failed(str(error), LaunchDetail.model_validate(error.detail))
        return StepOutcome.passed(detail.message, detail)

    async def smoke(self, deploy: ActiveDeploy) -> StepOutcome:
        """Run every smoke test against staging's own port."""
        if deploy.plan.fast:
            return StepOutcome.passed(_SKIPPED, SmokeDetail(skipped=True))
        plan = await self._smoke_plan()
        slot, instance = self._slots.staging, self._slots.staging.instance
        if instance is None:
            return StepOutcome.staging_died("staging is gone")
        if plan is None:
            return StepOutcome.passed("there are no smoke tests", SmokeDetail(checks=[]))
        shape = RequestShape.of(self._settings)
        checks = await run_smoke(
            plan,
            base_url=shape.base_url(self._plane.probe_port(slot.port)),
            headers=shape.headers_for(slot.port),
            env=worker_environment(
                self._settings,
                slot=slot.name,
                port=slot.port,
                instance=instance.name,
                release=instance.release,
            ),
            directory=instance.release.path,
            deploy_id=deploy.record.deploy_id,
            account=self._settings.worker_account,
        )
        if failed := [check for check in checks if not check.ok]:
            names = ", ".join(f"{check.name!r}: {check.message}" for check in failed)
            return StepOutcome.failed(
                f"{len(failed)} of {len(checks)} smoke tests failed: {names}",
                SmokeDetail(checks=checks, output=slot.log.last_lines()),
            )
        tests = f"{len(checks)} smoke test{'s' * (len(checks) != 1)}"
        message = f"{tests} passed" if checks else "there are no smoke tests"
        return StepOutcome.passed(message, SmokeDetail(checks=checks))

    async def health(self, deploy: ActiveDeploy) -> StepOutcome:
        """Probe staging; every one of the probes must pass, and complain of nothing itself.

        Its release must still be there: else it could not be started again after a crash.
        """
        slot, settings = self._slots.staging, self._settings
        instance = slot.instance
        if deploy.plan.fast:
            return StepOutcome.passed(_SKIPPED, HealthDetail(skipped=True))

        def still_starting() -> bool:
            """Return whether its other processes may not be up yet, though it reported ready."""
            return (
                instance is not None
                and instance.reported.ready.is_set()
                and instance.age.seconds < settings.ready_timeout_seconds
            )

        gate = await health_gate(
            self._prober,
            slot.port,
            settings.health_path,
            probes=settings.health_probes,
            interval_seconds=settings.health_interval_seconds,
            timeout_seconds=settings.health_timeout_seconds,
            expect_instance=instance.name if instance else None,
            still_starting=still_starting,
        )
        message = gate.message
        if gate.verdict is Verdict.PASS:
            await self._landing_checked()
            taken = instance.took_traffic if instance else None
            if taken is None:
                if gone := await _gone(deploy.release):
                    return gone
                if deploy.plan.recycle and (excess := self._excess(instance)):
                    return StepOutcome.failed(excess, HealthDetail(probes=gate.probes))
                if deploy.plan.meets(When.MANUAL):  # before a caller learns that it waits
                    await self._switch.open_split(deploy.record.deploy_id)
                return StepOutcome.passed(gate.message, HealthDetail(probes=gate.probes))
            message = taken
        detail = HealthDetail(probes=gate.probes, output=slot.log.last_lines())
        return StepOutcome.failed(message, detail)

    def _excess(self, instance: WorkerProcess | None) -> str | None:
        """Return why it is no use to recycle: the fresh worker is over the limit, too."""
        limit = self._settings.worker_max_rss_mb
        if instance is None or not limit:
            return None
        instance.measure()
        memory = instance.usage.memory_mb or 0
        if memory <= limit:
            return None
        return (
            f"a fresh worker has {memory:g} MiB already, so WORKER_MAX_RSS_MB={limit:g} is too low"
        )

    async def _landing_checked(self) -> None:
        if self._check_landing is not None:
            over = anyio.Event()
            self._check_landing(over)
            await over.wait()

    async def await_switch(self, deploy: ActiveDeploy) -> StepOutcome:
        """Let staging have its part of the traffic, also after a restart; wait for the operator."""
        await self._switch.open_split(deploy.record.deploy_id)
        await anyio.sleep_forever()
        raise AssertionError  # pragma: no cover  # cancelled by the event that it waits for

    async def ramp(self, deploy: ActiveDeploy) -> StepOutcome:
        """Give staging its step's share of the traffic, and watch until something follows."""
        return await self._ramps.step(deploy)

    async def switch(self, deploy: ActiveDeploy) -> StepOutcome:
        """Switch to staging; the deployed version has the traffic from now on."""
        if gone := await _gone(deploy.release):  # a deploy may have waited for days
            return gone
        crashes, back = self._slots.active.restarts, deploy.plan.rollback
        complaint = f"its worker was restarted {crashes} times after crashes" if crashes else None
        if back:
            complaint = f"deploy {deploy.record.deploy_id} went back from it"
        outcome = await self._switch.flip()
        if not outcome.has_passed:
            return outcome
        self._warm_since = Stopwatch()
        added = Version(self._slots.active.name, deploy.release)
        versions = VersionChange(added, back, complaint)
        if deploy.plan.recycle:
            versions = VersionChange(added, moved=True)
        message = f"{outcome.message}{self._how(deploy.record.ramp)}"
        return replace(outcome, message=message, versions=versions)

    def _how(self, ramp: Ramp | None) -> str:
        """Return the words of a switch about the ramp before it, or why there was none."""
        if ramp is not None:
            failed = "" if ramp.failed_requests is None else f", {ramp.failed_requests:,} failed"
            return f", after a ramp of {len(ramp.steps)} shares{failed}"
        if len(self._settings.traffic_ramp) > 1 and not self._settings.ramp:
            return ", without a ramp, because PUBLIC_PORT=0"
        return ""

    async def revert(self, deploy: ActiveDeploy) -> StepOutcome:
        """Switch back to the warm version, and pass on what a dead one had queued."""
        outcome = await self._switch.flip()
        if not outcome.has_passed:
            return StepOutcome.failed(outcome.message, outcome.detail)  # no staging has died
        if self._slots.staging.is_down:
            self._slots.vacate_staging()
        slot, plan, complaint = self._slots.active, deploy.plan, deploy.record.reason
        change = VersionChange(back=True, complaint=complaint)
        if (plan.rollback or plan.recycle) and slot.instance:  # its version has the traffic again
            again = Version(slot.name, slot.instance.release)
            change = VersionChange(again, complaint=complaint, moved=plan.recycle)
        return replace(outcome, versions=change)

    @property
    def _warm_seconds(self) -> float:
        """How long the old version is kept; a foreign one can't let its clients go by itself."""
        old = self._slots.staging.instance
        if old is None or not (old.kit or self._settings.keep_warm_foreign):
            return 0.0
        return self._settings.keep_warm_seconds

    async def _until_superseded(
        self, activity: Callable[[], Awaitable[StepOutcome]]
    ) -> StepOutcome:
        """Run an activity, and end it as soon as the next deploy needs the staging slot."""
        outcome = StepOutcome(Event.SUPERSEDED, "the next deploy has begun")

        async def run() -> None:
            nonlocal outcome
            outcome = await activity()
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await self._slots.staging_needed.wait()
            group.cancel_scope.cancel()
        return outcome

    async def guard(self, deploy: ActiveDeploy) -> StepOutcome:
        """Watch the new version for the guard time."""
        await self._slots.cancel_staging_restarts()
        settings = self._settings
        seconds = min(settings.guard_seconds, self._warm_seconds)
        if seconds <= 0:
            why = "GUARD_SECONDS is 0" if not settings.guard_seconds else "no version is kept warm"
            return StepOutcome.passed(f"not guarded: {why}", GuardDetail(guarded_seconds=0))
        guard = Guard(
            deploy,
            self._warm_since,
            settings=settings,
            slots=self._slots,
            switch=self._switch,
            prober=self._prober,
            requests=self._requests,
        )
        self._limit(deploy, seconds)
        return await self._until_superseded(partial(guard.watch, seconds))

    def _limit(self, deploy: ActiveDeploy, seconds: float) -> None:
        """Note when a phase ends that lasts until so long after the switch."""
        until = now() + timedelta(seconds=max(seconds - self._warm_since.seconds, 0))
        deploy.record = deploy.record.model_copy(update={"until_ts": until})

    async def warm(self, deploy: ActiveDeploy) -> StepOutcome:
        """Wait for the rest of the warm time, or for the end of the warm instance.

        It does not end by itself while the old version is the only one that lives.
        """
        await self._switch.close_split()
        if (reason := deploy.record.reason or "").endswith(HELD_WHY):
            self._slots.complaint = reason
        self._limit(deploy, self._warm_seconds)
        return await self._until_superseded(self._keep_warm)

    async def _keep_warm(self) -> StepOutcome:
        old = self._slots.staging.instance
        left = self._warm_seconds - self._warm_since.seconds
        if old is not None and left > 0:
            with anyio.move_on_after(left):
                await old.exited.wait()
        while self._slots.staging.serving and not self._slots.active.serving:  # noqa: ASYNC110  # several states, no one event
            await anyio.sleep(_ALONE_POLL_SECONDS)
        return StepOutcome.passed("the warm time is over")

    async def drain(self, deploy: ActiveDeploy) -> StepOutcome:
        """Drain the version without traffic."""
        await self._switch.close_split()  # its holdback
        old = self._slots.staging.instance
        try:
            detail = DrainDetail.model_validate(await self._slots.drain_staging())
        finally:
            if old is not None:
                deploy.note(DrainDetail.model_validate(counts(old)))
        return StepOutcome.passed(detail.message, detail)

    async def unstage(self, _deploy: ActiveDeploy) -> StepOutcome:
        """End the instance that did not get all the traffic; drain it if it had a part."""
        slot, message = self._slots.staging, ""
        if await self._switch.close_split():
            message = f": {(await self._slots.drain_staging())['message']}"
        else:
            await self._slots.stop_staging()
        return StepOutcome.passed(f"{slot.name} is stopped{message}")


async def _gone(release: Release) -> StepOutcome | None:
    """Return the failure of a deploy whose release is no longer there as recorded."""
    why = await in_thread(missing, release)
    return StepOutcome.failed(why) if why else None
