"""The doctor beside a running daemon, and after its end by a kill."""

from __future__ import annotations

import asyncio
from pathlib import Path

from atlas_supervisor.doctor.__main__ import examine
from atlas_supervisor.doctor.finding import Level
from tests.harness import DaemonProcess, Setting


async def test_ports_of_a_running_daemon_are_its_own_also_after_its_kill(tmp_path: Path) -> None:
    command = "python -m http.server --bind 127.0.0.1 {port}"
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": command,
        "HEALTH_PATH": "/",
        "DRAIN_TIMEOUT_SECONDS": 1,
    }
    async with DaemonProcess.running(tmp_path, settings) as daemon:
        pid = daemon.pid
        alive = await asyncio.to_thread(examine, daemon.env_file)
        await daemon.kill()
        killed = await asyncio.to_thread(examine, daemon.env_file)
        await daemon.start()

    for report in (alive, killed):
        assert report.status is not Level.FAIL, report
    messages = [f"{each.check}: {each.message}" for each in alive.findings]
    assert any(each.startswith(f"daemon: pid {pid} ") for each in messages)
    assert any(each.startswith("ports: ACTIVE_PORT=") and "is ours" in each for each in messages)
    assert any("workers of an earlier one serve on" in each.message for each in killed.findings)
