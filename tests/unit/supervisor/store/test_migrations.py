from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.deploy import Result
from atlas_supervisor.store import migrations
from atlas_supervisor.store.database import open_database
from atlas_supervisor.store.migrations import SCHEMA_VERSION
from tests.unit.supervisor.store.support import a_deploy, a_step, moved

VERSION_1 = Path(__file__).with_name("version_1.sql")
"""A real database, as the code wrote it before its schema had a version."""

VERSION_2 = Path(__file__).with_name("version_2.sql")
"""Likewise, before its audit trail was chained."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "atlas.db"


def old_database(path: Path, script: Path = VERSION_1) -> dict[str, list[dict[str, object]]]:
    """Make the file that the older code left, and return all that is in it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(script.read_text())
    return content(path)


def content(path: Path) -> dict[str, list[dict[str, object]]]:
    """Return every row of every table, from outside."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        names = [
            row["name"]
            for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        return {name: [dict(row) for row in connection.execute(_all(name))] for name in names}


def _all(table: str) -> str:
    return f"SELECT * FROM {table}"  # noqa: S608  # the name is the database's own


def whole(path: Path) -> bytes:
    return path.read_bytes()


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        ((found,),) = connection.execute("PRAGMA user_version").fetchall()
        return int(found)


def schema(path: Path) -> set[tuple[str, str]]:
    """Return every table's columns, and every index."""
    with closing(sqlite3.connect(path)) as connection:
        return set(
            connection.execute(
                "SELECT m.name, c.name || ' ' || c.type || c.[notnull] || ifnull(c.dflt_value, '')"
                " FROM sqlite_master AS m, pragma_table_info(m.name) AS c"
            )
        ) | set(connection.execute("SELECT name, tbl_name FROM sqlite_master WHERE type = 'index'"))


async def test_an_old_database_is_brought_up_to_date_and_nothing_of_it_is_lost(path: Path) -> None:
    before = old_database(path)
    assert version(path) == 0
    async with open_database(path) as (database, aside):
        assert aside is None
        after = content(path)
        for table, rows in before.items():
            kept = [{name: row[name] for name in rows[0]} for row in after[table]]
            assert kept == rows, table
        failed, rolled_back = await database.deploys.latest(10)
        assert (failed.result, rolled_back.result) == (Result.FAILED, Result.SWITCHED)
        assert [step.name for step in failed.steps] == ["preflight", "launch", "smoke", "health"]
        versions = await database.versions.all()
        assert [each.release.identity for each in versions] == [None, None]
        assert {row["rollback"] for row in after["deploys"]} == {0}
        # What follows is written beside it.
        await database.deploys.begin(a_deploy(), auto_switch=True, rollback=True)
        await database.deploys.write_transition(
            *moved(a_deploy(phase="launch"), source="preflight", event="passed", step=a_step())
        )
        assert (await database.deploys.unfinished())[0].rollback
    assert version(path) == SCHEMA_VERSION


@pytest.mark.parametrize("script", [VERSION_1, VERSION_2], ids=["version 1", "version 2"])
async def test_entries_from_before_there_was_a_chain_are_chained_as_they_stand(
    path: Path, script: Path
) -> None:
    before = old_database(path, script)["audit"]
    assert len(before) > 4
    async with open_database(path) as (database, _):
        found = await database.trail.verify()
        assert (found.ok, found.entries) == (True, len(before))
        await database.audit.write(SUPERVISOR, "daemon", "started")
        assert (await database.trail.verify()).entries == len(before) + 1
    after = content(path)["audit"]
    assert [{name: row[name] for name in before[0]} for row in after[:-1]] == before
    assert version(path) == SCHEMA_VERSION


async def test_a_database_of_version_2_keeps_its_content(path: Path) -> None:
    before = old_database(path, VERSION_2)
    assert version(path) == 2
    async with open_database(path) as (database, _):
        assert await database.keys.get("first") is not None
        failed, switched = await database.deploys.latest(10)
        assert (failed.result, switched.result) == (Result.FAILED, Result.SWITCHED)
    after = content(path)
    for table in before.keys() - {"audit"}:
        kept = [{name: row[name] for name in before[table][0]} for row in after[table]]
        assert kept == before[table], table


async def test_entries_that_can_not_be_chained_leave_the_old_database_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = old_database(path, VERSION_2)

    def fails(*_: object) -> str:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "hash_of", fails)
        with pytest.raises(MemoryError):
            async with open_database(path):
                pass
    assert content(path) == before
    assert version(path) == 2
    async with open_database(path):
        pass
    assert version(path) == SCHEMA_VERSION


async def test_an_old_and_a_new_database_have_the_same_schema(path: Path, tmp_path: Path) -> None:
    old_database(path)
    fresh = tmp_path / "fresh.db"
    for each in (path, fresh):
        async with open_database(each):
            pass
    assert schema(path) == schema(fresh)
    assert version(fresh) == SCHEMA_VERSION


async def test_a_database_that_is_up_to_date_is_left_alone(path: Path) -> None:
    async with open_database(path):
        pass
    before = whole(path)
    async with open_database(path):
        pass
    assert whole(path) == before


async def test_an_upgrade_that_fails_leaves_the_old_database_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = old_database(path)
    broken = {**migrations._STEPS, 99: "CREATE TABLE half_way (x); INSERT INTO nowhere VALUES (1);"}
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "_STEPS", broken)
        with pytest.raises(StartRefusedError, match="nowhere"):
            async with open_database(path):
                pass
    assert content(path) == before
    assert version(path) == 0
    assert [each.name for each in path.parent.glob("*unreadable*")] == []
    async with open_database(path):
        pass
    assert version(path) == SCHEMA_VERSION


async def test_a_database_of_a_newer_version_is_refused_by_name_and_left_alone(path: Path) -> None:
    old_database(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = whole(path)
    with pytest.raises(StartRefusedError) as refused:
        async with open_database(path):
            pass
    for said in (str(path), "99", f"up to {SCHEMA_VERSION}", "Start that one again", "move"):
        assert said in str(refused.value)
    assert whole(path) == before
    assert [each.name for each in path.parent.glob("*unreadable*")] == []
