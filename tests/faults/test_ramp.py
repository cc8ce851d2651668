"""A daemon that is killed in the middle of a ramp: the next one goes on with the same step."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.faults.support import start_again, under_load
from tests.harness import DaemonProcess, Setting
from tests.integration.support import (
    everything_agrees,
    release,
    scripted_daemon,
    state_file,
    until_phase,
    write,
)

SETTINGS: dict[str, Setting] = {"TRAFFIC_RAMP": "0.3,0.6,1", "TRAFFIC_STEP_SECONDS": 600}
LONG_AGO = "UPDATE deploys SET ramp = json_set(ramp, '$.looked_ts', '2026-01-01T00:00:00Z')"
NOT_STEERED = "UPDATE deploys SET ramp = json_set(ramp, '$.steps[#-1].share', 0.45)"


async def ramp_of(daemon: DaemonProcess) -> dict[str, Any]:
    ramp: dict[str, Any] = (await until_phase(daemon, "ramp"))["ramp"]
    return ramp


async def share_reached(daemon: DaemonProcess, share: float) -> dict[str, Any]:
    """Wait until the ramp has this share, and it is in force."""
    async with asyncio.timeout(10):
        while True:
            ramp = await ramp_of(daemon)
            if ramp["share"] == share == state_file(daemon)["staging_weight"]:
                return ramp
            await asyncio.sleep(0.02)


@pytest.mark.fault(
    "The daemon",
    "killed during a ramp",
    "no request is lost; the next one goes on with the step, and takes one that is due once",
)
async def test_a_ramp_goes_on_after_each_kill_with_the_same_workers_and_step(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path, SETTINGS) as daemon, under_load(daemon) as load:
        release(daemon, "v2")
        assert (await daemon.request("POST", "/deploy/bluegreen?wait=false")).status == 202
        began = await share_reached(daemon, 0.3)
        workers = daemon.leftovers()

        await daemon.kill()
        await start_again(daemon)
        ramp = await ramp_of(daemon)
        assert (ramp["step"], ramp["since_ts"]) == (1, began["since_ts"])
        assert ramp["waited_seconds"] >= began["waited_seconds"]

        await daemon.kill()
        write(daemon, LONG_AGO)
        await start_again(daemon)
        ramp = await share_reached(daemon, 0.6)
        assert ([each["share"] for each in ramp["steps"]], ramp["waited_seconds"] < 60) == (
            [0.3, 0.6],
            True,
        )

        await daemon.kill()  # as if that came before the step's share was steered
        write(daemon, NOT_STEERED)
        write(daemon, LONG_AGO)
        await start_again(daemon)
        ramp = await share_reached(daemon, 0.45)
        assert (len(ramp["steps"]), ramp["waited_seconds"] < 60) == (2, True)

        assert daemon.leftovers() == workers
        switched = await daemon.request("POST", "/deploy/switch")
        assert switched.json["result"] == "switched"
        report = await load.stop()
        assert report.losses == []
        await everything_agrees(daemon)


@pytest.mark.fault("The daemon", "stopped during a ramp", "the deploy is aborted")
async def test_a_stop_aborts_a_ramp(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path, SETTINGS) as daemon:
        release(daemon, "v2")
        assert (await daemon.request("POST", "/deploy/bluegreen?wait=false")).status == 202
        await share_reached(daemon, 0.3)
        await daemon.stop()
        record = await start_again(daemon)
        assert (record["result"], record["steps"][-1]["ok"]) == ("aborted", False)
        assert record["reason"] == "ramp: the supervisor was stopped"
        assert state_file(daemon)["staging_weight"] == 0
        await everything_agrees(daemon)
