"""The machine's clock is set a day forth and back while the daemon deploys."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.support import under_load
from tests.harness import DaemonProcess
from tests.integration.support import WARM, public_version, release, scripted_daemon, until_phase

DAY_SECONDS = 86400
SETTABLE = """
import pathlib, runpy
from datetime import timedelta
from atlas_supervisor.system import clock

real = clock.now
clock.now = lambda: real() + timedelta(seconds=float(pathlib.Path("clock").read_text()))
runpy.run_module("atlas_supervisor", run_name="__main__", alter_sys=True)
"""


def set_clock(daemon: DaemonProcess, ahead_seconds: int) -> None:
    """Set the daemon's clock, at once."""
    new = daemon.folder / "clock.new"
    new.write_text(str(ahead_seconds))
    new.rename(daemon.folder / "clock")


@pytest.mark.fault(
    "Clock and machine",
    "the clock set a day forth and back",
    "the order of deploys stays, and no wait ends",
)
async def test_a_clock_that_is_set_a_day_forth_and_back_changes_no_order_and_ends_no_wait(
    tmp_path: Path,
) -> None:
    (tmp_path / "clock").write_text("0")
    settings = {**WARM, "CANARY_ENABLED": "true", "GUARD_SECONDS": 0.1}
    async with (
        scripted_daemon(tmp_path, settings, code=SETTABLE) as daemon,
        under_load(daemon) as load,
    ):
        for number, ahead in enumerate((DAY_SECONDS, 0, -DAY_SECONDS), 2):
            release(daemon, f"v{number}")
            assert (await daemon.deploy()).json["result"] == "switched"
            await until_phase(daemon, "warm")
            set_clock(daemon, ahead)
            assert (await daemon.status())["last_deploy"]["phase"] == "warm"
        await daemon.kill()
        await daemon.start()
        history = (await daemon.request("GET", "/deploy/history")).json["deploys"]
        assert [each["version"] for each in history] == ["v4", "v3", "v2"]
        assert await public_version(daemon) == "v4"
        assert (await daemon.status())["version"] == "v4"
        assert not load.report.losses
