"""The connection to `atlas.db` and the statements of `queries.sql`: one at a time, all or nothing.

Every noun of the store (deploys, versions, the audit trail, ...) is a class upon this one, in a
file of its own; `database.Database` is all of them together.
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
"""Told how many seconds a durable write took, and whether it was done."""


def untimed(_seconds: float, _done: bool) -> None:
    """Take no notice."""


class StoreError(AtlasError):
    """The database did not take or give something; the text says why."""


class Statements:
    """Runs named queries on the one connection of the process. Raises StoreError."""

    def __init__(self, connection: aiosqlite.Connection, timed: Timed = untimed) -> None:
        self._connection = connection
        self._timed = timed
        self._using = anyio.Lock()

    async def _write(self, *statements: Statement) -> list[int | None]:
        """Run the statements in one transaction; if one fails, nothing of it is left.

        Returns the id of the row that each one has added. Whoever gets them goes on before the
        next write ends, so what is done at once with two ids is done in their order.
        """

        async def run() -> list[int | None]:
            return [await self._run(*statement) for statement in statements]

        return await self._transaction(run)

    async def _run(self, name: str, parameters: dict[str, Any]) -> int | None:
        """Run one statement of a transaction; return the id of the row that it has added."""
        async with self._connection.execute(_QUERIES[name], parameters) as cursor:
            return cursor.lastrowid

    async def _transaction(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work in one transaction and return what it returns; likewise."""
        # Shielded and one at a time: a transaction is never left open, nor mixed with another.
        with anyio.CancelScope(shield=True):
            async with self._using:
                watch = Stopwatch()
                try:
                    done = await work()
                    await self._connection.commit()
                except BaseException as error:
                    with suppress(*_FAILURES):  # there may be no transaction to take back
                        await self._connection.rollback()
                    self._timed(watch.seconds, False)
                    if isinstance(error, _FAILURES):
                        raise StoreError(f"the database could not be written: {error}") from error
                    raise
                self._timed(watch.seconds, True)
        return done  # mypy takes a cancel scope for one that may swallow

    async def _read(self, name: str, **parameters: Any) -> list[aiosqlite.Row]:
        try:
            async with self._using:  # what is being written is not known yet
                rows = await self._connection.execute_fetchall(_QUERIES[name], parameters)
        except _FAILURES as error:
            raise StoreError(f"the database could not be read: {error}") from error
        return cast("list[aiosqlite.Row]", list(rows))
