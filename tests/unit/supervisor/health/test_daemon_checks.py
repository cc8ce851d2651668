"""The daemon's own checks: its database, its disk, and whether steering matches the file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from atlas_supervisor.health import daemon_checks
from atlas_supervisor.model.health import CheckStatus
from atlas_supervisor.store import database as database_module
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from tests.unit.supervisor.health.support import BLUE, GREEN, Steered
from tests.unit.supervisor.store.support import a_state
from tests.unit.supervisor.support import fill, mounted

PASS, WARN, FAIL = CheckStatus.PASS, CheckStatus.WARN, CheckStatus.FAIL
PORTS = {BLUE: 8791, GREEN: 8792}


@asynccontextmanager
async def store(folder: Path) -> AsyncIterator[tuple[StateKeeper, Database]]:
    async with open_database(folder / "atlas.db") as (database, _):
        file = StateFile(folder / "deploy_state.json")
        yield StateKeeper(file, database.state, a_state()), database


async def test_a_database_that_can_be_written_and_read_back_passes(tmp_path: Path) -> None:
    async with store(tmp_path) as (keeper, database):
        check = await daemon_checks.database(keeper, database)
        assert await database.state.load() == keeper.state
    assert check.status is PASS
    assert (check.value or 0) > 0


@pytest.mark.parametrize("replace", [False, True])
async def test_a_database_that_is_written_to_no_file_fails(tmp_path: Path, replace: bool) -> None:
    async with store(tmp_path) as (keeper, database):
        path = tmp_path / "atlas.db"
        path.rename(tmp_path / "away")
        if replace:
            path.touch()
        check = await daemon_checks.database(keeper, database)
        assert check.status is FAIL
        path.unlink(missing_ok=True)
        (tmp_path / "away").rename(path)
        again = await daemon_checks.database(keeper, database)
    assert again.status is PASS


async def test_a_locked_database_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_BUSY_SECONDS", 0.05)
    async with store(tmp_path) as (keeper, database):
        other = sqlite3.connect(tmp_path / "atlas.db", isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            check = await daemon_checks.database(keeper, database)
            other.execute("ROLLBACK")
        finally:
            other.close()
        again = await daemon_checks.database(keeper, database)
    assert check.status is FAIL
    assert "locked" in check.message
    assert again.status is PASS


async def test_a_database_with_an_unreadable_copy_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store(tmp_path) as (keeper, database):

        async def spoils(_state: Any) -> None:
            other = sqlite3.connect(tmp_path / "atlas.db", isolation_level=None)
            other.execute("INSERT OR REPLACE INTO last_state (id, state) VALUES (1, '{')")
            other.close()

        monkeypatch.setattr(database.state, "save", spoils)
        check = await daemon_checks.database(keeper, database)
    assert check.status is FAIL
    assert "missing or unreadable read-back" in check.message


async def test_enough_free_disk_passes_with_its_size(tmp_path: Path) -> None:
    check = await daemon_checks.disk_free(tmp_path)
    assert check.unit == "MiB"
    assert check.value == pytest.approx(os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path)
        .f_frsize / daemon_checks.MIB, rel=0.5)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "status"), [("size=400m", PASS), ("size=200m", WARN), ("size=32m", FAIL)]
)
@pytest.mark.needs_root
async def test_little_free_disk_warns_and_less_fails(
    tmp_path: Path, options: str, status: CheckStatus
) -> None:
    with mounted(tmp_path / "small", options) as folder:
        assert (await daemon_checks.disk_free(folder)).status is status


@pytest.mark.needs_root
async def test_a_disk_that_fills_up_fails(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=300m") as folder:
        assert (await daemon_checks.disk_free(folder)).status is PASS
        with (folder / "big").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 290 * daemon_checks.MIB)
        check = await daemon_checks.disk_free(folder)
    assert check.status is FAIL
    assert "make room" in check.message


@pytest.mark.needs_root
async def test_a_full_disk_fails_the_database(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=4m") as folder:
        async with store(folder) as (keeper, database):
            filler = fill(folder)
            check = await daemon_checks.database(keeper, database)
            assert check.status is FAIL
            filler.unlink()
            assert (await daemon_checks.database(keeper, database)).status is PASS
    assert "full" in check.message


@pytest.mark.needs_root
async def test_a_disk_without_inodes_fails_though_there_are_bytes(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=400m,nr_inodes=50") as folder:
        check = await daemon_checks.disk_free(folder)
    assert check.status is FAIL
    assert "files only" in check.message


async def test_a_missing_state_folder_fails(tmp_path: Path) -> None:
    check = await daemon_checks.disk_free(tmp_path / "gone")
    assert check.status is FAIL
    assert "No such file" in check.message


def state_file(folder: Path, **ports: int) -> StateFile:
    file = StateFile(folder / "deploy_state.json")
    file.write(a_state(**ports))
    return file


async def test_steering_that_matches_the_state_file_passes(tmp_path: Path) -> None:
    file = state_file(tmp_path)
    plane: Any = Steered(BLUE)
    assert (await daemon_checks.steering(plane, file, PORTS)).status is PASS


async def test_steering_that_differs_from_the_state_file_fails_and_names_both_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_checks, "SWITCH_SECONDS", 0.05)
    file = state_file(tmp_path, active_port=8792, staging_port=8791)
    plane: Any = Steered(BLUE)
    check = await daemon_checks.steering(plane, file, PORTS)
    assert check.status is FAIL
    assert "go to blue (port 8791)" in check.message
    assert "names port 8792" in check.message


async def test_a_switch_in_progress_is_no_difference(tmp_path: Path) -> None:
    file = state_file(tmp_path)
    plane: Any = Steered(GREEN)
    async with anyio.create_task_group() as tasks:

        async def written_a_little_later() -> None:
            await anyio.sleep(0.05)
            await anyio.to_thread.run_sync(file.write, a_state(active_port=8792, staging_port=8791))

        tasks.start_soon(written_a_little_later)
        assert (await daemon_checks.steering(plane, file, PORTS)).status is PASS


async def test_a_missing_state_file_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_checks, "SWITCH_SECONDS", 0.05)
    plane: Any = Steered(BLUE)
    check = await daemon_checks.steering(plane, StateFile(tmp_path / "deploy_state.json"), PORTS)
    assert (check.status, check.message) == (FAIL, "there is no state file")
