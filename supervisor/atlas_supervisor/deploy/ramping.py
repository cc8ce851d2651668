"""The activity of a ramp: one step's share is in force, and both versions are watched.

Each step is one run of it: the transition to the step is in the journal first, then its share is
steered and written. After a kill the next daemon finds the step in the record, and the share in the
state file; one that was not in force yet is set then, and its time begins anew.

Once a second the numbers are read, and `ramp.after_look` says what follows. They stand in the
deploy's record, in memory; with a transition, and every few seconds besides, they are written.
While the old version's worker is down, new connections go to the new one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.effects import ActiveDeploy
from atlas_supervisor.deploy.machine import Event, StepOutcome
from atlas_supervisor.deploy.probe_streak import ProbeStreak
from atlas_supervisor.deploy.ramp import after_look, described, share_text
from atlas_supervisor.deploy.switch import NoSplitError, Switch
from atlas_supervisor.model.deploy import DeployRecord, SwitchDetail
from atlas_supervisor.model.judgement import VersionFigures
from atlas_supervisor.model.ramp import Ramp
from atlas_supervisor.model.requests import RequestTotals
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.requests.collector import RequestCollector
from atlas_supervisor.requests.comparison import Comparison
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import Stopwatch, now
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.slots import Slots

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
SAVE_SECONDS = 5.0
_DOWN_SECONDS = 0.1


class RampControl:
    """Performs the steps of ramps. There is one for the daemon's life."""

    def __init__(
        self,
        *,
        settings: Settings,
        slots: Slots,
        switch: Switch,
        plane: Plane,
        prober: HttpProber,
        requests: RequestCollector,
        save: Callable[[DeployRecord], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._switch = switch
        self._plane = plane
        self._prober = prober
        self._requests = requests
        self._save = save
        """Writes a record's ramp as it is now."""
        self._compared: tuple[str, str] | None = None
        self._weight = 0.0
        self._comparison: Comparison

    async def step(self, deploy: ActiveDeploy) -> StepOutcome:
        """Give staging the share of the record's step; return the end of that."""
        outcome: StepOutcome | None = None

        async def first(activity: Callable[[], Awaitable[StepOutcome]]) -> None:
            nonlocal outcome
            outcome = await activity()
            group.cancel_scope.cancel()

        await self._switch.open_split(deploy.record.deploy_id)
        async with anyio.create_task_group() as group:
            group.start_soon(first, partial(self._watch, deploy))
            group.start_soon(first, partial(self._probe, deploy))
        assert outcome is not None  # noqa: S101  # one of both has ended
        return outcome

    async def _watch(self, deploy: ActiveDeploy) -> StepOutcome:
        ramp = _of(deploy)
        away = 0.0 if ramp.paused else max((now() - ramp.looked_ts).total_seconds(), 0.0)
        clock, unsaved = Stopwatch(ramp.waited_seconds + away), Stopwatch()
        while True:
            try:
                weight, is_new = await self._steer(ramp)
            except NoSplitError:
                return StepOutcome.staging_died("the new version's worker is gone")
            if is_new:
                clock = Stopwatch()
            ramp = self._read(ramp, ramp.waited_seconds if ramp.paused else clock.seconds, weight)
            follows = after_look(
                ramp,
                step_seconds=self._settings.traffic_step_seconds,
                is_steered=weight == ramp.share,
            )
            ramp = ramp.model_copy(update={"waits_for": "" if follows.event else follows.why})
            deploy.record = deploy.record.model_copy(update={"ramp": ramp})
            if follows.event is not None:
                return self._ended(follows.event, follows.why, ramp)
            if unsaved.seconds >= SAVE_SECONDS:
                unsaved = Stopwatch()
                try:
                    await self._save(deploy.record)
                except StoreError as error:  # tried again soon; a transition waits in the outbox
                    log.error("ramp_not_saved", why=str(error))
            await self._until_next_look()

    def _ended(self, event: Event, why: str, ramp: Ramp) -> StepOutcome:
        name = self._slots.staging.name
        if event is Event.STEP_PASSED:
            then = f"step {ramp.step + 1} of {ramp.of}, {name} gets {share_text(ramp.next_share)}"
            return StepOutcome(event, f"{then}, after {why}")
        if event is Event.FAILED:
            why = f"{why} (at {described(ramp)})"
            return StepOutcome.failed(
                why, SwitchDetail(output=self._slots.staging.log.last_lines())
            )
        return StepOutcome.passed(f"the ramp has passed, the last step with {why}")

    async def _until_next_look(self) -> None:
        """Wait for a second; or until the old version's worker ends, which can't wait."""
        active = self._slots.active
        if active.instance is None or not active.can_serve:
            await anyio.sleep(_DOWN_SECONDS)
            return
        with anyio.move_on_after(LOOK_SECONDS):
            await active.instance.exited.wait()

    # The share.

    async def _steer(self, ramp: Ramp) -> tuple[float, bool]:
        """Return the share that is in force, and whether the step's was not until now.

        Raises NoSplitError.
        """
        is_new = self._switch.weight != ramp.share
        if is_new:
            try:
                await self._switch.set_weight(ramp.share)
            except OSError as error:
                log.error("ramp_step_not_saved", share=ramp.share, why=str(error))
        return await self._switch.follow_active(), is_new

    # The numbers.

    def _read(self, ramp: Ramp, waited: float, weight: float) -> Ramp:
        """Return the ramp with the numbers as they are now."""
        new, old = self._slots.staging.instance, self._slots.active.instance
        moment, settings = now(), self._settings
        judgement, comparison = ramp.judgement, ramp.saved.get("comparison")
        if new is not None and old is not None:
            try:
                looked = self._compare(new, old, comparison, weight)
                judgement, comparison = looked.look(), looked.saved()
            except Exception:  # a bug of ours is no fault of the version
                log.exception("ramp_evidence_failed")
        begun = self._begun(ramp, new, old)
        figures = {"new": self._since(new, begun["new"]), "old": self._since(old, begun["old"])}
        counted = figures["new"]
        if counted is None and new is not None and self._counts(new):
            counted = figures["new"] = VersionFigures(requests=0, failed=0)
        needed = None
        if counted is not None:
            needed = max(settings.traffic_min_requests - counted.requests, 0)
        left = timedelta(seconds=max(settings.traffic_step_seconds - waited, 0))
        return ramp.model_copy(
            update={
                "steps": (*ramp.steps[:-1], ramp.steps[-1].model_copy(update=figures)),
                "waited_seconds": round(waited, 3),
                "looked_ts": moment,
                "next_ts": None if ramp.paused else moment + left,
                "requests_needed": needed,
                "judgement": judgement,
                "saved": {"comparison": comparison, "begun": begun},
            }
        )

    def _compare(
        self, new: WorkerProcess, old: WorkerProcess, saved: Any, weight: float
    ) -> Comparison:
        """Return the comparison of these two; one goes on where that of others was."""
        is_other = self._compared != (new.name, old.name)
        if is_other:
            self._compared = new.name, old.name
            self._comparison = Comparison(self._requests, new=new.name, old=old.name, saved=saved)
        if is_other or weight != self._weight:
            self._weight = weight
            self._comparison.set_weight(weight)
        return self._comparison

    def _counts(self, instance: WorkerProcess) -> bool:
        """Return whether the worker's requests are counted, by itself or by the relay."""
        settings = self._settings
        relayed = self._plane.name == "relay" and settings.relay_count_requests
        return instance.kit or (relayed and settings.health_scheme == "http")

    def _begun(
        self, ramp: Ramp, new: WorkerProcess | None, old: WorkerProcess | None
    ) -> dict[str, Any]:
        """Return the counts of both versions when the step began."""
        begun = ramp.saved.get("begun", {})
        if begun.get("step") == len(ramp.steps):
            return dict(begun)
        return {"step": len(ramp.steps), "new": self._noted(new), "old": self._noted(old)}

    def _noted(self, instance: WorkerProcess | None) -> dict[str, Any] | None:
        totals = self._requests.totals(instance.name) if instance else None
        if instance is None or totals is None:
            return None
        return {"instance": instance.name, "totals": totals.packed()}

    def _since(
        self, instance: WorkerProcess | None, noted: dict[str, Any] | None
    ) -> VersionFigures | None:
        """Return the counts of an instance since then; None if it does not count."""
        totals = self._requests.totals(instance.name) if instance else None
        if instance is None or totals is None:
            return None
        if noted is not None and noted["instance"] == instance.name:
            totals = totals.since(RequestTotals.unpacked(noted["totals"]))
        return VersionFigures.of(totals)

    # The probes.

    async def _probe(self, deploy: ActiveDeploy) -> StepOutcome:
        """Probe the new version; return once too many in a row have failed."""
        slot = self._slots.staging
        streak = ProbeStreak(self._settings, self._prober, slot)
        while True:
            await anyio.sleep(streak.interval_seconds)
            if (failed := await streak.probe()) is not None:
                why, result = failed
                return StepOutcome.failed(
                    f"{why} (at {described(_of(deploy))})",
                    SwitchDetail(failed_probe=result, output=slot.log.last_lines()),
                )


def _of(deploy: ActiveDeploy) -> Ramp:
    """Return the deploy's ramp, which its transition has begun."""
    if deploy.record.ramp is None:
        raise LookupError("this deploy has no ramp")
    return deploy.record.ramp
