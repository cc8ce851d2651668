"""After the daemon's death its worker serves on, until a fresh one is ready: no request is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.system import sockdiag
from tests.acceptance.support import IDLE_GRACE_SECONDS, kill_the_daemon_under_load
from tests.faults.support import start_again
from tests.harness import DaemonProcess, Setting, bundled_worker, eventually
from tests.integration.support import (
    everything_agrees,
    get,
    public_version,
    release,
    scripted_daemon,
    slot,
    state_file,
    until_phase,
)
from tests.loadclient import Kind, WebSocketTraffic, bundled_worker_mix


async def worker(daemon: DaemonProcess) -> int:
    return int((await get(daemon.public_port))[1]["pid"])


async def test_a_killed_daemon_and_its_successor_lose_no_request(tmp_path: Path) -> None:
    """Not with a WebSocket open either, which delays only the old worker's end."""
    mix: list[Kind] = [
        *bundled_worker_mix(pause=0.7 * IDLE_GRACE_SECONDS),
        WebSocketTraffic("WebSocket", loops=1),
    ]
    settings: dict[str, Setting] = {
        **bundled_worker(idle_grace=IDLE_GRACE_SECONDS),
        "DRAIN_TIMEOUT_SECONDS": 4,
    }
    restarts = await kill_the_daemon_under_load(tmp_path, settings, mix, times=3)
    print(restarts.report.describe())  # noqa: T201 - what was measured stands in the output
    assert restarts.lost == [0, 0, 0]
    assert restarts.report.kinds["one connection per request"].latency_ms(1) < 2000


@pytest.mark.parametrize("kit", [True, False])
async def test_an_open_request_delays_only_the_old_worker_s_own_end(
    tmp_path: Path, kit: bool
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2", kit=kit)
        assert (await daemon.deploy()).status == 200
        old, before = await worker(daemon), state_file(daemon)
        held = asyncio.create_task(get(daemon.public_port, "/held"))
        await eventually((daemon.worker_directory / "held").exists)
        await daemon.kill()
        await daemon.start()
        fresh = await worker(daemon)
        assert fresh != old
        assert old in daemon.leftovers()
        after = state_file(daemon)
        assert (after["active_port"], after["mode"]) == (before["active_port"], before["mode"])
        await everything_agrees(daemon)
        (daemon.worker_directory / "let_go").touch()
        assert (await held)[1]["version"] == "v2"
        await eventually(lambda: daemon.leftovers() == [fresh])


async def test_a_daemon_killed_again_and_again_leaves_one_worker_on_the_same_port(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        active = state_file(daemon)["active_port"]
        for _ in range(3):
            await daemon.kill()
            await daemon.start()
            await eventually(lambda: len(daemon.leftovers()) == 1)
            assert state_file(daemon)["active_port"] == active
            await everything_agrees(daemon)
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "switched"
        assert await public_version(daemon) == "v2"
        await daemon.kill()
        await daemon.start()
        assert await public_version(daemon) == "v2"
        await everything_agrees(daemon)


async def test_a_daemon_killed_before_its_fresh_worker_is_ready_leaves_the_old_one_serving(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        old = await worker(daemon)
        release(daemon, "v1", health_delay=30)  # ready by its first answer, which does not come
        await daemon.kill()
        task = asyncio.create_task(daemon.start())
        await eventually(lambda: len(daemon.leftovers()) == 2)
        assert await worker(daemon) == old
        assert (await daemon.request("GET", "/readyz")).status == 200
        health = (await daemon.request("GET", "/health")).json["checks"]["port_active"]
        assert "the worker of an earlier daemon serves until then" in health["message"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await daemon.kill()
        assert await worker(daemon) == old
        release(daemon, "v1")
        await daemon.start()
        await eventually(lambda: len(daemon.leftovers()) == 1)
        assert await worker(daemon) != old
        await everything_agrees(daemon)


async def test_the_old_worker_serves_on_while_the_fresh_one_fails_and_until_a_good_deploy(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        old = await worker(daemon)
        release(daemon, "v1", exit=3)
        await daemon.kill()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await daemon.start()
        assert await worker(daemon) == old
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "switched"
        assert await public_version(daemon) == "v2"
        await eventually(lambda: old not in daemon.leftovers())


async def test_a_warm_version_and_the_active_one_are_both_replaced(tmp_path: Path) -> None:
    settings: dict[str, Setting] = {"KEEP_WARM_FOREIGN": "true", "KEEP_WARM_SECONDS": 60}
    async with scripted_daemon(tmp_path, settings) as daemon:
        release(daemon, "v2")
        assert (await daemon.deploy()).status == 200
        await until_phase(daemon, "warm")
        old = daemon.leftovers()
        await start_again_after_kill(daemon)
        assert await public_version(daemon) == "v2"
        await eventually(lambda: len(daemon.leftovers()) == 1)
        assert not set(old) & set(daemon.leftovers())
        await everything_agrees(daemon)


async def start_again_after_kill(daemon: DaemonProcess) -> Any:
    await daemon.kill()
    return await start_again(daemon)


async def test_with_only_a_warm_version_left_the_active_one_is_started(tmp_path: Path) -> None:
    settings: dict[str, Setting] = {"KEEP_WARM_FOREIGN": "true", "KEEP_WARM_SECONDS": 60}
    async with scripted_daemon(tmp_path, settings) as daemon:
        release(daemon, "v2")
        assert (await daemon.deploy()).status == 200
        await until_phase(daemon, "warm")
        active = slot(await daemon.status(), "active")["pid"]
        await daemon.kill()
        os.kill(active, signal.SIGKILL)
        await daemon.start()
        assert await public_version(daemon) == "v2"
        await eventually(lambda: len(daemon.leftovers()) == 1)
        await everything_agrees(daemon)


async def test_a_worker_that_binds_its_own_port_is_ended_while_clients_wait(
    tmp_path: Path,
) -> None:
    deaf = "trap '' TERM; exec python -m http.server --bind 127.0.0.1 $1\n"
    files = {"deaf.sh": deaf, "ok.json": "{}"}
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": "sh deaf.sh {port}",
        "HEALTH_PATH": "/",
        "STOP_TIMEOUT_SECONDS": 1,
    }
    async with DaemonProcess.running(tmp_path, settings, files=files) as daemon:
        old = daemon.leftovers()
        await daemon.kill()
        task = asyncio.create_task(daemon.start())
        await eventually(lambda: sockdiag.listeners(daemon.public_port))
        assert set(old) & set(daemon.leftovers())
        status, _ = await get(daemon.public_port, "/ok.json")
        assert status == 200
        await task
        assert not set(old) & set(daemon.leftovers())


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # each is in the way of the other
async def test_a_changed_public_host_ends_the_old_worker_first(tmp_path: Path, host: str) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        for changed in (host, "127.0.0.1"):
            old = daemon.leftovers()
            await daemon.kill()
            daemon.settings["PUBLIC_HOST"] = changed
            await daemon.start()
            assert await public_version(daemon) == "v1"
            assert not set(old) & set(daemon.leftovers())


async def test_sockets_that_cannot_be_taken_back_end_the_old_worker_first(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        old = daemon.leftovers()
        await daemon.kill()
        refusing = (
            "import runpy; from atlas_supervisor.system import pidfd\n"
            "def refuse(pid, number): raise PermissionError(1, 'not permitted')\n"
            "pidfd.copy_descriptor = refuse\n"
            "runpy.run_module('atlas_supervisor', run_name='__main__', alter_sys=True)"
        )
        daemon.program = ("-c", refusing)
        await daemon.start()
        assert await public_version(daemon) == "v1"
        assert not set(old) & set(daemon.leftovers())
        await everything_agrees(daemon)
