from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atlas_worker.app.database import ModuleDatabase

TABLE = "CREATE TABLE things (name TEXT)"
MORE = "ALTER TABLE things ADD COLUMN size INTEGER"


def add(name: str) -> object:
    return lambda db: db.execute("INSERT INTO things (name) VALUES (?)", (name,))


def names(db: sqlite3.Connection) -> list[str]:
    return [name for (name,) in db.execute("SELECT name FROM things ORDER BY name")]


async def test_a_write_is_readable_and_durable(tmp_path: Path) -> None:
    database = ModuleDatabase(tmp_path / "new" / "a.db", [TABLE])
    await database.open()
    await database.write(add("one"))  # type: ignore[arg-type]
    assert await database.read(names) == ["one"]
    (mode,) = await database.read(lambda db: db.execute("PRAGMA journal_mode").fetchone())
    assert mode == "wal"
    await database.close()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.db"]


async def test_folder_and_files_are_closed_to_other_users(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir(mode=0o755)
    old = os.umask(0)
    try:
        (folder / "earlier.db").touch(mode=0o666)
        for name in ("earlier.db", "a.db"):
            database = ModuleDatabase(folder / name, [TABLE])
            await database.open()
            await database.write(add("one"))  # type: ignore[arg-type]
            modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.glob(f"{name}*")}
            assert modes == {0o640}
            await database.close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_a_rolled_back_write_leaves_nothing(tmp_path: Path) -> None:
    database = ModuleDatabase(tmp_path / "a.db", [TABLE])
    await database.open()
    await database.write(add("smoke"), keep=False)  # type: ignore[arg-type]
    assert await database.read(names) == []
    await database.close()


async def test_a_failed_write_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    def fail(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO things (name) VALUES ('half')")
        raise ValueError("in the middle")

    database = ModuleDatabase(tmp_path / "a.db", [TABLE])
    await database.open()
    with pytest.raises(ValueError, match="middle"):
        await database.write(fail)
    await database.write(add("whole"))  # type: ignore[arg-type]
    assert await database.read(names) == ["whole"]
    await database.close()


async def test_an_older_version_works_on_a_newer_schema(tmp_path: Path) -> None:
    old = ModuleDatabase(tmp_path / "a.db", [TABLE])
    new = ModuleDatabase(tmp_path / "a.db", [TABLE, MORE])
    for database in (old, new, old.__class__(tmp_path / "a.db", [TABLE])):
        await database.open()
        await database.write(add("thing"))  # type: ignore[arg-type]
        await database.close()
    with sqlite3.connect(tmp_path / "a.db") as db:
        assert db.execute("SELECT count(size), count(*) FROM things").fetchone() == (0, 3)
    db.close()


async def test_many_instances_may_create_the_schema_at_once(tmp_path: Path) -> None:
    def open_and_close(number: int) -> None:
        async def work() -> None:
            database = ModuleDatabase(tmp_path / "a.db", [TABLE, MORE])
            await database.open()
            await database.write(add(str(number)))  # type: ignore[arg-type]
            await database.close()

        asyncio.run(work())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_and_close, range(16)))
    with sqlite3.connect(tmp_path / "a.db") as db:
        assert len(names(db)) == 16
    db.close()
