"""A process is stopped (SIGSTOP): the daemon, or the worker that has the traffic."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.faults.support import under_load
from tests.harness import Setting, eventually
from tests.integration.support import (
    everything_agrees,
    get,
    public_version,
    release,
    scripted_daemon,
    slot,
)


@pytest.mark.fault(
    "The daemon", "stopped (SIGSTOP) and continued", "no client is delayed, and the deploy goes on"
)
async def test_a_daemon_that_is_stopped_and_continued_delays_no_client_and_goes_on(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon, under_load(daemon) as load:
        release(daemon, "v2", health_delay=0.1)
        deploying = asyncio.create_task(daemon.deploy())
        await eventually(lambda: len(daemon.leftovers()) == 2)
        os.kill(daemon.pid, signal.SIGSTOP)
        for _ in range(50):
            assert await public_version(daemon) == "v1"
        os.kill(daemon.pid, signal.SIGCONT)
        assert (await deploying).json["result"] == "switched"
        assert await public_version(daemon) == "v2"
        assert not load.report.losses


@pytest.mark.fault("Workers", "stopped (SIGSTOP)", "it is killed and replaced; new requests wait")
async def test_a_worker_that_is_stopped_is_killed_and_its_clients_wait_for_the_next_one(
    tmp_path: Path,
) -> None:
    settings: dict[str, Setting] = {
        "LIVENESS_INTERVAL_SECONDS": 0.1,
        "LIVENESS_FAILURES": 2,
        "HEALTH_TIMEOUT_SECONDS": 0.2,
    }
    async with scripted_daemon(tmp_path, settings) as daemon:
        stopped = slot(await daemon.status(), "active")["pid"]
        os.kill(stopped, signal.SIGSTOP)
        await eventually(lambda: stopped not in daemon.leftovers())
        assert (await get(daemon.public_port))[1]["pid"] != stopped
        await everything_agrees(daemon)
