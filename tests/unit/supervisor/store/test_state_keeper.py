from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from atlas_supervisor.model.deploy import Mode
from atlas_supervisor.store import state_keeper
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from tests.unit.supervisor.store.support import a_state


@asynccontextmanager
async def keeping(folder: Path) -> AsyncIterator[tuple[StateKeeper, StateFile, Database]]:
    file = StateFile(folder / "deploy_state.json")
    file.write(a_state(generation=1))
    async with open_database(folder / "atlas.db") as (database, _):
        yield StateKeeper(file, database.state, a_state(generation=1)), file, database


async def test_a_change_is_on_the_disk_before_it_counts(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (keeper, file, _):
        after = await keeper.change(mode=Mode.SINGLE)
        assert (after.mode, after.generation) == (Mode.SINGLE, 2)
        assert keeper.state == after == file.read()


async def test_changes_at_once_are_all_kept(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (keeper, file, _):
        await asyncio.gather(*(keeper.change() for _ in range(20)), keeper.change(mode=Mode.SINGLE))
        assert keeper.state.generation == 22
        assert keeper.state.mode is Mode.SINGLE
        assert file.read() == keeper.state


async def test_a_change_that_cannot_be_written_has_not_happened(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (keeper, file, _):
        obstacle = tmp_path / ".deploy_state.json.new"
        obstacle.mkdir()
        with pytest.raises(OSError, match="directory"):
            await keeper.change(mode=Mode.SINGLE)
        assert keeper.state == a_state(generation=1) == file.read()
        obstacle.rmdir()
        assert (await keeper.change(mode=Mode.SINGLE)).generation == 2


@pytest.mark.fault(
    "Disk and files", "fsync fails (EIO)", "the state file and memory stay as they were"
)
async def test_a_change_that_was_not_durable_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = os.fsync, [errno.EIO]

    def fail_once_on_the_folder(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) and failures:
            raise OSError(failures.pop(), "Input/output error")
        real(descriptor)

    async with keeping(tmp_path) as (keeper, file, _):
        monkeypatch.setattr(os, "fsync", fail_once_on_the_folder)
        with pytest.raises(OSError, match="Input/output"):
            await keeper.change(active_port=8792, staging_port=8791)
        assert keeper.state == a_state(generation=1) == file.read()


async def test_a_change_that_was_begun_is_finished_when_its_caller_is_cancelled(
    tmp_path: Path,
) -> None:
    async with keeping(tmp_path) as (keeper, file, _):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await keeper.change(mode=Mode.SINGLE)
        assert file.read() == keeper.state
        assert keeper.state.mode is Mode.SINGLE


async def test_a_copy_is_kept_in_the_database(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (keeper, _, database):
        assert await database.state.load() is None
        await keeper.change(mode=Mode.SINGLE)
        await keeper.copy_to_database()
        assert await database.state.load() == keeper.state


async def test_a_copy_that_fails_is_no_reason_to_fail(tmp_path: Path) -> None:
    async with keeping(tmp_path) as (keeper, _, database):
        await database.statements.connection.execute("DROP TABLE last_state")
        await keeper.copy_to_database()


async def test_a_copy_that_failed_is_made_once_the_database_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_keeper, "_WATCH_SECONDS", 0.01)

    async def unheard(**_: object) -> None: ...

    async with keeping(tmp_path) as (keeper, _, database), anyio.create_task_group() as tasks:
        connection = database.statements.connection
        await connection.execute("ALTER TABLE last_state RENAME TO away")
        await keeper.change(mode=Mode.SINGLE)
        await keeper.copy_to_database()
        await connection.execute("ALTER TABLE away RENAME TO last_state")
        tasks.start_soon(keeper.watch, unheard)
        while await database.state.load() != keeper.state:  # noqa: ASYNC110  # no event
            await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
