"""A SQLite file that two instances share, used from the event loop without blocking it.

One thread and connection writes, another reads, so that a reader never waits behind a writer that
waits for the other process. Work is a plain function of the connection; each write is one
transaction, and a smoke test's write is rolled back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

BUSY_SECONDS = 5.0
_FOLDER_MODE, _FILE_MODE = 0o700, 0o640


class ModuleDatabase:
    """One file with its schema. `open` before use, `close` after it."""

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        self._path = path
        self._migrations = migrations
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"{path.stem}-write")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix=f"{path.stem}-read")
        self._connections: dict[ThreadPoolExecutor, sqlite3.Connection] = {}

    async def open(self) -> None:
        """Create the file and bring its schema up to date; raises sqlite3.Error or OSError."""
        await self._in(self._writer, self._prepare)
        await self._in(self._reader, lambda: self._connect(self._reader))

    async def close(self) -> None:
        """Finish pending work and close the file."""
        for executor in (self._reader, self._writer):
            await self._in(executor, lambda e=executor: self._disconnect(e))  # type: ignore[misc]  # the default binds the loop's variable
            executor.shutdown()

    async def write(self, work: Work[T], *, keep: bool = True) -> T:
        """Run the work in a write transaction of its own; roll it back unless `keep`."""
        return await self._in(self._writer, lambda: self._transact(work, keep=keep))

    async def read(self, work: Work[T]) -> T:
        """Run the work on the reading connection."""
        return await self._in(self._reader, lambda: work(self._connections[self._reader]))

    @staticmethod
    async def _in(executor: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, call)

    def _connect(self, executor: ThreadPoolExecutor) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
        self._connections[executor] = connection
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _disconnect(self, executor: ThreadPoolExecutor) -> None:
        connection = self._connections.pop(executor, None)
        if connection is not None:
            connection.close()

    def _transact(self, work: Work[T], *, keep: bool) -> T:
        connection = self._connections[self._writer]
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT" if keep else "ROLLBACK")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        return result

    def _prepare(self) -> None:
        _make_private(self._path)
        connection = self._connect(self._writer)
        _enter_wal(connection)
        self._transact(self._migrate, keep=True)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Apply missing migrations; those of a newer instance stay.

        Migrations only add, so that the previous version still works after a rollback.
        """
        (done,) = connection.execute("PRAGMA user_version").fetchone()
        for number, statement in enumerate(self._migrations[done:], start=done + 1):
            connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")


def _make_private(path: Path) -> None:
    """Give folder and files their modes: nothing is open to other users, under any umask.

    SQLite's companions take after the file; those of an earlier version are corrected.
    """
    folder = path.parent
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # an open one may be locked; closing it unlocks
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(path, flags, _FILE_MODE))
    with contextlib.suppress(OSError):  # another user has made them, or the last one is leaving
        folder.chmod(_FOLDER_MODE)
        for each in folder.glob(f"{path.name}*"):
            each.chmod(_FILE_MODE)


def _enter_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL; SQLite does not wait by itself while another process does the same."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
