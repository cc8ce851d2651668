"""Users' requests, counted by real workers and read by a real daemon."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import aiohttp

from atlas_worker.contract import PROBE_HEADER, RINGS_DIRECTORY, SMOKE_HEADER
from atlas_worker.contract.request_file import SUFFIX
from tests.harness import DaemonProcess, bundled_worker
from tests.integration.support import rows, slot

_SAMPLE = re.compile(
    r'^atlas_requests_total\{code="(\w+)",slot="(\w+)",version="(\w+)"\} (\S+)$', re.MULTILINE
)


async def counted(daemon: DaemonProcess, version: str = "v1") -> dict[str, int]:
    """Return the counts of a version by code, those of both slots together; without zeros."""
    found: dict[str, int] = {}
    for code, _, of_version, value in _SAMPLE.findall(
        (await daemon.request("GET", "/metrics")).json
    ):
        if of_version == version and float(value):
            found[code] = found.get(code, 0) + int(float(value))
    return found


async def until_counted(daemon: DaemonProcess, **codes: int) -> None:
    wanted = {code.lstrip("_"): count for code, count in codes.items()}
    deadline = asyncio.get_running_loop().time() + 15
    while (found := await counted(daemon)) != wanted:
        assert asyncio.get_running_loop().time() < deadline, f"{found} instead of {wanted}"
        await asyncio.sleep(0.05)


async def ask(daemon: DaemonProcess, path: str, times: int = 1, **headers: str) -> None:
    base = f"http://127.0.0.1:{daemon.public_port}"
    async with aiohttp.ClientSession(base, headers=headers) as session:
        for _ in range(times):
            async with session.get(path) as answer:
                await answer.read()


async def leave(daemon: DaemonProcess, path: str) -> asyncio.StreamWriter:
    """Send a request, and return its connection once the worker has begun with it."""
    _, writer = await asyncio.open_connection("127.0.0.1", daemon.public_port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await writer.drain()
    return writer


def request_files(daemon: DaemonProcess) -> list[Path]:
    return list((daemon.state_dir / RINGS_DIRECTORY).glob(f"*{SUFFIX}"))


async def active(daemon: DaemonProcess) -> dict[str, Any]:
    return slot(await daemon.status(), "active")


async def test_users_requests_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    async with DaemonProcess.running(tmp_path, bundled_worker(idle_grace=0.2)) as daemon:
        await ask(daemon, "/", 20)
        await ask(daemon, "/nothing", 3)
        await ask(daemon, "/", 5, **{PROBE_HEADER: "1"})
        await ask(daemon, "/", 5, **{SMOKE_HEADER: "1"})
        (await leave(daemon, "/slow?seconds=0.3")).close()
        await until_counted(daemon, _2xx=20, _4xx=3, client_left=1)
        figures = (await active(daemon))["requests"]
        assert figures["error_share"] == 0.0
        assert 0 < figures["per_second"] <= 24
        assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]

        # A request in progress when its worker is killed has failed.
        writer = await leave(daemon, "/slow?seconds=30")
        await asyncio.sleep(0.2)
        os.kill((await active(daemon))["pid"], signal.SIGKILL)
        await until_counted(daemon, _2xx=20, _4xx=3, client_left=1, cut=1)
        writer.close()

        # The next worker is the next instance. A daemon that is killed loses no count.
        await daemon.until_ready()
        await daemon.kill()
        await ask(daemon, "/", 7)
        await daemon.start()
        deadline = asyncio.get_running_loop().time() + 15
        while (await counted(daemon)).get("2xx", 0) < 7:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
        assert (await active(daemon))["restarts"] == 1
        # The hour by version and minute has them all, over both the restart and the kill.
        hour = (await daemon.request("GET", "/deploy/requests")).json
        assert {each["version"] for each in hour["minutes"]} == {"v1"}
        assert sum(each["requests"] for each in hour["minutes"]) == 32
        assert sum(each["failed"] for each in hour["minutes"]) == 1
        assert (hour["switches"], hour["uncounted"]) == ([], [])
    assert request_files(daemon) == []
    assert (
        sum(
            json.loads(counts)[0]
            for (counts,) in rows(daemon, "SELECT counts FROM request_minutes")
        )
        == 32
    )


async def test_the_relay_counts_the_requests_of_workers_without_the_kit(tmp_path: Path) -> None:
    settings = {"WORKER_COMMAND": "python -m http.server {port}", "HEALTH_PATH": "/"}
    async with DaemonProcess.running(tmp_path, settings) as daemon:
        await ask(daemon, "/", 5)
        await ask(daemon, "/nothing", 2)
        await until_counted(daemon, _2xx=5, _4xx=2)
        assert (await active(daemon))["requests"]["error_share"] == 0.0
        daemon.settings["RELAY_COUNT_REQUESTS"] = "false"
        await daemon.stop()
        await daemon.start()
        await ask(daemon, "/", 5)
        assert (await active(daemon))["requests"] is None
        assert await counted(daemon) == {}
        hour = (await daemon.request("GET", "/deploy/requests")).json
        assert hour["uncounted"] == ["v1"]
        assert sum(each["requests"] for each in hour["minutes"]) == 7
