"""The connection to `atlas.db` and the statements of `queries.sql`: one at a time, all or nothing.

Every noun of the store (deploys, versions, the audit trail, …) is a class that uses this one, in
a file of its own; `database.Database` holds one of each.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from typing import Any, TypeVar, cast

import aiosqlite
import anyio

from atlas_supervisor.errors import AtlasError
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.system.failpoints import seam

T = TypeVar("T")

Statement = tuple[str, dict[str, Any]]
"""The name of a query, and its parameters."""

_FAILURES = (sqlite3.Error, ValueError, OverflowError)
"""What a statement fails with: besides SQLite's own, text that is no Unicode, or a huge number."""


def sections(file: str, word: str) -> dict[str, str]:
    """Return the parts of one of our SQL files, by what follows `-- word: ` above each."""
    text = files("atlas_supervisor.store").joinpath(file).read_text()
    parts = re.split(rf"^-- {word}: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))


_QUERIES = sections("queries.sql", "name")


Timed = Callable[[float, bool], None]
"""Called with the seconds that a durable write took, and whether it succeeded."""


def untimed(_seconds: float, _done: bool) -> None:
    """Ignore the measurement."""


class StoreError(AtlasError):
    """The database could not be read or written; the text says why."""


class UnstorableError(StoreError):
    """The database will never take this value, however often it is tried."""


_NEVER = (sqlite3.IntegrityError, sqlite3.DataError, ValueError, OverflowError)


_TRANSIENT = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_PROTOCOL,
    }
)
"""What is no fault of the content: another process, the disk, permissions."""


def is_damage(error: BaseException) -> bool:
    """Return whether a failure at the start comes from what the database holds.

    Damage shows in many ways: SQLite notices it, a text is no Unicode (SQLite's own messages may
    quote it), a value is no valid JSON, a column is missing.
    """
    if isinstance(error, StoreError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        return code is None or code & 0xFF not in _TRANSIENT
    return isinstance(error, (ValueError, LookupError, TypeError))


class Statements:
    """Runs named queries on the one connection of the process. Raises StoreError."""

    def __init__(self, connection: aiosqlite.Connection, timed: Timed = untimed) -> None:
        self.connection = connection
        self._timed = timed
        self._using = anyio.Lock()

    @property
    def busy(self) -> bool:
        """Whether something is read or written at this moment."""
        return self._using.locked()

    async def write(self, *statements: Statement) -> list[int | None]:
        """Run the statements in one transaction; if one fails, nothing of it is left.

        Return the id of the row that each one has added. The caller continues before the next
        write ends, so what it does with two ids without a pause is done in their order.
        """

        async def work() -> list[int | None]:
            return [await self.run(*statement) for statement in statements]

        return await self.transaction(work)

    async def run(self, name: str, parameters: dict[str, Any]) -> int | None:
        """Run one statement within a transaction; return the id of the row that it has added."""
        async with self.connection.execute(_QUERIES[name], parameters) as cursor:
            return cursor.lastrowid

    @seam("transaction")
    async def transaction(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work in one transaction, all or nothing; return its result."""
        # Shielded and one at a time: a transaction is never left open, nor mixed with another.
        with anyio.CancelScope(shield=True):
            async with self._using:
                watch = Stopwatch()
                try:
                    done = await work()
                    await self.connection.commit()
                except BaseException as error:
                    with suppress(*_FAILURES):  # there may be no open transaction
                        await self.connection.rollback()
                    self._timed(watch.seconds, False)
                    if isinstance(error, _FAILURES):
                        kind = UnstorableError if isinstance(error, _NEVER) else StoreError
                        raise kind(f"the database could not be written: {error}") from error
                    raise
                self._timed(watch.seconds, True)
        return done  # mypy takes a cancel scope for one that may swallow

    async def read(self, name: str, **parameters: Any) -> list[aiosqlite.Row]:
        """Return the rows of a query. Never sees a transaction that is still open."""
        try:
            async with self._using:  # not while a transaction is open
                rows = await self.connection.execute_fetchall(_QUERIES[name], parameters)
        except _FAILURES as error:
            raise StoreError(f"the database could not be read: {error}") from error
        return cast("list[aiosqlite.Row]", list(rows))
