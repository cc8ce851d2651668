"""A daemon is killed at failpoints under load, and the next one starts: nothing is lost.

These are a sample; `./scripts/soak --all-failpoints` kills at each of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

import atlas_supervisor.main
from atlas_supervisor.system.failpoints import FAILPOINT, NAMES
from tests.failpoints import (
    SETTINGS,
    CanaryCaller,
    killed_at,
    pass_every_failpoint,
    passings,
    reset,
)
from tests.faults.support import under_load
from tests.harness import DaemonProcess, write_release
from tests.integration.support import scripted_daemon
from tests.invariants import fresh_workers, invariants_hold, workers_of

SAMPLE = (
    "before-record-worker:2",  # between fork and bookkeeping
    "after-steer:3",  # the kernel has switched, and the state file has not
    "before-exec",
    "before-canary-policy:3",  # the canary falls back
)
assert atlas_supervisor.main  # imports every module that declares a failpoint


def failing_daemon(folder: Path) -> AbstractAsyncContextManager[DaemonProcess]:
    (folder / "releases").mkdir()
    return scripted_daemon(folder, {**SETTINGS, "RELEASES_DIR": folder / "releases"})


async def test_the_scenario_passes_every_failpoint_and_each_is_named(tmp_path: Path) -> None:
    async with (
        failing_daemon(tmp_path) as daemon,
        CanaryCaller.running(daemon) as caller,
    ):
        passed = await passings(daemon, lambda: scenario(daemon, caller))
        assert set(passed) == set(NAMES)
        await reset(daemon)


@pytest.mark.timeout(150)
@pytest.mark.fault(
    "The daemon",
    "killed before or after a durable step or effect",
    "no request is lost, and file, database and steering agree",
)
@pytest.mark.fault(
    "The daemon",
    "killed between fork and bookkeeping",
    "the worker is found and ended; nothing is left over",
)
async def test_a_daemon_killed_at_a_failpoint_loses_no_request_and_nothing_contradicts(
    tmp_path: Path,
) -> None:
    async with (
        failing_daemon(tmp_path) as daemon,
        CanaryCaller.running(daemon) as caller,
        under_load(daemon) as load,
    ):
        for failpoint in SAMPLE:
            assert await killed_at(daemon, failpoint, lambda: scenario(daemon, caller)), failpoint
            workers = workers_of(daemon)
            await daemon.start()
            assert not await fresh_workers(daemon, workers), failpoint
            await invariants_hold(daemon, load.report.losses)
            await reset(daemon)


async def scenario(daemon: DaemonProcess, caller: CanaryCaller) -> None:
    def put(version: str, good: bool) -> None:
        behaviour = json.dumps({"health": 200 if good else 500})
        folder = daemon.folder / "releases" / version
        write_release(folder, version, {"behaviour.json": behaviour})

    await pass_every_failpoint(daemon, put, caller)


def test_an_unknown_failpoint_refuses_the_start_and_prints_all_names() -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "atlas_supervisor", "--check"],
        env={**os.environ, FAILPOINT: "before-steering"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.split() == sorted(NAMES)
