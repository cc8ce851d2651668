"""The disk is full or read-only, the database locked or cut short: clients notice nothing."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.faults.support import limited, refused, under_load, worker_pid
from tests.harness import DaemonProcess, Setting, eventually
from tests.integration.support import (
    SCRIPTED,
    WARM,
    everything_agrees,
    public_version,
    release,
    scripted_daemon,
    state_file,
    until_phase,
)
from tests.invariants import invariants_hold, lasting_violations
from tests.unit.supervisor.support import mounted


@contextmanager
def locked(daemon: DaemonProcess) -> Iterator[None]:
    with closing(sqlite3.connect(daemon.state_dir / "atlas.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield


@pytest.mark.fault(
    "Disk and files",
    "a full disk (ENOSPC) under a running daemon",
    "every change is refused and nothing half done; no request is lost",
)
async def test_a_full_disk_refuses_every_change_and_cuts_no_client(tmp_path: Path) -> None:
    async with (
        scripted_daemon(tmp_path, {**WARM, "GUARD_SECONDS": 0.1}) as daemon,
        under_load(daemon) as load,
    ):
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "switched"
        await until_phase(daemon, "warm")
        before = state_file(daemon)
        with limited(daemon.pid, resource.RLIMIT_FSIZE, 1):  # every write fails, as on a full disk
            deploy = await daemon.deploy()
            rollback = await daemon.request("POST", "/deploy/rollback")
            mode = await daemon.request("POST", "/deploy/mode", json={"mode": "single"})
            assert (await daemon.request("GET", "/livez")).status == 200
        refusals = [each.json["error"]["code"] for each in (deploy, rollback, mode)]
        assert refusals == ["not_durable", "switch_failed", "not_durable"]
        assert state_file(daemon) == before
        assert await public_version(daemon) == "v2"
        again = await daemon.request("POST", "/deploy/rollback")
        assert (again.status, again.json["result"]) == (200, "rolled_back")
        assert not load.report.losses


@pytest.mark.fault(
    "Database",
    "locked by another program during a switch",
    "there is no switch without a written intent, and it can be tried again",
)
async def test_a_locked_database_delays_a_switch_which_is_then_tried_again(tmp_path: Path) -> None:
    async with (
        scripted_daemon(tmp_path, {"AUTO_SWITCH_ON_HEALTH": "false"}) as daemon,
        under_load(daemon) as load,
    ):
        release(daemon, "v2")
        assert (await daemon.deploy()).json["result"] == "awaiting_switch"
        log = daemon.state_dir / "logs" / "supervisor.jsonl"
        with locked(daemon):
            switching = asyncio.create_task(daemon.request("POST", "/deploy/switch"))
            await eventually(lambda: '"event": "write_delayed"' in log.read_text())
            assert (await daemon.request("GET", "/livez")).status == 200
        switch = await switching
        assert (switch.status, switch.json["error"]["code"]) == (503, "switch_failed")
        assert await public_version(daemon) == "v1"
        again = await daemon.request("POST", "/deploy/switch")
        assert (again.status, again.json["result"]) == (200, "switched")
        assert await public_version(daemon) == "v2"
        assert not load.report.losses


@pytest.mark.fault(
    "Database",
    "without its write-ahead log",
    "the active release stays; the gap in the audit trail is reported",
)
async def test_a_database_without_its_log_starts_and_the_gap_in_the_audit_trail_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2")
        assert (await daemon.deploy()).status == 200
        await daemon.kill()
        for suffix in ("-wal", "-shm"):
            (daemon.state_dir / f"atlas.db{suffix}").unlink()
        await daemon.start()
        assert await public_version(daemon) == "v2"
        await everything_agrees(daemon)
        release(daemon, "v3")
        assert (await daemon.deploy()).status == 200
        monkeypatch.setattr(DaemonProcess, "check_at_end", None)  # because of the gap
        assert list(await lasting_violations(daemon, within=2)) == ["the audit trail is whole"]


@pytest.mark.needs_root
@pytest.mark.fault(
    "Disk and files", "a read-only disk (EROFS)", "the start is refused, and the worker goes on"
)
async def test_a_start_on_a_read_only_disk_is_refused_and_the_worker_goes_on(
    tmp_path: Path,
) -> None:
    with mounted(tmp_path / "disk", "size=16m") as disk:
        settings: dict[str, Setting] = {"STATE_DIR": disk / "state"}
        daemon = DaemonProcess(tmp_path, {**settings, "WORKER_COMMAND": SCRIPTED})
        daemon.state_dir = disk / "state"
        try:
            await daemon.start()
            before = await worker_pid(daemon)
            await daemon.kill()
            remount(disk, "--bind")
            remount(disk, "-o", "remount,bind,ro")
            printed = await refused(daemon)
            assert "Read-only file system" in printed
            assert "Traceback" not in printed
            assert await worker_pid(daemon) == before
            unmount(disk)
            await daemon.start()
            await invariants_hold(daemon)
            await daemon.stop()
        finally:
            await daemon.clean_up()


def unmount(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, *options: str) -> None:
    places = [str(folder)] * (2 if options == ("--bind",) else 1)
    subprocess.run(["mount", *options, *places], check=True)
