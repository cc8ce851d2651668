"""A worker beyond a limit is replaced by a fresh one of its release, and users notice nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.harness import DaemonProcess, Setting
from tests.integration.support import (
    everything_agrees,
    get,
    public_version,
    release,
    releases,
    roll_back,
    rows,
    scripted_daemon,
    slot,
)

QUICK: dict[str, Setting] = {"DRAIN_QUIET_SECONDS": 0.1, "HEALTH_PROBES": 1}


async def recycled(
    daemon: DaemonProcess, wanted: Callable[[dict[str, Any]], bool], *, within: float = 15.0
) -> dict[str, Any]:
    """Wait for a recycle that is as wanted, and return its record."""
    async with asyncio.timeout(within):
        while True:
            last = (await daemon.status())["last_deploy"]
            if last is not None and last["cause"] == "recycled" and wanted(last):
                record: dict[str, Any] = last
                return record
            await asyncio.sleep(0.02)


async def warning(daemon: DaemonProcess, name: str) -> dict[str, Any]:
    """Wait until a check warns, and return it."""
    async with asyncio.timeout(10):
        while True:
            check = (await daemon.request("GET", "/health")).json["checks"][name]
            if check["status"] == "warn":
                found: dict[str, Any] = check
                return found
            await asyncio.sleep(0.05)


def has_ended(record: dict[str, Any]) -> bool:
    return bool(record["phase"] == "ended")


def in_its_gates(record: dict[str, Any]) -> bool:
    return record["phase"] in {"launch", "smoke", "health"}


@asynccontextmanager
async def load(daemon: DaemonProcess) -> AsyncIterator[list[int]]:
    """Ask the public port again and again; every answer must be whole. Yields the pids."""
    pids: list[int] = []

    async def ask() -> None:
        while True:
            status, body = await get(daemon.public_port)
            assert status == 200
            pids.append(body["pid"])
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as clients:
        tasks = [clients.create_task(ask()) for _ in range(3)]
        yield pids
        for task in tasks:
            task.cancel()


async def test_a_leak_under_load_costs_no_request(tmp_path: Path) -> None:
    settings: dict[str, Setting] = {**QUICK, "WORKER_MAX_RSS_MB": 200}
    async with scripted_daemon(tmp_path, settings) as daemon:
        release(daemon, "v1", leak=4)
        await daemon.ended((await daemon.deploy()).json["deploy_id"])  # now it leaks
        before = slot(await daemon.status(), "active")
        async with load(daemon) as pids:
            done = await recycled(daemon, lambda record: record["result"] == "switched")
            assert pids[0] == before["pid"]
            record = await daemon.ended(done["deploy_id"])
        after = slot(await daemon.status(), "active")
        assert after["slot"] != before["slot"]
        assert (after["version"], after["restarts"]) == ("v1", 0)
        assert pids[-1] == after["pid"] != before["pid"]
        steps = [step["name"] for step in record["steps"]]
        assert steps == ["preflight", "launch", "smoke", "health", "switch", "drain"]
        assert "with WORKER_MAX_RSS_MB=200" in record["transitions"][0]["cause"]
        (begun,) = [
            entry
            for entry in (await daemon.request("GET", "/deploy/audit")).json["entries"]
            if (entry["action"], entry["subject"]) == ("recycle", done["deploy_id"])
        ]
        assert (begun["actor"], begun["outcome"]) == ("supervisor", "begun")
        metrics = (await daemon.request("GET", "/metrics")).json
        assert 'atlas_recycles_total{reason="memory"} 1.0' in metrics
        assert 'atlas_deploy_results_total{kind="recycle",result="switched"} 1.0' in metrics
        await everything_agrees(daemon)


async def test_a_recycle_that_fails_changes_nothing_and_gives_way_to_a_request(
    tmp_path: Path,
) -> None:
    settings: dict[str, Setting] = {**QUICK, "WORKER_MAX_AGE_SECONDS": 0.5}
    async with scripted_daemon(tmp_path, settings) as daemon:
        worker = slot(await daemon.status(), "active")["pid"]
        release(daemon, "v1", health=500)
        record = await recycled(daemon, lambda last: has_ended(last) and last["result"] == "failed")
        check = await warning(daemon, "port_active")
        status = await daemon.status()
        assert (status["mode"], slot(status, "active")["pid"]) == ("bluegreen", worker)
        codes = [each["code"] for each in status["fallback_suggestions"]]
        assert codes == ["recycle_failed"]
        assert status["recycle"]["waits"].startswith("the next attempt is in ")
        assert record["deploy_id"] in status["recycle"]["failure"]
        assert status["recycle"]["failure"] == check["message"]

        release(daemon, "v2", health_delay=0.7)
        await daemon.deploy()
        record = await recycled(daemon, in_its_gates)
        reload = await daemon.request("POST", "/supervisor/reload")
        assert reload.status == 202, "a recycle refuses nothing that is requested"
        await daemon.stop_clients()
        record = await recycled(daemon, in_its_gates)
        release(daemon, "v3")
        answer = await daemon.deploy()
        assert (answer.status, answer.json["result"]) == (200, "switched")
        given_up = (await daemon.request("GET", f"/deploy/{record['deploy_id']}")).json
        assert (given_up["result"], given_up["cause"]) == ("aborted", "recycled")
        assert "it gives way to a request of uid:" in given_up["reason"]
        assert await public_version(daemon) == "v3"


async def test_a_rollback_after_a_recycle_goes_to_the_version_before(tmp_path: Path) -> None:
    """In the mode `single`, too: a recycle brings no new version."""
    folder = releases(tmp_path, "r1", "r2")
    settings = {**QUICK, "WORKER_MAX_AGE_SECONDS": 1.5, "RELEASES_DIR": folder}
    async with scripted_daemon(tmp_path, settings) as daemon:
        for name in ("r1", "r2"):
            await daemon.ended((await daemon.deploy(name)).json["deploy_id"])
        await daemon.request("POST", "/deploy/mode", json={"mode": "single"})
        record = await recycled(daemon, has_ended)
        assert (record["result"], record["release"]) == ("switched", "r2")
        names = [name for (name,) in rows(daemon, "SELECT release FROM versions ORDER BY id DESC")]
        assert names == ["r2", "r1", None]
        answer = await roll_back(daemon)
        assert (answer.status, answer.json["release"]) == (200, "r1")
        assert (await daemon.status())["mode"] == "single"
