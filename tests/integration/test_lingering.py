"""An old instance that still has clients lingers beside the next one, and delays no deploy."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

from tests.harness import DaemonProcess, Setting, eventually, write_release
from tests.integration.support import (
    ask_to_die,
    everything_agrees,
    get,
    public_version,
    rows,
    scripted_daemon,
    slot,
    until_phase,
)

QUICK: dict[str, Setting] = {"HEALTH_PROBES": 1, "STOP_TIMEOUT_SECONDS": 0.5}
KIT = {"behaviour.json": '{"kit": true, "die_on": "/die"}'}
SLOW = {"behaviour.json": '{"kit": true, "health_delay": 5}'}

Download = asyncio.Task[tuple[int, Any]]


async def download(daemon: DaemonProcess) -> Download:
    """Begin one that lasts until `let_go`; returns once the active worker has it."""
    task = asyncio.create_task(get(daemon.public_port, "/held"))
    await asyncio.sleep(0)
    for _ in range(3):  # whoever is asked later has accepted it before
        await public_version(daemon)
    return task


async def deploy(daemon: DaemonProcess, release: str | None = None, **query: str) -> Any:
    answer = await daemon.deploy(release, **query)
    assert answer.status == 200, answer
    return answer.json


async def draining(daemon: DaemonProcess, *versions: str, requests: int = 1) -> dict[str, int]:
    """Wait until just these versions drain, each with so many requests; return their pids."""
    async with asyncio.timeout(15):
        while True:
            found = (await daemon.status())["draining"]
            told = [each["version"] for each in found if each["left"]]
            if told == list(versions):
                assert all(each["left"]["requests"] == requests for each in found), str(found)
                return {each["version"]: each["pid"] for each in found}
            await asyncio.sleep(0.02)


async def test_whatever_is_asked_for_meanwhile_waits_for_no_download_and_cuts_none(
    tmp_path: Path,
) -> None:
    for name in ("r1", "r2", "r3"):
        write_release(tmp_path / "releases" / name, name, KIT)
    write_release(tmp_path / "releases" / "slow", "slow", SLOW)
    settings = {**QUICK, "RELEASES_DIR": tmp_path / "releases", "KEEP_WARM_SECONDS": 60}
    async with scripted_daemon(tmp_path, settings, files=KIT) as daemon:
        downloads: dict[str, Download] = {}
        records = []
        downloads["v1"] = await download(daemon)
        records.append(await deploy(daemon, "r1"))
        downloads["r1"] = await download(daemon)
        records.append(await deploy(daemon, "r2"))
        downloads["r2"] = await download(daemon)
        # Warm: r2 leaves at once, and v1 has left its slot to it before.
        answer = await daemon.request("POST", "/deploy/rollback")
        assert (answer.status, answer.json["result"]) == (200, "rolled_back"), answer
        assert await public_version(daemon) == "r1"
        await draining(daemon, "v1", "r2")
        await everything_agrees(daemon)
        records.append(await deploy(daemon, "r3"))
        assert (await deploy(daemon, "r2", dry_run="true"))["result"] == "dry_run_passed"
        pids = await draining(daemon, "v1", "r2", "r1")
        shown = await daemon.status()
        for each in shown["draining"]:
            assert each["memory_mb"] > 1
            assert each["cpu_percent"] >= 0
        for each in shown["slots"]:
            assert (each["memory_mb"] is None) is (each["pid"] is None)
            assert (each["cpu_percent"] is None) is (each["pid"] is None)
        # Cold: r1 comes back in the slot of one r1 that still has a client.
        answer = await daemon.request("POST", "/deploy/rollback")
        assert (answer.status, answer.json["result"]) == (200, "switched"), answer
        assert answer.json["release"] == "r1"
        assert (await daemon.deploy("slow", wait="false")).status == 202
        await until_phase(daemon, "health")
        answer = await daemon.request("POST", "/deploy/abort")
        assert (answer.status, answer.json["result"]) == (200, "aborted"), answer
        await ask_to_die(daemon.public_port)
        assert await public_version(daemon) == "r1"
        assert slot(await daemon.status(), "active")["restarts"] == 1
        await everything_agrees(daemon)
        assert await draining(daemon, "v1", "r2", "r1") == pids
        for folder in (daemon.worker_directory, *(tmp_path / "releases").iterdir()):
            (folder / "let_go").touch()
        for version, held in downloads.items():
            assert (await held)[1]["version"] == version
        for record in records:
            ended = await daemon.ended(record["deploy_id"])
            assert ended["steps"][0]["duration_ms"] < 3000, ended
            assert ended["steps"][-1]["name"] == "drain"
            assert ended["steps"][-1]["detail"]["by_itself"]
            assert "nothing was cut" in ended["steps"][-1]["detail"]["message"]
        assert (await daemon.status())["draining"] == []


async def test_a_daemon_that_is_killed_or_ends_leaves_none_that_lingers(tmp_path: Path) -> None:
    settings = {**QUICK, "DRAIN_TIMEOUT_SECONDS": 1, "STOP_TIMEOUT_SECONDS": 0.3}
    async with scripted_daemon(tmp_path, settings, files=KIT) as daemon:
        first = await download(daemon)
        write_release(daemon.worker_directory, "v2")
        record = await deploy(daemon)
        await draining(daemon, "v1")
        await daemon.kill()
        assert len(daemon.leftovers()) == 2
        await daemon.start()
        await eventually(lambda: len(daemon.leftovers()) == 1)
        await everything_agrees(daemon)
        assert (await daemon.ended(record["deploy_id"]))["result"] == "switched"
        second = await download(daemon)
        write_release(daemon.worker_directory, "v3")
        record = await deploy(daemon)
        # The first client asks again as its worker is ended, and is served: none is refused.
        await draining(daemon, "v2", requests=2)
        await daemon.stop()  # which sees that nothing is left
        await asyncio.gather(first, second, return_exceptions=True)
        # It ended in order, so what it knew of the drain is written down.
        where = f"deploy_id = '{record['deploy_id']}' AND name = 'drain'"
        ((detail,),) = rows(daemon, f"SELECT detail FROM steps WHERE {where}")  # noqa: S608  # an id of ours
        assert json.loads(detail)["message"] == "the supervisor was stopped"
        assert json.loads(detail)["left"]["requests"] == 2


@asynccontextmanager
async def sockets(daemon: DaemonProcess, count: int) -> AsyncIterator[list[ClientConnection]]:
    """Open WebSockets to the bundled worker; each is known to be served."""
    opened = []
    try:
        for _ in range(count):
            client = await websockets.connect(f"ws://127.0.0.1:{daemon.public_port}/ws")
            opened.append(client)
            await client.send("hello")
            assert "hello" in str(await client.recv())
        yield opened
    finally:
        for client in opened:
            client.transport.abort()


async def deploy_version(daemon: DaemonProcess, version: str) -> tuple[dict[str, Any], float]:
    """Deploy what has just been put into place; return the record and how long it took."""
    write_release(daemon.worker_directory, version)
    began = time.monotonic()
    record: dict[str, Any] = await deploy(daemon)
    assert record["result"] == "switched", record
    return record, time.monotonic() - began


async def test_a_client_that_never_says_goodbye_is_cut_at_the_deadline_and_counted(
    tmp_path: Path,
) -> None:
    settings = {"WORKER_COMMAND": "python -m atlas_worker --fd {fd}"}
    limits = {**QUICK, "DRAIN_TIMEOUT_SECONDS": 2, "STOP_TIMEOUT_SECONDS": 3}
    async with (
        DaemonProcess.running(tmp_path, {**settings, **limits}) as daemon,
        sockets(daemon, 2) as (polite, mute),
    ):
        assert (await daemon.status())["traffic"]["plane"] == "kernel"
        mute.transport.pause_reading()
        record, _ = await deploy_version(daemon, "v2")
        second, _ = await deploy_version(daemon, "v3")
        old = (await daemon.status())["draining"][0]
        assert (old["version"], old["left"]["requests"]) == ("v1", 0)
        assert old["left"]["websockets"] in {1, 2}
        await asyncio.wait_for(polite.wait_closed(), 5)
        assert polite.close_code == 1012
        drain = (await daemon.ended(record["deploy_id"]))["steps"][-1]
        assert drain["detail"]["cut"]["websockets"] == 1, drain
        assert "cut off at the deadline of 2 s: 1 WebSocket" in drain["detail"]["message"]
        assert 1900 < drain["duration_ms"] < 5000
        await daemon.ended(second["deploy_id"])
        status = await daemon.status()
        assert (status["version"], status["draining"]) == ("v3", [])


async def test_one_that_binds_its_own_port_is_hurried_by_the_next_deploy(tmp_path: Path) -> None:
    command = "python -m atlas_worker --port {port}"
    # Time to exit in: what is in question is when its clients are told.
    settings = {**QUICK, "WORKER_COMMAND": command, "STOP_TIMEOUT_SECONDS": 10}
    async with (
        DaemonProcess.running(tmp_path, settings) as daemon,
        sockets(daemon, 5) as clients,
    ):
        assert (await daemon.status())["traffic"]["plane"] == "relay"
        record, _ = await deploy_version(daemon, "v2")
        # They are told one after the other within half of the drain time of 30 seconds.
        assert [client.close_code for client in clients].count(1012) <= 1
        _, seconds = await deploy_version(daemon, "v3")
        assert seconds < 5
        await eventually(lambda: [client.close_code for client in clients] == [1012] * 5)
        drain = (await daemon.ended(record["deploy_id"]))["steps"][-1]["detail"]
        assert drain["by_itself"]
        assert "nothing was cut" in drain["message"]
