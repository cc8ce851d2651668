"""The versions that had the traffic, and what is done with an old one, on real slots and files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from atlas_supervisor.deploy import executor
from atlas_supervisor.deploy.executor import Executor
from atlas_supervisor.deploy.machine import Event, Plan
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.deploy.switch import Switch
from atlas_supervisor.model.deploy import GuardDetail
from atlas_supervisor.model.release import Release, Version, VersionChange
from atlas_supervisor.model.requests import RequestCounts, RequestTotals
from atlas_supervisor.model.slot import SlotName, SlotState
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import GateResult, HttpProber
from atlas_supervisor.requests.collector import RequestCollector
from atlas_supervisor.store.statements import StoreError
from tests.harness import eventually
from tests.unit.supervisor.deploy.support import Ready, kill, ready
from tests.unit.supervisor.store.support import a_deploy

BLUE, GREEN = SlotName.BLUE, SlotName.GREEN


@dataclass
class Stage:
    it: Ready
    activities: Executor

    @property
    def switch(self) -> Switch:
        return self.it.switch

    def release(self, slot: SlotName) -> Release:
        instance = self.it.bench.slots[slot].instance
        assert instance is not None
        return instance.release

    def deploy(self, *, rollback: bool = False, recycle: bool = False) -> DeployRun:
        """Return a deploy of what is on green; only its activities are run."""
        unused: Any = None
        plan = Plan(rollback=rollback, recycle=recycle)
        return DeployRun(a_deploy(), plan, self.release(GREEN), effects=unused, transitions=unused)


@asynccontextmanager
async def stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    async with ready(folder, monkeypatch) as it, HttpProber() as prober:
        activities = Executor(
            settings=it.bench.settings.model_copy(update={"keep_warm_seconds": 0}),
            slots=it.bench.slots,
            switch=it.switch,
            plane=it.bench.plane,
            prober=prober,
            requests=RequestCollector(folder, it.database.requests),
            save_ramp=it.database.deploys.save_ramp,
        )
        yield Stage(it, activities)


@pytest.mark.parametrize("rollback", [False, True])
async def test_a_switch_adds_its_version_and_a_rollback_takes_one_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rollback: bool
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        blue, green = Version(BLUE, on.release(BLUE)), Version(GREEN, on.release(GREEN))
        switched = await on.activities.switch(on.deploy(rollback=rollback))
        went_back = "deploy d1 went back from it" if rollback else None
        assert switched.versions == VersionChange(green, back=rollback, complaint=went_back)
        reverted = await on.activities.revert(on.deploy(rollback=rollback))
        assert reverted.versions == VersionChange(blue if rollback else None, back=not rollback)


async def test_a_recycle_moves_its_version_to_the_other_slot_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        blue, green = Version(BLUE, on.release(BLUE)), Version(GREEN, on.release(GREEN))
        switched = await on.activities.switch(on.deploy(recycle=True))
        assert switched.versions == VersionChange(green, moved=True)
        reverted = await on.activities.revert(on.deploy(recycle=True))
        assert reverted.versions == VersionChange(blue, moved=True)


async def test_a_recycle_starts_nothing_but_what_was_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        run = on.deploy(recycle=True)
        run.release = run.release.model_copy(update={"problem": "it holds version v9 by now"})
        outcome = await on.activities.preflight(run)
        assert (outcome.has_passed, outcome.message) == (False, "it holds version v9 by now")


@pytest.mark.parametrize(("limit", "passes"), [(1, False), (10_000, True)])
async def test_a_fresh_worker_that_is_over_the_limit_does_not_pass_the_gate_of_a_recycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, passes: bool
) -> None:
    async def gate(*_: Any, **__: Any) -> GateResult:
        return GateResult(verdict=Verdict.PASS, message="fine", probes=[])

    async with stage(tmp_path, monkeypatch) as on:
        monkeypatch.setattr(executor, "health_gate", gate)
        settings = on.it.bench.settings.model_copy(update={"worker_max_rss_mb": limit})
        monkeypatch.setattr(on.activities, "_settings", settings)
        assert (await on.activities.health(on.deploy())).has_passed, "a deploy has no such gate"
        outcome = await on.activities.health(on.deploy(recycle=True))
        assert outcome.has_passed is passes
        assert passes or outcome.message.endswith("so WORKER_MAX_RSS_MB=1 is too low")


async def test_a_flip_that_failed_changes_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        await kill(on.it.bench.green)
        for flip in (on.activities.switch, on.activities.revert):
            outcome = await flip(on.deploy())
            assert (outcome.has_passed, outcome.versions) == (False, None)


async def test_the_old_version_stays_while_it_is_the_only_one_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        assert (await on.activities.switch(on.deploy())).has_passed
        await kill(on.it.bench.green)
        warm = asyncio.create_task(on.activities.warm(on.deploy()))
        done, _ = await asyncio.wait([warm], timeout=0.3)
        assert not done
        await on.it.bench.green.stop()
        await on.it.bench.green.start(on.release(BLUE))
        assert (await asyncio.wait_for(warm, 5)).has_passed


async def test_a_drain_empties_the_old_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        assert (await on.activities.switch(on.deploy())).has_passed
        assert (await on.activities.drain(on.deploy())).has_passed
        assert on.it.bench.blue.state is SlotState.EMPTY


async def test_a_hung_version_is_ended_without_waiting_for_its_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        assert (await on.activities.switch(on.deploy())).has_passed
        instance = on.it.bench.blue.instance
        assert instance is not None
        instance.expected_to_exit = True  # as a failed liveness check does
        outcome = await on.activities.drain(on.deploy())
        assert "was dead" in outcome.message
        await eventually(lambda: not instance.alive)


async def test_the_next_preflight_ends_a_worker_that_a_failed_step_left_on_staging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        assert (await on.activities.preflight(on.deploy())).has_passed
        assert on.it.bench.green.instance is None


async def test_a_switch_says_that_without_a_public_port_there_is_no_ramp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = {"traffic_ramp": (0.5, 1.0), "public_port": 0}
    async with stage(tmp_path, monkeypatch) as on:
        on.activities._settings = on.activities._settings.model_copy(update=ramp)
        assert on.activities._settings.ramp == ()
        outcome = await on.activities.switch(on.deploy())
        assert outcome.message.endswith(", without a ramp, because PUBLIC_PORT=0")


async def test_a_fault_of_the_evidence_reverts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"keep_warm_seconds": 600, "keep_warm_foreign": True, "guard_seconds": 0.1}
    async with stage(tmp_path, monkeypatch) as on:
        on.activities._settings = on.activities._settings.model_copy(update=short)
        counted = RequestTotals(RequestCounts(begun=1_000, classes=(0, 0, 0, 0, 1_000)))
        monkeypatch.setattr(on.activities._requests, "totals", lambda _name: counted)
        for fault in (StoreError("locked"), ValueError("a bug")):
            evidence = AsyncMock(side_effect=fault)
            monkeypatch.setattr(on.activities._requests.store, "evidence", evidence)
            assert (await on.activities.switch(on.deploy())).has_passed
            outcome = await on.activities.guard(on.deploy())
            evidence.assert_awaited()
            assert (outcome.event, outcome.detail) == (
                Event.PASSED,
                GuardDetail(guarded_seconds=0.1, probes=1),
            )


@pytest.mark.parametrize("phase", ["guard", "warm"])
async def test_guard_and_warm_time_end_when_the_next_deploy_needs_staging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    long = {"keep_warm_seconds": 600, "keep_warm_foreign": True, "guard_seconds": 600}
    async with stage(tmp_path, monkeypatch) as on:
        on.activities._settings = on.activities._settings.model_copy(update=long)
        assert (await on.activities.switch(on.deploy())).has_passed
        waiting = asyncio.create_task(getattr(on.activities, phase)(on.deploy()))
        freeing = asyncio.create_task(on.it.bench.slots.free_staging())
        outcome = await asyncio.wait_for(waiting, 5)
        assert (outcome.event, outcome.message) == (Event.SUPERSEDED, "the next deploy has begun")
        assert on.it.bench.blue.serving  # it is drained by the next phase
        assert not freeing.done()
        assert (await on.activities.drain(on.deploy())).has_passed
        await asyncio.wait_for(freeing, 5)
