from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from atlas_worker.app import integrity
from atlas_worker.app.integrity import Integrity, quick_check
from tests.unit.worker.app_support import running_app


def make_database(path: Path, rows: int = 2000) -> Path:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
        db.executemany("INSERT INTO things (name) VALUES (?)", ((f"n{n}",) for n in range(rows)))
    db.close()
    return path


def spoil(path: Path) -> None:
    """Overwrite a page in the middle of the file."""
    with path.open("rb+") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096)


def test_an_intact_database_passes_and_a_corrupt_one_is_named(tmp_path: Path) -> None:
    path = make_database(tmp_path / "a.db")
    assert quick_check(path) is None
    spoil(path)
    assert quick_check(path)


def test_a_missing_or_foreign_file_is_a_problem_and_is_not_created(tmp_path: Path) -> None:
    assert quick_check(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("this is no database at all" * 100)
    assert "not a database" in str(quick_check(tmp_path / "text.db"))


async def test_a_slow_check_is_waited_for_briefly_and_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, calls = threading.Event(), []

    def slow(path: Path) -> str | None:
        calls.append(path)
        may_end.wait(30)
        return None

    monkeypatch.setattr(integrity, "quick_check", slow)
    monkeypatch.setattr(integrity, "PATIENCE_SECONDS", 0.05)
    checked = Integrity(tmp_path / "a.db")
    found = await asyncio.gather(checked.finding(), checked.finding())
    assert set(found) == {None}
    may_end.set()
    await checked.stop()
    finding = await checked.finding()
    assert finding is not None
    assert finding.problem is None
    assert len(calls) == 1


async def test_an_expensive_check_is_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, made = [0.0], []

    def costly(_path: Path) -> str | None:
        made.append(now[0])
        now[0] += 2.0
        return None

    monkeypatch.setattr(integrity, "quick_check", costly)
    checked = Integrity(tmp_path / "a.db", clock=lambda: now[0])
    ages = []
    for moment in (0.0, 50.0, 150.0, 201.0, 203.0):
        now[0] = max(now[0], moment)
        finding = await checked.finding()
        assert finding is not None
        ages.append(checked.age(finding))
    assert made == [0.0, 203.0]
    assert ages == [0.0, 48.0, 148.0, 199.0, 0.0]


async def test_health_reports_a_corrupt_scheduler_database(
    tmp_path: Path,
) -> None:
    async with running_app(tmp_path) as site:
        path = tmp_path / "worker" / "scheduler.db"
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE ballast (id INTEGER PRIMARY KEY, name TEXT)")
            db.executemany("INSERT INTO ballast (name) VALUES (?)", (("x" * 900,),) * 200)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        spoil(path)
        status, body = await site.get("/health")
        assert body["checks"]["db_integrity"]["status"] == "fail"
        # A restart would not repair the file: the worker reports it and continues.
        assert (status, body["status"]) == (200, "fail")
