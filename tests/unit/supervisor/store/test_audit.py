"""The audit trail in a real database, and how tampering is found."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.audit import AuditEntry, Problem, Verification
from atlas_supervisor.store import audit as module
from atlas_supervisor.store import audit_trail
from atlas_supervisor.store.audit import HEAD_FILE
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.statements import StoreError

AUDIT_MD = (Path(__file__).parents[4] / "docs" / "audit.md").read_text()
ROOT = Actor(name="uid:0", origin="unix")
COPY = (
    "INSERT INTO audit SELECT {id}, ts, actor, origin, action, subject, outcome, detail, "
    "previous_hash, hash FROM audit WHERE id = 1"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "atlas.db"


@asynccontextmanager
async def trail(path: Path, entries: int = 0) -> AsyncIterator[Database]:
    """Open the database, and write so many entries."""
    async with open_database(path) as (database, _):
        for number in range(entries):
            await database.audit.write(ROOT, "mode", "single", subject=f"d{number}", number=number)
        yield database


def note(path: Path) -> str:
    """Return what is noted beside the database."""
    return path.with_name(HEAD_FILE).read_text()


def write_note(path: Path, content: str) -> None:
    path.with_name(HEAD_FILE).write_bytes(content.encode("utf-8", "surrogateescape"))


def take_away(*paths: Path) -> None:
    for each in paths:
        each.unlink()


def damage(path: Path) -> None:
    path.write_bytes(b"this is no database at all" * 100)


def tamper(path: Path, *statements: str) -> None:
    """Change the database behind the daemon's back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


async def listed(database: Database, **asked: Any) -> list[AuditEntry]:
    default: dict[str, Any] = {"limit": 100, "before": None, "action": None, "subject": None}
    return await database.trail.entries(**{**default, **asked})


def broken(found: Verification) -> tuple[int | None, Problem | None]:
    assert found.ok is (found.broken_id is None)
    return found.broken_id, found.problem


# Writing.


async def test_entries_come_back_newest_first_each_with_the_hash_of_the_one_before(
    path: Path,
) -> None:
    async with trail(path, 3) as database:
        third, second, first = await listed(database)
        assert [each.id for each in (first, second, third)] == [1, 2, 3]
        assert first.previous_hash == "0" * 64
        assert (second.previous_hash, third.previous_hash) == (first.hash, second.hash)
        assert (first.actor, first.origin, first.action, first.outcome) == (
            *("uid:0", "unix", "mode", "single"),
        )
        assert (first.subject, first.detail) == ("d0", {"number": 0})
        found = await database.trail.verify()
        assert (found.ok, found.entries, found.head, found.head_id) == (True, 3, third.hash, 3)


async def test_pages_and_filters_find_what_was_asked_for(path: Path) -> None:
    async with trail(path, 5) as database:
        await database.audit.write(SUPERVISOR, "deploy", "begun", subject="d1")
        assert [each.id for each in await listed(database, limit=2)] == [6, 5]
        assert [each.id for each in await listed(database, limit=2, before=5)] == [4, 3]
        assert [each.id for each in await listed(database, subject="d1")] == [6, 2]
        assert [each.id for each in await listed(database, action="deploy")] == [6]
        assert [each.id for each in await listed(database, subject="d1", action="mode")] == [2]
        assert await listed(database, action="nothing") == []
        assert await listed(database, before=1) == []


async def test_writers_at_once_do_not_fork_the_chain(path: Path) -> None:
    async with trail(path) as database:
        await asyncio.gather(*(database.audit.write(ROOT, "mode", f"o{n}") for n in range(50)))
        found = await database.trail.verify()
        assert (found.ok, found.entries) == (True, 50)


async def test_the_chain_goes_on_over_a_restart(path: Path) -> None:
    async with trail(path, 2):
        pass
    async with trail(path, 2) as database:
        found = await database.trail.verify()
        assert (found.ok, found.entries, found.head_id) == (True, 4, 4)


async def test_a_long_trail_is_verified_page_by_page_while_others_write(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_trail, "_PAGE", 3)
    async with trail(path, 10) as database:

        async def write() -> None:
            for _ in range(20):
                await database.audit.write(ROOT, "mode", "single")

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            for _ in range(5):
                assert (await database.trail.verify()).ok
        assert (await database.trail.verify()).entries == 30


async def test_entries_that_the_disk_does_not_take_are_written_later_in_order(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trail(path, 1) as database:
        taken, write = False, database.audit._chained

        async def fails(entries: Any) -> Any:
            if not taken:
                raise sqlite3.OperationalError("disk I/O error")
            return await write(entries)

        monkeypatch.setattr(database.audit, "_chained", fails)
        await database.audit.record(ROOT, "switch", "switched")
        await database.audit.record(ROOT, "abort", "aborted")
        with pytest.raises(StoreError):
            await database.audit.write(ROOT, "deploy", "begun")
        taken = True
        await database.audit.write(ROOT, "mode", "single")
        assert [each.action for each in await listed(database)] == [
            *("mode", "abort", "switch", "mode"),
        ]
        assert (await database.trail.verify()).ok


async def test_entries_that_wait_together_are_one_transaction(path: Path) -> None:
    async with trail(path) as database:
        for number in range(3):
            database.audit.enqueue(ROOT, "request", f"o{number}")
        assert len(database.outbox.waiting) == 1
        await database.outbox.flush()
        assert [each.outcome for each in reversed(await listed(database))] == ["o0", "o1", "o2"]


async def test_an_entry_that_comes_while_others_are_written_is_not_lost(path: Path) -> None:
    async with trail(path) as database, anyio.create_task_group() as group:
        group.start_soon(database.outbox.run)
        for number in range(50):
            database.audit.enqueue(ROOT, "request", f"o{number}")
            await asyncio.sleep(0)
        await database.outbox.flush()
        assert len(await listed(database)) == 50
        group.cancel_scope.cancel()


async def test_pending_entries_are_bounded_and_the_oldest_are_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PENDING_LIMIT", 3)
    async with trail(path) as database:
        for number in range(5):
            database.audit.enqueue(ROOT, "request", f"o{number}")
        await database.audit.write(ROOT, "mode", "single")
        assert [each.outcome for each in reversed(await listed(database))] == [
            *("o2", "o3", "o4", "single"),
        ]


async def test_the_script_of_the_documentation_finds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "state" / "atlas.db"
    path.parent.mkdir()
    async with trail(path, 3) as database:
        head = (await database.trail.verify()).head
    (script,) = re.findall(r"^```python\n(.*?)^```", AUDIT_MD, re.MULTILINE | re.DOTALL)
    code, out, _ = await run_script(script, tmp_path)
    assert (code, out) == (0, f"3 {head}\n")
    tamper(path, "UPDATE audit SET actor = 'uid:7' WHERE id = 2")
    code, _, err = await run_script(script, tmp_path)
    assert (code, "entry 2 was changed" in err) == (1, True)


async def run_script(script: str, folder: Path) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script), cwd=folder, stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


# What is found.


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE audit SET actor = 'uid:7' WHERE id = 2", (2, Problem.CHANGED)),
        ("UPDATE audit SET subject = NULL WHERE id = 2", (2, Problem.CHANGED)),
        ("UPDATE audit SET detail = '{}' WHERE id = 4", (4, Problem.CHANGED)),
        ("UPDATE audit SET ts = CAST(x'ff00fe' AS TEXT) WHERE id = 3", (3, Problem.CHANGED)),
        ("UPDATE audit SET detail = detail || char(0) WHERE id = 3", (3, Problem.CHANGED)),
        ("DELETE FROM audit WHERE id = 1", (1, Problem.MISSING)),
        ("DELETE FROM audit WHERE id IN (2, 3)", (2, Problem.MISSING)),
        ("DELETE FROM audit WHERE id > 3", (4, Problem.CUT_OFF)),
        ("DELETE FROM audit", (1, Problem.CUT_OFF)),
        ("UPDATE audit SET id = 9 WHERE id = 4", (4, Problem.MISSING)),
        (COPY.format(id=0), (0, Problem.FOREIGN)),
        (COPY.format(id=9), (6, Problem.FOREIGN)),
    ],
)
async def test_tampering_is_found_at_once_and_after_later_entries(
    path: Path, statement: str, expected: tuple[int, Problem]
) -> None:
    async with trail(path, 5) as database:
        tamper(path, statement)
        assert broken(await database.trail.verify()) == expected
        await listed(database)  # it can still be read
        await database.audit.write(ROOT, "mode", "single")
        assert not (await database.trail.verify()).ok
    async with trail(path, 1) as database:
        found = await database.trail.verify()
        assert not found.ok
        assert found.broken_id is not None
        assert found.broken_id <= 6


async def test_a_tail_that_is_cut_off_while_no_daemon_runs_stays_missing(path: Path) -> None:
    async with trail(path, 5):
        pass
    tamper(path, "DELETE FROM audit WHERE id >= 4")
    async with trail(path) as database:
        assert broken(await database.trail.verify()) == (4, Problem.CUT_OFF)
        await database.audit.write(ROOT, "mode", "single")
        assert broken(await database.trail.verify()) == (4, Problem.MISSING)
    async with trail(path) as database:
        assert broken(await database.trail.verify()) == (4, Problem.MISSING)


async def test_a_trail_that_was_written_anew_contradicts_the_note(path: Path) -> None:
    async with trail(path, 3):
        pass
    noted = note(path)
    take_away(path, path.with_name(HEAD_FILE))
    async with trail(path, 3):
        pass
    write_note(path, noted)
    async with trail(path) as database:
        assert broken(await database.trail.verify()) == (3, Problem.OUT_OF_PLACE)
        await database.audit.write(ROOT, "mode", "single")
        assert broken(await database.trail.verify()) == (4, Problem.OUT_OF_PLACE)


async def test_a_removed_database_leaves_its_entries_missing(path: Path) -> None:
    async with trail(path, 3):
        pass
    take_away(path)
    async with trail(path, 1) as database:
        assert broken(await database.trail.verify()) == (1, Problem.MISSING)
        assert [each.id for each in await listed(database)] == [4]


async def test_a_note_that_is_behind_is_no_fault(path: Path) -> None:
    async with trail(path, 2):
        noted = note(path)
    async with trail(path, 2):
        pass
    write_note(path, noted)  # as if the daemon had been killed before it noted the last two
    async with trail(path, 1) as database:
        found = await database.trail.verify()
        assert (found.ok, found.entries) == (True, 5)


@pytest.mark.parametrize("content", [None, "", "[]", '{"id": 0, "hash": ""}', "\udcff"])
async def test_a_note_that_can_not_be_read_is_made_anew(path: Path, content: str | None) -> None:
    async with trail(path, 2):
        pass
    if content is None:
        take_away(path.with_name(HEAD_FILE))
    else:
        write_note(path, content)
    async with trail(path, 1) as database:
        found = await database.trail.verify()
        assert (found.ok, found.entries) == (True, 3)
    assert found.head in note(path)


async def test_a_note_that_can_not_be_written_stops_no_entry(path: Path) -> None:
    path.with_name(f".{HEAD_FILE}.new").mkdir()
    async with trail(path, 2) as database:
        assert (await database.trail.verify()).entries == 2


async def test_after_a_damaged_database_was_set_aside_the_chain_goes_on(path: Path) -> None:
    async with trail(path, 3) as database:
        before = (await database.trail.verify()).head
    damage(path)
    async with open_database(path) as (database, aside):
        assert aside is not None
        await database.audit.write(SUPERVISOR, "database", "set_aside", aside=aside.name)
        await database.audit.write(ROOT, "mode", "single")
        found = await database.trail.verify()
        assert (found.ok, found.entries, found.head_id) == (True, 2, 5)
        assert (await listed(database))[-1].previous_hash == before
