"""What is killed under load, again and again: the active worker beside a warm one, the daemon."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness import DaemonProcess, Setting, eventually, write_release
from tests.integration.support import slot, until_phase
from tests.loadclient import Kind, Load, Report, Traffic


@dataclass(frozen=True)
class Rescue:
    """What came of it: the load's report, and per kill how many connections were passed on."""

    report: Report
    rescued: list[int]


async def kill_under_load(
    folder: Path, settings: dict[str, Setting], mix: Sequence[Traffic], *, times: int
) -> Rescue:
    """Deploy, kill the new version with SIGKILL while the old one is warm; `times` over."""
    settings = {**settings, "KEEP_WARM_SECONDS": 60, "HEALTH_PROBES": 1}
    rescued = []
    async with (
        DaemonProcess.running(folder, settings) as daemon,
        Load("127.0.0.1", daemon.public_port, mix) as load,
    ):
        for number in range(2, times + 2):
            write_release(daemon.worker_directory, f"v{number}")
            deployed = await daemon.deploy()
            assert deployed.json["result"] == "switched", deployed
            await until_phase(daemon, "warm")
            os.kill(slot(await daemon.status(), "active")["pid"], signal.SIGKILL)
            record = await daemon.ended(deployed.json["deploy_id"])
            assert record["result"] == "rolled_back", record
            rescued.append(record["steps"][-1]["detail"]["rescued"])
        report = await load.stop()
    return Rescue(report, rescued)


@dataclass(frozen=True)
class Restarts:
    """What came of the daemon's kills: the load's report, and the requests lost by each kill."""

    report: Report
    lost: list[int]


async def kill_the_daemon_under_load(
    folder: Path, settings: dict[str, Setting], mix: Sequence[Kind], *, times: int
) -> Restarts:
    """Kill the daemon with SIGKILL and start it again until its fresh worker serves alone."""
    async with (
        DaemonProcess.running(folder, settings) as daemon,
        Load("127.0.0.1", daemon.public_port, mix) as load,
    ):
        lost = []
        for _ in range(times):
            before = len(load.report.losses)
            assert daemon.process is not None
            daemon.process.kill()
            await daemon.process.wait()
            await daemon.stop_clients()
            await daemon.start()
            await eventually(lambda: len(daemon.leftovers()) == 1, within=30)
            lost.append(len(load.report.losses) - before)
        report = await load.stop()
    return Restarts(report, lost)
