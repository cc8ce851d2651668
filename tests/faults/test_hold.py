"""A hold outlives the daemon: what waits is answered by the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults.support import queued
from tests.harness import DaemonProcess, Setting, eventually
from tests.integration.support import SCRIPTED, get, held, rows

CLIENTS = 20
BY_PORT: Mapping[str, Setting] = {
    "WORKER_COMMAND": "python -m http.server --bind 127.0.0.1 {port}",
    "HEALTH_PATH": "/",
}


@pytest.mark.fault(
    "Processes",
    "the daemon is killed while new connections are held",
    "they wait on, and the next daemon hands them on at its start; none is lost",
)
@pytest.mark.parametrize("settings", [{"WORKER_COMMAND": SCRIPTED}, BY_PORT])
async def test_the_successor_of_a_daemon_that_is_killed_in_a_hold_hands_on_what_waits(
    tmp_path: Path, settings: Mapping[str, Setting]
) -> None:
    async with DaemonProcess.running(tmp_path, settings, files={"ok.json": "{}"}) as daemon:
        answer = await daemon.request("POST", "/traffic/hold", json={"max_seconds": 60})
        assert answer.status == 200, answer
        asked = [asyncio.create_task(get(daemon.public_port, "/ok.json")) for _ in range(CLIENTS)]
        async with asyncio.timeout(10):
            while (await held(daemon))["waiting"] < CLIENTS:  # noqa: ASYNC110  # asks it
                await asyncio.sleep(0.01)
        await daemon.kill()
        asked += [asyncio.create_task(get(daemon.public_port, "/ok.json")) for _ in range(CLIENTS)]
        await eventually(lambda: queued(daemon.public_port) == 2 * CLIENTS)
        assert not any(each.done() for each in asked)
        await daemon.start()
        async with asyncio.timeout(20):
            assert {status for status, _ in await asyncio.gather(*asked)} == {200}
        assert await held(daemon) is None
        reasons = rows(daemon, "SELECT detail FROM audit WHERE outcome = 'released'")
        assert "started again" in reasons[0][0]
