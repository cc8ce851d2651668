"""GET /metrics of a real daemon: its numbers after real deploys, and a real Prometheus."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import DaemonProcess, Setting, free_ports, missing
from tests.integration.support import get, release, scripted_daemon, until_phase

PROMISED = (
    "deploy_switch_total",
    "deploy_switch_success",
    "deploy_switch_fail",
    "deploy_bluegreen_runs",
)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scraped(daemon: DaemonProcess) -> Samples:
    answer = await daemon.request("GET", "/metrics")
    assert answer.status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.json)
        for sample in family.samples
    }


def number(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def promised(daemon: DaemonProcess) -> list[float]:
    samples = await scraped(daemon)
    return [number(samples, name) for name in PROMISED]


def check_gauges(samples: Samples) -> None:
    """Check what is so while the first version runs in blue, and nothing else."""
    assert number(samples, "atlas_ready") == 1
    assert number(samples, "atlas_slot_state", slot="blue", state="running") == 1
    assert number(samples, "atlas_slot_state", slot="green", state="empty") == 1
    assert number(samples, "atlas_slot_active", slot="blue") == 1
    assert number(samples, "atlas_worker_up", slot="blue", version="v1") == 1
    memory = "atlas_worker_resident_memory_bytes"
    assert number(samples, memory, slot="blue", version="v1") > 1_000_000
    assert number(samples, "atlas_traffic_plane_info", plane="kernel") == 1
    assert number(samples, "atlas_process_open_fds") > 3
    assert number(samples, "atlas_database_write_duration_seconds_count") > 0


async def test_the_numbers_are_right_as_soon_as_a_deploy_is_answered(tmp_path: Path) -> None:
    warm: dict[str, Setting] = {"KEEP_WARM_SECONDS": 60, "KEEP_WARM_FOREIGN": "true"}
    async with scripted_daemon(tmp_path, warm) as daemon:
        assert await promised(daemon) == [0, 0, 0, 0]
        check_gauges(await scraped(daemon))

        release(daemon, "v2")
        assert (await daemon.deploy(dry_run="true")).json["result"] == "dry_run_passed"
        assert await promised(daemon) == [0, 0, 0, 1]

        assert (await daemon.deploy()).json["result"] == "switched"
        assert await promised(daemon) == [1, 1, 0, 2]

        back = await daemon.request("POST", "/deploy/rollback")  # it is warm: no deploy
        assert back.json["result"] == "rolled_back"
        assert await promised(daemon) == [2, 2, 0, 2]

        release(daemon, "v3", health=500)
        assert (await daemon.deploy()).json["result"] == "failed"
        assert await promised(daemon) == [2, 2, 0, 3]

        samples = await scraped(daemon)
        results = "atlas_deploy_results_total"
        for kind, result in (
            ("dry_run", "dry_run_passed"),
            ("deploy", "switched"),
            ("deploy", "rolled_back"),
            ("deploy", "failed"),
        ):
            assert number(samples, results, kind=kind, result=result) == 1
        steps = "atlas_deploy_step_duration_seconds_count"
        assert number(samples, steps, step="health", outcome="failed") == 1
        assert number(samples, "atlas_mode", mode="single") == 1
        assert number(samples, "atlas_probes_total", slot="green", verdict="fail") >= 1


async def test_a_rollback_through_the_gates_is_a_switch_and_no_run(tmp_path: Path) -> None:
    settings: dict[str, Setting] = {"RELEASES_DIR": tmp_path / "releases"}
    for name in ("1", "2"):
        folder = tmp_path / "releases" / name
        folder.mkdir(parents=True)
        (folder / "VERSION").write_text(name)
    async with scripted_daemon(tmp_path, settings) as daemon:
        for name in ("1", "2"):
            record = (await daemon.deploy(name)).json
            await daemon.ended(record["deploy_id"])
        back = await daemon.request("POST", "/deploy/rollback")
        assert (back.json["result"], back.json["version"]) == ("switched", "1")
        assert await promised(daemon) == [3, 3, 0, 2]
        begun = number(await scraped(daemon), "atlas_deploys_total", kind="rollback")
        assert begun == 1


async def test_a_switch_that_could_not_be_done_counts_as_failed_each_time(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2", health_delay=0.1)
        deploying = asyncio.create_task(daemon.deploy())
        await until_phase(daemon, "health")
        in_the_way = daemon.state_dir / ".deploy_state.json.new"
        in_the_way.mkdir()
        assert (await deploying).status == 503
        assert await promised(daemon) == [1, 0, 1, 1]

        assert (await daemon.request("POST", "/deploy/switch")).status == 503
        assert await promised(daemon) == [2, 0, 2, 1]
        samples = await scraped(daemon)
        assert number(samples, "atlas_state_file_write_failures_total") == 2
        assert number(samples, "atlas_deploy_in_progress") == 1

        in_the_way.rmdir()
        assert (await daemon.request("POST", "/deploy/switch")).status == 200
        assert await promised(daemon) == [3, 1, 2, 1]


async def test_the_relay_counts_bytes_both_ways(tmp_path: Path) -> None:
    command: dict[str, Setting] = {"WORKER_COMMAND": "python -m http.server {port}"}
    more: dict[str, Setting] = {**command, "HEALTH_PATH": "/"}
    async with DaemonProcess.running(tmp_path, more) as daemon:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{daemon.public_port}/VERSION"
            async with session.get(url) as answer:
                body = await answer.read()
        samples = await scraped(daemon)

    # The health asks through the public port as well, every two seconds.
    assert number(samples, "atlas_relay_connections_total", purpose="public") in {1, 2}
    moved = "atlas_relay_bytes_total"
    assert number(samples, moved, purpose="public", direction="from_clients") > 20
    assert number(samples, moved, purpose="public", direction="to_clients") > len(body)


# Prometheus' own programs.


@pytest.mark.skipif(bool(missing("promtool")), reason="promtool is not installed")
async def test_promtool_complains_of_one_promised_name_and_of_nothing_else(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2")
        await daemon.deploy()
        text = (await daemon.request("GET", "/metrics")).json
    done = await asyncio.to_thread(
        subprocess.run,
        ["promtool", "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    complaint = 'deploy_switch_total non-counter metrics should not have "_total" suffix'
    assert (done.stdout + done.stderr).strip() == complaint


@asynccontextmanager
async def prometheus(folder: Path, target: int) -> AsyncIterator[str]:
    """Run a Prometheus that scrapes this port often; yield where its API is."""
    (port,) = free_ports(1)
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}\n"
        "scrape_configs:\n"
        "  - job_name: atlas\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{target}']}}]\n"
    )
    with (folder / "prometheus.out").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def query(session: aiohttp.ClientSession, base: str, expression: str) -> list[Any]:
    """Ask Prometheus; nothing while it has not come up."""
    try:
        async with session.get(f"{base}/api/v1/query", params={"query": expression}) as answer:
            if answer.status != 200:
                return []
            found: list[Any] = (await answer.json())["data"]["result"]
            return found
    except aiohttp.ClientConnectionError:
        return []


@pytest.mark.skipif(bool(missing("prometheus")), reason="prometheus is not installed")
async def test_a_real_prometheus_scrapes_the_daemon_and_sees_a_deploy(tmp_path: Path) -> None:
    async with (
        scripted_daemon(tmp_path) as daemon,
        prometheus(tmp_path, daemon.control_port) as base,
        aiohttp.ClientSession() as session,
    ):
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "switched"
        await get(daemon.public_port)

        async def until_seen(expression: str) -> dict[str, Any]:
            async with asyncio.timeout(20):
                while not (found := await query(session, base, expression)):  # noqa: ASYNC110  # it tells nobody
                    await asyncio.sleep(0.05)
            series: dict[str, Any] = found[0]
            return series

        await until_seen('up{job="atlas"} == 1')
        switched = await until_seen('deploy_switch_total{job="atlas"} == 1')
        assert switched["metric"]["__name__"] == "deploy_switch_total"
        await until_seen("deploy_switch_success == 1 and deploy_switch_fail == 0")
        await until_seen("deploy_bluegreen_runs == 1 and canary_requests == 0")
        await until_seen('canary_vision_count{arm="canary"} == 0')
        await until_seen('atlas_worker_up{slot="green", version="v2"} == 1')
        async with session.get(f"{base}/api/v1/metadata") as answer:
            metadata = (await answer.json())["data"]
        assert metadata["deploy_switch_total"][0]["type"] == "gauge"
        assert metadata["canary_vision"][0]["type"] == "histogram"
