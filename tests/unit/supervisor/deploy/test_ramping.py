"""A ramp's activity on real slots and files, with requests and verdicts that are made up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.deploy import ramping
from atlas_supervisor.deploy.machine import Event, Phase, Plan, StepOutcome
from atlas_supervisor.deploy.ramping import RampControl
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.model.deploy import DeployRecord
from atlas_supervisor.model.judgement import Judgement
from atlas_supervisor.model.probe import ProbeResult
from atlas_supervisor.model.ramp import Ramp
from atlas_supervisor.model.requests import RequestCounts, RequestTotals
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import now
from tests.unit.supervisor.deploy.support import Ready, kill, ready
from tests.unit.supervisor.store.support import a_deploy

BLUE, GREEN = SlotName.BLUE, SlotName.GREEN
FAILS = Judgement(verdict=Verdict.FAIL, against=250, why="9 of 40 requests failed, and 3 of 760")
UNSURE = Judgement(verdict=Verdict.INCONCLUSIVE, against=1, why="few requests")


class Played:
    """Plays the collector, the comparison and the prober."""

    def __init__(self) -> None:
        self.judgements: list[Judgement | Exception] = []
        self.counts: dict[str, list[tuple[int, int]]] = {}
        """By instance, requests and failed ones at each look; the last ones stay."""
        self.weights: list[float] = []
        self.begun_with: list[Any] = []
        self.probed = Verdict.PASS

    def compared(self, _requests: object, *, new: str, old: str, saved: Any) -> Played:
        self.begun_with.append((new[:4], old[:4], saved))
        return self

    def set_weight(self, weight: float) -> None:
        self.weights.append(weight)

    def look(self) -> Judgement:
        found = self.judgements.pop(0) if len(self.judgements) > 1 else self.judgements[0]
        if isinstance(found, Exception):
            raise found
        return found

    def saved(self) -> dict[str, int]:
        return {"looks": 1}

    def totals(self, instance: str) -> RequestTotals | None:
        found = self.counts.get(instance)
        if not found:
            return None
        requests, failed = found.pop(0) if len(found) > 1 else found[0]
        return RequestTotals(RequestCounts(requests, (0, requests - failed, 0, 0, failed)))

    async def probe(self, *_: object, **__: object) -> ProbeResult:
        return ProbeResult(verdict=self.probed, status=500, duration_ms=1, message="answered 500")


@dataclass
class Stage:
    it: Ready
    played: Played
    control: RampControl
    run: DeployRun
    saved: list[DeployRecord] = field(default_factory=list)

    def instance(self, slot: SlotName) -> str:
        found = self.it.bench.slots[slot].instance
        assert found is not None
        return found.name

    def ramp(self) -> Ramp:
        assert self.run.record.ramp is not None
        return self.run.record.ramp

    async def step(self) -> StepOutcome:
        return await asyncio.wait_for(self.control.step(self.run), 8)


@asynccontextmanager
async def stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[Stage]:
    played: Any = Played()
    monkeypatch.setattr(ramping, "Comparison", played.compared)
    monkeypatch.setattr(ramping, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(ramping, "SAVE_SECONDS", 0.0)
    async with ready(folder, monkeypatch) as it:
        played.judgements = [UNSURE]
        saved: list[DeployRecord] = []

        async def save(record: DeployRecord) -> None:
            saved.append(record)
            raise StoreError("the disk is full")  # which ends no ramp

        changes = {"traffic_step_seconds": 0, "health_interval_seconds": 0.01, **settings}
        control = RampControl(
            settings=it.bench.settings.model_copy(update=changes),
            slots=it.bench.slots,
            switch=it.switch,
            plane=it.bench.plane,
            prober=played,
            requests=played,
            save=save,
        )
        release = it.bench.green.instance.release if it.bench.green.instance else None
        assert release is not None
        ramp = Ramp.begun((0.05, 0.25, 1), 0, now())
        run = DeployRun(
            a_deploy(ramp=ramp),
            Plan(),
            release,
            effects=played,
            transitions=played,
            phase=Phase.RAMP,
        )
        yield Stage(it, played, control, run, saved)


async def test_a_step_waits_for_its_requests_and_tells_both_versions_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch, traffic_min_requests=50) as on:
        new, old = on.instance(GREEN), on.instance(BLUE)
        # Each look reads them twice at first: where the step begins, and since then.
        on.played.counts = {new: [(10, 1), (10, 1), (40, 1), (60, 3)], old: [(900, 4), (950, 5)]}
        outcome = await on.step()
        assert outcome.event is Event.STEP_PASSED
        assert outcome.message.startswith("step 2 of 3, green gets 25 %, after 5 % for 0 s: 50 ")
        assert outcome.message.endswith("requests, 2 failed; old version: 50 requests, 1 failed")
        assert on.it.state.state.staging_weight == 0.05
        assert (on.played.weights, on.played.begun_with) == ([0.05], [("gree", "blue", None)])
        assert (on.ramp().requests_needed, on.ramp().failed_requests) == (0, 2)
        kept = on.saved[-1].ramp
        assert kept is not None
        assert kept.saved["comparison"] == {"looks": 1}


async def test_proof_and_failing_probes_revert_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch, traffic_step_seconds=60) as on:
        on.played.judgements = [UNSURE, FAILS]
        outcome = await on.step()
        assert outcome.event is Event.FAILED
        assert outcome.message.startswith("9 of 40 requests failed, and 3 of 760 (at 5 % for")
        on.played.judgements, on.played.probed = [UNSURE], Verdict.FAIL
        outcome = await on.step()
        assert outcome.event is Event.FAILED
        failed = "the new version failed 3 probes in a row: answered 500 (at 5 % for"
        assert outcome.message.startswith(failed)


async def test_a_fault_of_the_evidence_reverts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        on.played.judgements = [ValueError("a bug")]
        assert (await on.step()).event is Event.STEP_PASSED
        assert on.ramp().judgement is None


async def test_without_counts_time_decides_and_the_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        outcome = await on.step()
        assert outcome.event is Event.STEP_PASSED
        assert "its requests are not counted" in outcome.message
        assert on.ramp().requests_needed is None


async def test_a_share_that_can_not_be_written_is_tried_again_and_its_time_begins_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        in_the_way = tmp_path / ".deploy_state.json.new"
        in_the_way.mkdir()
        step = asyncio.create_task(on.step())
        done, _ = await asyncio.wait([step], timeout=0.3)
        assert not done
        assert on.ramp().waits_for == "both versions to serve with their shares"
        in_the_way.rmdir()
        assert (await step).event is Event.STEP_PASSED


async def test_a_dead_version_is_no_ramp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        await kill(on.it.bench.green)
        assert (await on.step()).event is Event.STAGING_DIED


async def test_new_connections_go_to_the_new_version_while_the_old_one_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        await on.it.switch.open_split("d1")
        await on.it.switch.set_weight(0.05)
        await kill(on.it.bench.blue)
        assert await on.it.switch.follow_active() == 1
        assert on.it.state.state.staging_weight == 0.05
        assert on.it.bench.plane.policy.weights[GREEN] == 1
