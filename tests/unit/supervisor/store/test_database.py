from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.release import Release, Version, VersionChange
from atlas_supervisor.store import database as module
from atlas_supervisor.store import deploys
from atlas_supervisor.store.audit import HEAD_FILE
from atlas_supervisor.store.database import Database, open_database, recorded_releases
from atlas_supervisor.store.statements import StoreError
from tests.unit.supervisor.store.support import a_deploy, a_state, a_step, moved, rows
from tests.unit.supervisor.traffic.support import open_files
from tests.unit.supervisor.workers.support import BLUE, GREEN


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "atlas.db"


@contextmanager
def locked_by_another_process(path: Path) -> Iterator[None]:
    code = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "locked\n"
            yield
        finally:
            process.kill()


def damaged(path: Path, damage: str) -> bytes:
    """Damage the file, leave an old log beside it, and return what the file holds now."""
    content = bytearray(path.read_bytes())
    if damage == "garbage":
        content = bytearray(b"this is no database at all\n" * 100)
    elif damage == "header":
        content[:100] = bytes(range(100))
    elif damage == "middle":
        content[4096:] = b"\xa5" * (len(content) - 4096)
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    path.with_name("atlas.db-wal").write_bytes(b"an old log")
    return bytes(content)


def crashed(path: Path, *parts: str) -> Path:
    """Copy the parts of an open database, as a SIGKILL would have left them."""
    folder = path.parent / "crashed"
    folder.mkdir()
    for part in parts:
        (folder / part).write_bytes((path.parent / part).read_bytes())
    return folder / path.name


TRANSITIONS = "SELECT count(*) FROM transitions WHERE event <> 'begun'"


async def transition(
    database: Database, deploy_id: str, versions: VersionChange | None = None, **changes: Any
) -> None:
    await database.deploys.write_transition(
        *moved(a_deploy(deploy_id, **changes), source="preflight", event="passed", step=a_step()),
        versions=versions,
        state=a_state(generation=9) if versions else None,
    )


async def test_versions_and_state_come_back_as_written(path: Path) -> None:
    one = Release(name=None, path=Path("/srv/work"), version="v1")
    two = Release(name="v2", path=Path("/srv/releases/v2"), version="v2")
    async with open_database(path) as (database, _):
        await database.versions.push(BLUE, one)
        await database.versions.push(GREEN, two)
        assert [each[:2] for each in await database.versions.all()] == [(GREEN, two), (BLUE, one)]
        await database.deploys.begin(a_deploy(), auto_switch=True)
        await transition(database, "d1", versions=VersionChange(back=True))
        assert await database.versions.all() == [Version(BLUE, one)]
        await database.state.save(a_state(generation=1))
        await database.state.save(a_state(generation=2))
        assert await database.state.load() == a_state(generation=2)
        await database.audit.write(SUPERVISOR, "mode", "single", subject="d1", reason="because")
    ((action, detail),) = rows(path, "SELECT action, detail FROM audit")
    assert action == "mode"
    assert json.loads(str(detail)) == {"reason": "because"}


async def test_old_versions_are_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploys, "_VERSIONS_KEPT", 3)
    async with open_database(path) as (database, _):
        for number in range(10):
            release = Release(name=f"v{number}", path=Path("/srv"), version=f"v{number}")
            await database.versions.push(BLUE, release)
        assert [each.release.name for each in await database.versions.all()] == ["v9", "v8", "v7"]


async def test_a_write_is_visible_from_outside_at_once(path: Path) -> None:
    async with open_database(path) as (database, _):
        await database.deploys.begin(a_deploy(), auto_switch=True)
        assert rows(path, "SELECT deploy_id FROM deploys") == [("d1",)]
        ((synchronous,),) = await database.statements.connection.execute_fetchall(
            "PRAGMA synchronous"
        )
        ((journal,),) = await database.statements.connection.execute_fetchall("PRAGMA journal_mode")
        assert (synchronous, journal) == (2, "wal")


async def test_a_write_that_fails_half_way_leaves_nothing_of_it(path: Path) -> None:
    async with open_database(path) as (database, _):
        await database.deploys.begin(a_deploy(), auto_switch=True)
        for bad in ({"reason": "\udcff"}, {"active_port": 1 << 70}):
            # The transition itself is fine; what follows in the same transaction is not.
            with pytest.raises(StoreError, match="could not be written"):
                await transition(database, "d1", **bad)
            assert not database.statements.connection.in_transaction
        with pytest.raises(StoreError, match="FOREIGN KEY"):
            await transition(database, "unknown")
        await database.audit.write(SUPERVISOR, "after", "done")
        assert rows(path, TRANSITIONS) == [(0,)]
        assert rows(path, "SELECT count(*) FROM audit") == [(1,)]


async def test_a_flip_is_written_with_its_version_and_the_state_or_not_at_all(path: Path) -> None:
    release = Release(name="v2", path=Path("/srv/releases/v2"), version="v2")
    change = VersionChange(Version(GREEN, release))
    async with open_database(path) as (database, _):
        await database.deploys.begin(a_deploy(), auto_switch=True)
        with pytest.raises(StoreError):
            await transition(database, "d1", change, reason="\udcff")
        assert await database.versions.all() == []
        assert await database.state.load() is None
        await transition(database, "d1", change)
        assert await database.versions.all() == [Version(GREEN, release)]
        assert await database.state.load() == a_state(generation=9)
        assert rows(path, TRANSITIONS) == [(1,)]


async def test_writers_at_once_do_not_mix_their_transactions(path: Path) -> None:
    async with open_database(path) as (database, _):
        for number in range(5):
            await database.deploys.begin(a_deploy(f"d{number}"), auto_switch=True)
        known = [transition(database, f"d{number}") for number in range(5) for _ in range(10)]
        unknown = [transition(database, f"unknown{number}") for number in range(20)]
        outcomes = await asyncio.gather(
            *(each for pair in zip(known, unknown, strict=False) for each in pair),
            *known[20:],
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, StoreError) for outcome in outcomes) == 20
        assert sum(outcome is None for outcome in outcomes) == 50
        for deploy in await database.deploys.latest(10):
            assert len(deploy.steps) == 10
        assert rows(path, TRANSITIONS) == [(50,)]


async def test_readers_see_no_transaction_that_is_still_open(path: Path) -> None:
    async with open_database(path) as (database, _):
        await database.deploys.begin(a_deploy(), auto_switch=True)

        async def read() -> None:
            for _ in range(50):
                found = await database.deploys.find("d1")
                assert found is not None
                assert found.version != "to be taken back"

        async def write() -> None:
            for _ in range(20):
                with pytest.raises(StoreError):
                    await transition(database, "d1", version="to be taken back", reason="\udcff")

        await asyncio.gather(read(), read(), write())


@pytest.mark.parametrize("native", [True, False])
async def test_a_writer_that_is_cancelled_leaves_no_transaction_open(
    path: Path, native: bool
) -> None:
    async with open_database(path) as (database, _):
        await database.deploys.begin(a_deploy(), auto_switch=True)
        for steps in range(12):
            if native:
                task = asyncio.create_task(transition(database, "d1"))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            else:
                with anyio.move_on_after(steps * 0.0002):
                    await transition(database, "d1")
            assert not database.statements.connection.in_transaction
        await database.audit.write(SUPERVISOR, "after", "done")
        written = rows(path, "SELECT count(*) FROM steps")
        assert rows(path, TRANSITIONS) == written  # each is there as a whole, or not at all


async def test_a_database_that_another_process_holds_is_an_error_and_then_fine(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.1)
    async with open_database(path) as (database, _):
        with locked_by_another_process(path), pytest.raises(StoreError, match="locked"):
            await database.deploys.begin(a_deploy(), auto_switch=True)
        await database.deploys.begin(a_deploy(), auto_switch=True)


async def test_a_database_that_is_held_at_the_start_refuses_it_and_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (x)")
    before = open_files()
    with locked_by_another_process(path), pytest.raises(StartRefusedError, match="locked"):
        async with open_database(path):
            pass
    assert [each.name for each in path.parent.iterdir() if "unreadable" in each.name] == []
    assert open_files() <= before


@pytest.mark.parametrize("damage", ["garbage", "header", "middle", "truncated"])
async def test_a_damaged_file_is_set_aside_and_a_new_one_made(path: Path, damage: str) -> None:
    async with open_database(path) as (database, _):
        for number in range(50):
            await database.deploys.begin(a_deploy(f"d{number}"), auto_switch=True)
    content = damaged(path, damage)
    async with open_database(path) as (database, aside):
        assert aside is not None
        assert aside.read_bytes() == content
        assert await database.deploys.latest(10) == []
        await database.deploys.begin(a_deploy(), auto_switch=True)
    async with open_database(path) as (database, aside):
        assert aside is None
        assert len(await database.deploys.latest(10)) == 1


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"")])
async def test_a_database_that_has_gone_or_is_empty_is_told_as_lost(
    path: Path, lose: Callable[[Path], object]
) -> None:
    async with open_database(path) as (database, aside):
        assert (aside, database.lost) == (None, None)  # a first start
        await database.audit.write(SUPERVISOR, "mode", "set")
    lose(path)

    with capture_logs() as logged:
        async with open_database(path) as (database, aside):
            assert database.lost == aside is not None
            assert aside.read_bytes() == b""
    assert [each["event"] for each in logged] == ["audit_trail_broken"]  # what is gone is missing

    aside.unlink()
    async with open_database(path) as (database, aside):
        assert (aside, database.lost) == (None, None)


async def test_a_database_that_a_power_cut_emptied_with_the_note_of_its_end_is_told_as_lost(
    path: Path,
) -> None:
    async with open_database(path) as (database, _):
        await database.audit.write(SUPERVISOR, "mode", "set")
    for emptied in (path, path.with_name(HEAD_FILE)):
        emptied.write_bytes(b"")
    async with open_database(path) as (database, aside):
        assert database.lost == aside is not None
        await database.audit.write(SUPERVISOR, "mode", "set")
    async with open_database(path) as (database, again):
        assert (database.lost, again) == (aside, None)


async def test_a_log_that_is_gone_leaves_what_was_in_the_file(path: Path) -> None:
    async with open_database(path) as (database, _):
        await database.deploys.begin(a_deploy("d1"), auto_switch=True)
        await database.statements.connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        await database.deploys.begin(a_deploy("d2"), auto_switch=True)
        copy = crashed(path, "atlas.db")
    async with open_database(copy) as (database, aside):
        assert aside is None
        assert [each.deploy_id for each in await database.deploys.latest(10)] == ["d1"]


async def test_a_crash_loses_nothing_that_was_written(path: Path) -> None:
    async with open_database(path) as (database, _):
        await database.deploys.begin(a_deploy("d1"), auto_switch=True)
        copy = crashed(path, "atlas.db", "atlas.db-wal")
    async with open_database(copy) as (database, _):
        assert [each.deploy_id for each in await database.deploys.latest(10)] == ["d1"]


async def test_a_place_that_cannot_hold_a_database_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "gone" / "atlas.db"):
        with pytest.raises(StartRefusedError, match="can't be opened"):
            async with open_database(place):
                pass


async def test_its_files_are_for_the_group_at_most(path: Path) -> None:
    async with open_database(path) as (database, _):
        await database.deploys.begin(a_deploy(), auto_switch=True)
        found = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
    assert found == dict.fromkeys(("atlas.db", "atlas.db-wal", "atlas.db-shm"), 0o640)


async def test_a_closed_database_says_so(path: Path) -> None:
    async with open_database(path) as (database, _):
        pass
    with pytest.raises(StoreError):
        await database.deploys.begin(a_deploy(), auto_switch=True)
    with pytest.raises(StoreError):
        await database.deploys.latest(1)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, Path.touch])
def test_no_release_is_recorded_where_there_is_no_database(
    path: Path, make: Callable[[Path], object]
) -> None:
    assert recorded_releases(path) == []
    make(path)
    assert recorded_releases(path) == []


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(params=[os.mkfifo, os.mkdir])
def target(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Put a link in the place of the database; return its target, open to every user."""
    made = tmp_path / "other"
    request.param(made)
    made.chmod(0o777)
    path.symlink_to(made)
    return made


async def test_the_target_of_a_link_in_place_of_the_database_keeps_its_mode(
    path: Path, target: Path
) -> None:
    """It may be a device of the machine, and the daemon root."""
    with pytest.raises(StartRefusedError, match="can't be opened"):
        async with open_database(path):
            pass
    assert mode_of(target) == 0o777
