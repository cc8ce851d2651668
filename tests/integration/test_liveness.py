"""The active worker dies, hangs or can't be started: what becomes of it, and what users see."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.harness import Setting, eventually
from tests.integration.support import (
    ask_to_die,
    get,
    public_version,
    release,
    scripted_daemon,
    slot,
)


@pytest.mark.fault(
    "Workers", "the active one killed, alone", "it is restarted at once; new requests wait"
)
async def test_a_worker_that_is_killed_is_started_again(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v1", die_on="/die")
        deployed = await daemon.deploy()
        assert deployed.status == 200
        await daemon.ended(deployed.json["deploy_id"])  # or the old version would take over
        pid = slot(await daemon.status(), "active")["pid"]
        await ask_to_die(daemon.public_port)
        # The public port refuses nobody meanwhile: the next request just waits.
        status, body = await get(daemon.public_port)
        assert status == 200
        assert body["pid"] != pid
        assert slot(await daemon.status(), "active")["restarts"] == 1


@pytest.mark.fault("Workers", "one that hangs", "it is stopped and started again")
async def test_a_worker_that_hangs_is_stopped_and_started_again(tmp_path: Path) -> None:
    settings: dict[str, Setting] = {
        "LIVENESS_INTERVAL_SECONDS": 0.1,
        "LIVENESS_FAILURES": 2,
        "HEALTH_TIMEOUT_SECONDS": 0.2,
    }
    async with scripted_daemon(tmp_path, settings) as daemon:
        release(daemon, "v2", stop_after_health=8)
        assert (await daemon.deploy()).status == 200
        first = slot(await daemon.status(), "active")["pid"]
        log = daemon.state_dir / "logs" / "supervisor.jsonl"
        await eventually(
            lambda: any(
                '"event": "worker_exited"' in line and f'"pid": {first},' in line
                for line in log.read_text().splitlines()
            ),
            what="the hung worker is stopped",
        )
        # Its place is taken by another: the public port just waits for it.
        assert (await get(daemon.public_port))[1]["pid"] != first


async def test_a_worker_whose_health_fails_is_not_restarted(tmp_path: Path) -> None:
    settings: dict[str, Setting] = {"LIVENESS_INTERVAL_SECONDS": 0.05, "LIVENESS_FAILURES": 1}
    files = {"behaviour.json": '{"health": 500}'}
    async with scripted_daemon(tmp_path, settings, files=files) as daemon:
        first = (await get(daemon.public_port))[1]
        while (body := (await get(daemon.public_port))[1])["health_asked"] < 6:
            assert body["pid"] == first["pid"]
        assert (await daemon.request("GET", "/readyz")).status == 200
        health = await daemon.request("GET", "/health")
        assert "answered 500" in health.json["checks"]["port_active"]["message"]


@pytest.mark.fault(
    "Workers", "one that stays down", "clients get 503, and the other slot can be deployed to"
)
async def test_a_worker_that_stays_down_is_reported_and_its_clients_are_refused(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, {"READY_TIMEOUT_SECONDS": 1}) as daemon:
        release(daemon, "v1", exit=3)
        os.kill(slot(await daemon.status(), "active")["pid"], signal.SIGKILL)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{daemon.public_port}/") as answer,
        ):
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
        assert (await daemon.request("GET", "/readyz")).status == 503
        status = await daemon.status()
        assert "exited with status 3" in slot(status, "active")["last_exit"]
        (suggestion,) = status["fallback_suggestions"]
        assert suggestion["code"] == "active_worker_crashes"
        assert "exited with status 3" in suggestion["message"]
        assert "there is no version to go back to" in suggestion["action"]
        release(daemon, "v1")
        async with asyncio.timeout(10):
            while (await daemon.request("GET", "/readyz")).status != 200:
                pass
        assert await public_version(daemon) == "v1"


@pytest.mark.fault(
    "Workers", "a crash loop", "growing delays up to a minute, never given up, and reported"
)
async def test_a_crash_loop_backs_off_and_says_so(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v1", exit=1)
        os.kill(slot(await daemon.status(), "active")["pid"], signal.SIGKILL)

        log = daemon.state_dir / "logs" / "supervisor.jsonl"
        await eventually(lambda: log.read_text().count("worker_failed") >= 2, what="two restarts")
        status = await daemon.status()
        assert slot(status, "active")["state"] in {"backoff", "starting"}
        assert slot(status, "active")["restarts"] >= 2
        # A version that works ends it.
        release(daemon, "v2")
        answer = await daemon.deploy()
        assert (answer.status, answer.json["result"]) == (200, "switched")
        assert await public_version(daemon) == "v2"
