"""`atlas.db`: opened, looked over, brought to this version's schema; and its stores.

Write-ahead log with `synchronous=FULL`: when a call returns, what it wrote survives a power cut.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import aiosqlite
import anyio

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.release import Release
from atlas_supervisor.store.audit import HEAD_FILE, AuditStore, HeadFile
from atlas_supervisor.store.audit_trail import AuditTrail
from atlas_supervisor.store.canary import CanaryStore
from atlas_supervisor.store.deploys import DeployStore, TransitionStore, VersionStore, release_of
from atlas_supervisor.store.keys import KeyStore
from atlas_supervisor.store.migrations import migrate
from atlas_supervisor.store.outbox import Outbox
from atlas_supervisor.store.requests import RequestStore
from atlas_supervisor.store.state_folder import DATABASE_FILE
from atlas_supervisor.store.state_keeper import StateCopy
from atlas_supervisor.store.statements import Statements, Timed, is_damage, untimed
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.files import open_regular
from atlas_supervisor.system.threads import in_thread

_BUSY_SECONDS = 5.0
_FILE_MODE = 0o640


class Database:
    """The open database, noun by noun. Every method raises StoreError and writes all or nothing."""

    def __init__(
        self, connection: aiosqlite.Connection, path: Path, timed: Timed = untimed
    ) -> None:
        self._path, self._file = path, path.stat()
        self.statements = Statements(connection, timed)
        self.outbox = Outbox()
        self.deploys = DeployStore(self.statements, self.outbox)
        self.transitions = TransitionStore(self.statements, self.outbox)
        self.versions = VersionStore(self.statements)
        self.state = StateCopy(self.statements)
        self.keys = KeyStore(self.statements)
        self.audit = AuditStore(self.statements, self.outbox)
        self.trail = AuditTrail(self.statements, self.audit)
        self.canary = CanaryStore(self.statements)
        self.requests = RequestStore(self.statements)
        self.lost: Path | None = None
        """A damaged database whose history is missing here, until an operator removes it."""

    def look_for_lost(self) -> Path | None:
        """Return the database that was set aside last, if it is still there; note it in `lost`."""
        self.lost = set_aside_last(self._path.parent)
        return self.lost

    def is_in_place(self) -> bool:
        """Return whether the open file is still the one at its path, where a start looks for it.

        SQLite goes on in a file that was removed or replaced.
        """
        try:
            return os.path.samestat(self._path.stat(), self._file)
        except OSError:
            return False


def set_aside_last(folder: Path) -> Path | None:
    """Return the damaged database that was set aside last in a state folder, if one lies there."""
    stamps = re.compile(rf"{re.escape(DATABASE_FILE)}\.unreadable-\w+")
    found = [path for path in folder.glob(f"{DATABASE_FILE}.*") if stamps.fullmatch(path.name)]
    return max(found, key=lambda path: path.name, default=None)


def recorded_releases(path: Path) -> list[Release]:
    """Return the releases that had the traffic, the last one first, without a daemon.

    None of them if nothing can be read. Blocks on the disk.
    """
    if not path.is_file():
        return []  # SQLite would wait for the other end of a FIFO
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [
                release_of(row)
                for row in connection.execute("SELECT * FROM versions ORDER BY id DESC")
                if "undone" not in set(row.keys()) or not row["undone"]
            ]
    except sqlite3.Error:
        return []


@asynccontextmanager
async def open_database(
    path: Path, timed: Timed = untimed, *, damaged: bool = False
) -> AsyncIterator[tuple[Database, Path | None]]:
    """Open the database; a damaged one is set aside first, and its new path is returned.

    So is one that has gone or is empty, as a power cut or a restore may leave it: nothing else
    would show that its history is missing.
    Raises StartRefusedError if it can't be had, for instance while another process holds it.
    """
    aside: Path | None = None
    head = HeadFile(path.with_name(HEAD_FILE))
    gone = await in_thread(_has_gone, path, head)
    try:
        try:
            aside = await in_thread(_set_aside, path) if damaged or gone else None
            connection = await _connect(path)
        except (sqlite3.Error, ValueError, LookupError) as error:
            if aside is not None or not is_damage(error):
                raise
            aside = await in_thread(_set_aside, path)
            connection = await _connect(path)
    except (sqlite3.Error, OSError) as error:
        raise StartRefusedError(
            f"{path} can't be opened: {error}. Is the disk full or read-only, or the file another "
            "user's?"
        ) from error
    database = Database(connection, path, timed)
    try:
        await database.audit.open(head, set_aside=aside is not None and not gone)
        await in_thread(database.look_for_lost)
        yield database, aside
    finally:
        with anyio.CancelScope(shield=True):
            await connection.close()


async def _connect(path: Path) -> aiosqlite.Connection:
    await in_thread(_make_private, path)
    connection = await aiosqlite.connect(path, timeout=_BUSY_SECONDS)
    try:
        connection.row_factory = aiosqlite.Row
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.execute("PRAGMA foreign_keys = ON")
        problems = [row[0] for row in await connection.execute_fetchall("PRAGMA quick_check(1)")]
        if problems != ["ok"]:
            raise sqlite3.DatabaseError(f"damaged: {problems}")
        await migrate(connection, path)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await connection.close()
        raise
    return connection


def _make_private(path: Path) -> None:
    """Give the file its mode before SQLite opens it: its companions take after it.

    Not by its name, which may be a link to a device of the machine. Tries to open it, too: where
    that can't be done, aiosqlite would leave its thread behind.
    """
    descriptor = open_regular(path, os.O_RDWR | os.O_CREAT, _FILE_MODE)
    try:
        os.fchmod(descriptor, _FILE_MODE)  # for a file that existed
    finally:
        os.close(descriptor)
    sqlite3.connect(path).close()


def _has_gone(path: Path, head: HeadFile) -> bool:
    """Return whether there is no database, although there was one: its audit trail had an end.

    A power cut may empty the note of that end as well: that it is there is enough.
    """
    try:
        return path.stat().st_size == 0 and os.path.lexists(head.path)
    except FileNotFoundError:
        return os.path.lexists(head.path)
    except OSError:  # the refusal comes when it is opened
        return False


def _set_aside(path: Path) -> Path:
    stamp = now().strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.name}.unreadable-{stamp}")
    for suffix in ("-wal", "-shm", ""):  # an old log beside a new database would be applied to it
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    aside.touch(_FILE_MODE)  # nothing was left of it: an empty file stands for it
    return aside
