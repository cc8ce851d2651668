"""Brings a database to the schema that this version knows, from any earlier version.

`schema.sql` has one section for each version, in order; the file's `user_version` says which it
has. What was written before there were versions says 0 and has all of section 1, which can
therefore be run again.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import aiosqlite

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.store.audit import NOTHING, Head, hash_of
from atlas_supervisor.store.statements import is_damage, sections

_STEPS = {int(version): script for version, script in sections("schema.sql", "version").items()}
SCHEMA_VERSION = max(_STEPS)
_CHAINED = 3
"""The version from which on audit entries are chained."""


async def migrate(connection: aiosqlite.Connection, path: Path) -> None:
    """Run the steps that the database at `path` has not had: all in one transaction, or none.

    Raises StartRefusedError if a newer version wrote it. No other process writes: the lock of the
    state folder is held.
    """
    ((present,),) = await connection.execute_fetchall("PRAGMA user_version")
    refuse_newer(present, path)
    if present == SCHEMA_VERSION:
        return
    steps = "\n".join(script for version, script in _STEPS.items() if version > present)
    try:
        await connection.executescript(f"BEGIN IMMEDIATE;\n{steps}")  # and stays open
        if present < _CHAINED:
            await _chain_audit(connection)
        await connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        await connection.commit()
    except BaseException as error:
        await connection.rollback()
        if isinstance(error, sqlite3.OperationalError) and is_damage(error):
            # A step may be wrong and the database right: that is no reason to set it aside.
            raise StartRefusedError(
                f"{path} can't be upgraded from schema version {present}: {error}. It is as it "
                "was: start the supervisor that wrote it, or move the file, its -wal and -shm "
                "companions and audit_head.json away: the active release stays, the history is lost"
            ) from error
        raise


def refuse_newer(present: int, path: Path) -> None:
    """Raise StartRefusedError if a newer version wrote the database at `path`."""
    if present > SCHEMA_VERSION:
        raise StartRefusedError(
            f"{path} has schema version {present} and this supervisor knows versions up to "
            f"{SCHEMA_VERSION}: a newer supervisor wrote it. Start that one again, or move the "
            "file, its -wal and -shm companions and audit_head.json away: the active release "
            "stays, the history is lost"
        )


async def _chain_audit(connection: aiosqlite.Connection) -> None:
    """Give the entries from before there was a chain their hashes, as they stand now."""
    last = NOTHING
    query = "SELECT id, ts, actor, origin, action, subject, outcome, detail FROM audit ORDER BY id"
    async with connection.execute(query) as entries:
        async for entry in entries:
            before, last = last.hash, Head(entry[0], hash_of(last.hash, tuple(entry)))
            await connection.execute(
                "UPDATE audit SET previous_hash = ?, hash = ? WHERE id = ?",
                (before, last.hash, last.id),
            )
