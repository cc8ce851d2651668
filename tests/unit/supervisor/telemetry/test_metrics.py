"""The other instruments, the gauges, and the text of a scrape."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from atlas_supervisor.api import examples
from atlas_supervisor.model.drain import DrainCounts
from atlas_supervisor.model.slot import SlotName, SlotState
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.telemetry.metrics import machine
from atlas_supervisor.telemetry.metrics.exposition import Exposition
from atlas_supervisor.telemetry.metrics.machine import Running, WorkerUsage
from tests.unit.supervisor.api.support import eventually
from tests.unit.supervisor.telemetry.support import made, probe_result, read_gauges, value


def gauge(name: str, families: list, **labels: str) -> float:  # type: ignore[type-arg]  # Metric
    (found,) = [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return float(found)


# Feature canaries.


def test_each_feature_has_a_histogram_with_both_arms_before_its_first_call(tmp_path: Path) -> None:
    metrics = made(tmp_path)

    assert value(metrics, "canary_requests") == 0
    for feature in ("vision", "web", "optimizer"):
        for arm in ("canary", "stable"):
            assert value(metrics, f"canary_{feature}_count", arm=arm) == 0
            assert value(metrics, f"canary_{feature}_bucket", arm=arm, le="+Inf") == 0


def test_many_calls_of_a_feature_are_added_at_once_by_arm(tmp_path: Path) -> None:
    metrics = made(tmp_path)
    metrics.canaries.observe("vision", "canary", 0.02, count=1000)
    metrics.canaries.observe("vision", "canary", 100.0)
    metrics.canaries.observe("vision", "stable", 0.025)

    assert value(metrics, "canary_requests") == 1001
    assert value(metrics, "canary_vision_bucket", arm="canary", le="0.01") == 0
    assert value(metrics, "canary_vision_bucket", arm="canary", le="0.025") == 1000
    assert value(metrics, "canary_vision_bucket", arm="canary", le="60.0") == 1000
    assert value(metrics, "canary_vision_bucket", arm="canary", le="+Inf") == 1001
    assert value(metrics, "canary_vision_sum", arm="canary") == pytest.approx(120.0)
    assert value(metrics, "canary_vision_bucket", arm="stable", le="0.025") == 1


def test_an_unknown_feature_is_an_error_and_not_a_new_metric(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        made(tmp_path).canaries.observe("made_up", "canary", 0.1)


# Probes, writes, the loop, workers.


def test_a_probe_counts_for_its_slot(tmp_path: Path) -> None:
    metrics = made(tmp_path)
    metrics.probes.probed(8792, probe_result(Verdict.FAIL, 2.0))

    assert value(metrics, "atlas_probes_total", slot="green", verdict="fail") == 1
    assert value(metrics, "atlas_probes_total", slot="blue", verdict="fail") == 0
    assert value(metrics, "atlas_probe_duration_seconds_sum", slot="green") == 2.0


def test_a_failed_write_counts_as_a_write_and_as_a_failure(tmp_path: Path) -> None:
    metrics = made(tmp_path)
    metrics.storage.database.written(0.1, False)
    metrics.storage.database.written(0.1, True)

    assert value(metrics, "atlas_database_write_duration_seconds_count") == 2
    assert value(metrics, "atlas_database_write_failures_total") == 1
    assert value(metrics, "atlas_state_file_write_failures_total") == 0


async def test_a_blocked_event_loop_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SAMPLE_SECONDS", 0.01)
    metrics = made(tmp_path)
    sampling = asyncio.create_task(metrics.loop.sample())
    await asyncio.sleep(0)
    held_up = asyncio.get_running_loop().time() + 0.3
    while asyncio.get_running_loop().time() < held_up:
        pass
    await eventually(lambda: bool(value(metrics, "atlas_event_loop_lag_seconds_count")))
    sampling.cancel()

    assert (value(metrics, "atlas_event_loop_lag_seconds_sum") or 0) > 0.2
    assert value(metrics, "atlas_event_loop_lag_seconds_bucket", le="0.1") == 0


def test_memory_and_CPU_time_of_a_worker_are_absent_once_it_has_exited(
    tmp_path: Path,
) -> None:
    metrics = made(tmp_path)
    running = [Running("blue", "1", os.getpid()), Running("green", "2", 2**22 + 1)]
    WorkerUsage(metrics.registry, lambda: running)

    memory = "atlas_worker_resident_memory_bytes"
    assert (value(metrics, memory, slot="blue", version="1") or 0) > 1_000_000
    assert (value(metrics, "atlas_worker_cpu_seconds_total", slot="blue", version="1") or 0) > 0
    assert value(metrics, memory, slot="green", version="2") is None


# Gauges.


def test_a_slot_has_exactly_one_state(tmp_path: Path) -> None:
    families = read_gauges()
    for slot in SlotName:
        states = [
            gauge("atlas_slot_state", families, slot=slot.value, state=state.value)
            for state in SlotState
        ]
        assert sorted(states) == [0] * (len(SlotState) - 1) + [1]


def test_the_health_score_is_absent_until_there_is_one() -> None:
    scored = examples.STATUS.model_copy(update={"health_score": 0})
    unscored = examples.STATUS.model_copy(update={"health_score": None})

    assert gauge("atlas_health_score", read_gauges(scored)) == 0
    assert not [each for each in read_gauges(unscored) if each.name == "atlas_health_score"]


def test_draining_connections_are_as_reported_by_the_worker_or_else_as_last_observed() -> None:
    left = DrainCounts(requests=1, websockets=2, event_streams=0, idle=4)
    with_kit = examples.STATUS.draining[0].model_copy(
        update={"slot": SlotName.BLUE, "left": left, "connections": 99}
    )
    foreign = with_kit.model_copy(update={"left": None, "connections": 5})
    families = read_gauges(examples.STATUS.model_copy(update={"draining": [with_kit, foreign]}))

    assert gauge("atlas_draining_instances", families, slot="blue") == 2
    assert gauge("atlas_draining_connections", families, slot="blue") == 12
    assert gauge("atlas_draining_instances", families, slot="green") == 0


# The text.


async def test_the_text_has_counters_and_gauges(tmp_path: Path) -> None:
    metrics = made(tmp_path)
    metrics.requests.answered("GET", "/livez", 200, None)
    text = (await Exposition(metrics, read_gauges).text()).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}

    assert families["atlas_ready"].samples[0].value == 1
    assert families["atlas_build_info"].samples[0].labels["version"] == "1.2.3"
    assert "_created" not in text
    assert families["deploy_switch_total"].type == "gauge"


async def test_a_missing_state_directory_hides_its_own_metrics_only(tmp_path: Path) -> None:
    metrics = made(tmp_path / "gone")
    text = (await Exposition(metrics, read_gauges).text()).decode()

    assert "atlas_state_dir_free_bytes" not in text
    assert "atlas_ready 1.0" in text
