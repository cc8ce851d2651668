"""New connections wait while a command runs, through a switch, a reload and a kill."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.failpoints import reload
from tests.harness import DaemonProcess, bundled_worker, eventually
from tests.integration.support import (
    everything_agrees,
    get,
    held,
    release,
    rows,
    scripted_daemon,
    state_file,
)
from tests.loadclient import Load, bundled_worker_mix

CLIENTS = 30


async def until_waiting(daemon: DaemonProcess, count: int) -> None:
    """Return once so many connections wait."""
    async with asyncio.timeout(10):
        while (await held(daemon))["waiting"] < count:  # noqa: ASYNC110  # asks the daemon
            await asyncio.sleep(0.01)


@asynccontextmanager
async def waiting(daemon: DaemonProcess) -> AsyncIterator[set[str]]:
    """Let clients connect, and yield once all wait; then gather the versions that they get."""
    asked = [asyncio.create_task(get(daemon.public_port)) for _ in range(CLIENTS)]
    await until_waiting(daemon, CLIENTS)
    versions: set[str] = set()
    yield versions
    async with asyncio.timeout(20):
        for status, body in await asyncio.gather(*asked):
            assert status == 200
            versions.add(body["version"])


async def hold(daemon: DaemonProcess, seconds: float = 60) -> Any:
    answer = await daemon.request("POST", "/traffic/hold", json={"max_seconds": seconds})
    assert answer.status == 200, answer
    return answer.json


async def test_clients_that_wait_through_a_switch_and_a_reload_get_the_new_version(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, {"AUTO_SWITCH_ON_HEALTH": "false"}) as daemon:
        assert await held(daemon) is None
        refused = await daemon.request("POST", "/traffic/release")
        assert (refused.status, refused.json["error"]["code"]) == (409, "nothing_to_release")
        begun = await hold(daemon)
        refused = await daemon.request("POST", "/traffic/hold", json={"max_seconds": 5})
        assert (refused.status, refused.json["error"]["code"]) == (409, "already_held")
        async with waiting(daemon) as versions:
            release(daemon, "v2")
            assert (await daemon.deploy()).json["result"] == "awaiting_switch"
            switched = (await daemon.request("POST", "/deploy/switch")).json
            assert switched["result"] == "switched"
            (step,) = [each for each in switched["steps"] if each["name"] == "switch"]
            assert step["detail"]["landing"] == "right", step
            assert await reload(daemon) == 202
            after = await held(daemon)
            assert {**after, "waiting": 0} == begun
            assert after["waiting"] >= CLIENTS
            health = (await daemon.request("GET", "/health")).json["checks"]["port_active"]
            assert health["status"] == "pass", health
            assert (await daemon.request("GET", "/readyz")).status == 200
            metrics = await daemon.request("GET", "/metrics")
            assert "atlas_traffic_held 1.0" in metrics.json
            answer = await daemon.request(
                "POST", "/traffic/release", json={"hold_id": begun["hold_id"]}
            )
            assert answer.json["waiting"] >= CLIENTS
        assert versions == {"v2"}
        await everything_agrees(daemon)
        await hold(daemon, 1)
        async with waiting(daemon) as versions:
            pass
        assert versions == {"v2"}
        await eventually(lambda: not state_file(daemon)["announce_close"])
        assert state_file(daemon)["hold"] is None
        ends = rows(daemon, "SELECT outcome, detail FROM audit WHERE action = 'hold' ORDER BY id")
        assert [outcome for outcome, _ in ends] == ["held", "released"] * 2
        assert "its time was over" in ends[-1][1]
        assert rows(daemon, "SELECT COUNT(*) FROM audit WHERE action = 'steering'") == [(0,)]
        await hold(daemon)
        async with waiting(daemon):  # all are answered by a daemon that stops
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGTERM)


async def test_atlasctl_holds_while_a_command_runs_however_that_ends(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        begun, go = tmp_path / "begun", tmp_path / "go"

        async def atlasctl(*command: str) -> asyncio.subprocess.Process:
            client = (sys.executable, "-m", "atlas_supervisor.cli")
            return await asyncio.create_subprocess_exec(
                *(*client, "--env-file", str(daemon.env_file), "hold", "--", *command),
                cwd=tmp_path,
                stderr=asyncio.subprocess.PIPE,
            )

        running = await atlasctl(
            *("sh", "-c", "touch begun; while [ ! -e go ]; do sleep 0.02; done; exit 7")
        )
        await eventually(begun.exists)
        async with waiting(daemon) as versions:
            go.touch()
            assert await asyncio.wait_for(running.wait(), 20) == 7
        assert versions == {"v1"}
        begun.unlink()
        absent = await atlasctl("./no-such-program")
        assert b"can't be executed" in (await absent.communicate())[1]
        assert absent.returncode == 127
        assert await held(daemon) is None
        ended = await atlasctl("sh", "-c", "touch begun; exec sleep 60")
        await eventually(begun.exists)
        assert await held(daemon)
        ended.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(ended.wait(), 20) == 128 + signal.SIGTERM
        assert await held(daemon) is None


async def test_under_load_a_hold_loses_nothing_and_its_clients_leave_the_daemon(
    tmp_path: Path,
) -> None:
    async with DaemonProcess.running(tmp_path, bundled_worker(idle_grace=0.1)) as daemon:
        async with Load("127.0.0.1", daemon.public_port, bundled_worker_mix(think=0.1)) as load:
            await eventually(lambda: load.report.sent > 100)
            await hold(daemon)
            await until_waiting(daemon, 5)
            await daemon.request("POST", "/traffic/release")
            await eventually(lambda: not state_file(daemon)["announce_close"])
            metrics = (await daemon.request("GET", "/metrics")).json
            sent = load.report.sent
            await eventually(lambda: load.report.sent > sent + 100)
        assert load.report.losses == []
        assert 'atlas_relay_open_connections{purpose="hold"} 0.0' in metrics
