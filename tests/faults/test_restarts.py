"""A worker is restarted at once, whatever has become of the database and of the state folder."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness import DaemonProcess, eventually
from tests.integration.support import get, public_version, scripted_daemon, slot


async def restarted(daemon: DaemonProcess, before: int) -> None:
    """Kill the active worker and wait until another one serves."""
    os.kill(before, signal.SIGKILL)
    await eventually(lambda: before not in daemon.leftovers() and daemon.leftovers(), within=3)
    assert await public_version(daemon) == "v1"


@pytest.mark.fault("Database", "locked while a worker crashes", "the restart does not wait")
async def test_a_restart_does_not_wait_for_a_locked_database(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        with closing(sqlite3.connect(daemon.state_dir / "atlas.db", isolation_level=None)) as it:
            it.execute("BEGIN IMMEDIATE")
            for _ in range(2):
                await restarted(daemon, slot(await daemon.status(), "active")["pid"])
                assert (await daemon.request("GET", "/livez")).status == 200


async def test_a_restart_needs_no_state_folder(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        pid = slot(await daemon.status(), "active")["pid"]
        moved = tmp_path / "moved"
        daemon.state_dir.rename(moved)
        await restarted(daemon, pid)
        pid = (await get(daemon.public_port))[1]["pid"]
        await restarted(daemon, pid)
        shutil.rmtree(daemon.state_dir, ignore_errors=True)
        moved.rename(daemon.state_dir)


@pytest.mark.fault(
    "Disk and files", "a state folder that is removed", "a crashed worker is restarted all the same"
)
async def test_a_restart_needs_no_folder_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DaemonProcess, "check_at_end", None)  # there is nothing left to compare
    async with scripted_daemon(tmp_path) as daemon:
        pid = slot(await daemon.status(), "active")["pid"]
        while daemon.state_dir.exists():  # the daemon may write there meanwhile
            shutil.rmtree(daemon.state_dir, ignore_errors=True)
        await restarted(daemon, pid)
