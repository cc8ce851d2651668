"""Deploys and switches are counted from the transitions of the state machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_supervisor.api import examples
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.machine import FLIPS, Event, Phase, Plan
from atlas_supervisor.model.deploy import Result
from atlas_supervisor.telemetry.metrics import Metrics, instruments
from tests.unit.supervisor.deploy.fakes import DIED, FAIL, MemoryJournal, World, driven
from tests.unit.supervisor.telemetry.support import made, published, value

PROMISED = (
    "deploy_switch_total",
    "deploy_switch_success",
    "deploy_switch_fail",
    "deploy_bluegreen_runs",
)


def promised(metrics: Metrics) -> tuple[float | None, ...]:
    return tuple(value(metrics, name) for name in PROMISED)


async def after(metrics: Metrics, world: World, plan: Plan | None = None) -> None:
    """Run a deploy in this world, and count its transitions as the daemon does."""
    events = EventHub(MemoryJournal(), metrics.deploys.count)
    world.publish = events.publish
    async with driven(world, plan) as run:
        run.record = run.record.model_copy(update={"dry_run": run.plan.dry_run})
        events.publish(published(run.record, rollback=run.plan.rollback), None)


def results(metrics: Metrics, kind: str) -> dict[str, float]:
    found = {
        result.value: value(metrics, "atlas_deploy_results_total", kind=kind, result=result.value)
        for result in Result
    }
    return {result: count for result, count in found.items() if count}


def test_the_promised_counters_start_at_0_and_have_no_label(tmp_path: Path) -> None:
    assert promised(made(tmp_path)) == (0, 0, 0, 0)


def test_phases_that_flip_count_as_a_switch() -> None:
    assert {phase.value for phase in FLIPS} == instruments._FLIPS
    assert (Phase.ENDED.value, Event.PASSED.value) == (instruments._ENDED, instruments._PASSED)


async def test_a_successful_deploy_counts_as_one_run_and_one_switch(tmp_path: Path) -> None:
    metrics = made(tmp_path)
    await after(metrics, World())

    assert promised(metrics) == (1, 1, 0, 1)
    assert results(metrics, "deploy") == {"switched": 1}
    for step in ("preflight", "launch", "smoke", "health", "switch", "guard", "drain"):
        count = "atlas_deploy_step_duration_seconds_count"
        assert value(metrics, count, step=step, outcome="passed") == 1
    assert value(metrics, "atlas_last_deploy_duration_seconds", kind="deploy", result="switched")


async def test_a_dry_run_counts_as_a_run_without_a_switch(tmp_path: Path) -> None:
    metrics = made(tmp_path)
    await after(metrics, World(), Plan(dry_run=True))

    assert promised(metrics) == (0, 0, 0, 1)
    assert results(metrics, "dry_run") == {"dry_run_passed": 1}
    assert results(metrics, "deploy") == {}


async def test_a_failed_gate_counts_as_a_run_without_a_switch(tmp_path: Path) -> None:
    metrics, world = made(tmp_path), World()
    world.outcomes["smoke"] = [FAIL]
    await after(metrics, world)

    assert promised(metrics) == (0, 0, 0, 1)
    assert results(metrics, "deploy") == {"failed": 1}
    name = "atlas_deploy_step_duration_seconds_count"
    assert value(metrics, name, step="smoke", outcome="failed") == 1


async def test_a_switch_to_a_dead_instance_counts_as_failed(tmp_path: Path) -> None:
    metrics, world = made(tmp_path), World()
    world.outcomes["switch"] = [DIED]
    await after(metrics, world)

    assert promised(metrics) == (1, 0, 1, 1)


async def test_a_revert_counts_as_a_switch_and_as_a_second_result(
    tmp_path: Path,
) -> None:
    metrics, world = made(tmp_path), World()
    world.outcomes["guard"] = [FAIL]
    await after(metrics, world)

    assert promised(metrics) == (2, 2, 0, 1)
    assert results(metrics, "deploy") == {"switched": 1, "rolled_back": 1}


async def test_a_failed_revert_counts_as_a_failed_switch_without_a_new_result(
    tmp_path: Path,
) -> None:
    metrics, world = made(tmp_path), World()
    world.outcomes["guard"], world.outcomes["revert"] = [FAIL], [FAIL]
    await after(metrics, world)

    assert promised(metrics) == (2, 1, 1, 1)
    assert results(metrics, "deploy") == {"switched": 1}


async def test_a_rollback_through_the_gates_counts_as_a_switch_without_a_run(
    tmp_path: Path,
) -> None:
    metrics = made(tmp_path)
    await after(metrics, World(), Plan(rollback=True))

    assert promised(metrics) == (1, 1, 0, 0)
    assert value(metrics, "atlas_deploys_total", kind="rollback") == 1
    assert results(metrics, "rollback") == {"switched": 1}


async def test_transitions_that_a_failing_disk_delays_are_counted_once(tmp_path: Path) -> None:
    metrics, world = made(tmp_path), World()
    failures = iter([True] * 2)
    world.disk_fails = lambda: world.done == ["preflight"] and next(failures, False)
    await after(metrics, world)

    assert results(metrics, "deploy")
    total, success, fail, runs = promised(metrics)
    assert total == (success or 0) + (fail or 0) > 0
    assert runs == 1
    name = "atlas_deploy_step_duration_seconds_count"
    assert value(metrics, name, step="preflight", outcome="passed") == 1


def test_ended_deploys_are_forgotten(tmp_path: Path) -> None:
    metrics = made(tmp_path)
    for number in range(100):
        name = {"deploy_id": f"d-{number}"}
        metrics.deploys.count(published(examples.STARTED.model_copy(update=name)))
        ended = examples.FAILED.model_copy(update=name)
        metrics.deploys.count(published(ended, source="unstage", event="passed"))

    assert metrics.deploys._running == {}
    assert results(metrics, "deploy") == {"failed": 100}


@pytest.mark.parametrize("event", ["passed", "failed"])
def test_a_deploy_started_by_an_earlier_daemon_counts_its_result_without_a_duration(
    tmp_path: Path, event: str
) -> None:
    metrics = made(tmp_path)
    metrics.deploys.count(published(examples.SWITCHED, source="switch", event=event))

    assert results(metrics, "deploy") == {"switched": 1}
    assert value(metrics, "deploy_bluegreen_runs") == 0
    took = "atlas_last_deploy_duration_seconds"
    assert value(metrics, took, kind="deploy", result="switched") is None
