"""One plain worker without the supervisor, when the daemon is not there."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.harness import DaemonProcess, free_ports
from tests.integration.support import SCRIPTED, get, release, scripted_daemon

LAUNCHER = Path(__file__).parents[2] / "scripts" / "service_launcher.py"


async def launched(env_file: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(LAUNCHER), "--env-file", str(env_file)),
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def plain_worker(env_file: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await launched(env_file)
    assert process.stderr is not None
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.communicate()


async def test_it_runs_the_active_version_on_the_active_port(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2")
        port = (await daemon.deploy()).json["active_port"]
        assert port == daemon.settings["STAGING_PORT"]
        await daemon.stop()
        async with plain_worker(daemon.env_file) as process:
            assert process.stderr is not None
            assert b"version v2" in await process.stderr.readline()
            status, body = await get(port)
            assert (status, body["version"], body["pid"]) == (200, "v2", process.pid)


async def test_it_refuses_beside_a_running_daemon(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        process = await launched(daemon.env_file)
        _, said = await process.communicate()
        assert process.returncode == 1
        assert "is taken" in said.decode()


@pytest.mark.parametrize("mode", ["single", "bluegreen"])
async def test_with_no_state_it_takes_the_active_port(tmp_path: Path, mode: str) -> None:
    (tmp_path / "VERSION").write_text("v7")
    port, other = free_ports(2)
    env_file = tmp_path / "atlas.env"
    env_file.write_text(
        f"DEPLOY_MODE={mode}\nACTIVE_PORT={port}\nSTAGING_PORT={other}\nWORKER_COMMAND={SCRIPTED}\n"
    )
    async with plain_worker(env_file) as process:
        assert process.stderr is not None
        assert b"version v7" in await process.stderr.readline()
        assert (await get(port))[1]["version"] == "v7"


async def test_it_says_what_is_wrong_with_the_settings(tmp_path: Path) -> None:
    env_file = tmp_path / "atlas.env"
    env_file.write_text("ACTIVE_PROT=1\n")
    process = await launched(env_file)
    _, said = await process.communicate()
    assert process.returncode == 2
    assert "ACTIVE_PORT" in said.decode()


async def test_a_worker_that_binds_its_own_port_does(tmp_path: Path) -> None:
    command = "python -m http.server {port} --bind 127.0.0.1"
    daemon = DaemonProcess(tmp_path, {"WORKER_COMMAND": command})
    daemon.write_settings()
    async with plain_worker(daemon.env_file) as process:
        assert process.stderr is not None
        await process.stderr.readline()
        port = int(str(daemon.settings["ACTIVE_PORT"]))
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
