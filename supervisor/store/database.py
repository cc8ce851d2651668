"""`atlas.db`: one connection for the process, and what is done to it as named calls.

Write-ahead log with `synchronous=FULL`: when a call returns, what it wrote survives a power cut.
The statements themselves are in `queries.sql`.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

import aiosqlite
import anyio

from supervisor.clock import now
from supervisor.errors import AtlasError, StartRefusedError
from supervisor.model.actor import Actor
from supervisor.model.deploy import DeployRecord, Result, Step
from supervisor.model.release import LastDeploy, Release
from supervisor.model.slot import SlotName
from supervisor.model.state import DeployState

_BUSY_SECONDS = 5.0
_VERSIONS_KEPT = 50
DEPLOYS_KEPT = 1000
"""As many as `GET /deploy/history` can list. The audit trail is kept whole."""
_FILE_MODE = 0o640

_FAILURES = (sqlite3.Error, ValueError, OverflowError)
"""What a statement fails with: besides SQLite's own, text that is no Unicode, or a huge number."""


def _named_queries() -> dict[str, str]:
    text = files("supervisor.store").joinpath("queries.sql").read_text()
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))


_QUERIES = _named_queries()


class StoreError(AtlasError):
    """The database did not take or give something; the text says why."""


class InstanceRow(NamedTuple):
    """A worker process as it was recorded at its launch."""

    instance: str
    slot: str
    pid: int
    start_ticks: int
    boot_id: str


class VersionRow(NamedTuple):
    """A version that had the traffic, and the slot that it ran in."""

    slot: SlotName
    release: Release


class UnfinishedDeploy(NamedTuple):
    """A deploy that the last daemon did not bring to its end."""

    record: DeployRecord
    auto_switch: bool


class Database:
    """The open database. Every method raises StoreError and leaves nothing half-written."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._using = anyio.Lock()

    async def begin_deploy(self, record: DeployRecord, *, auto_switch: bool) -> None:
        """Write a new deploy down, and forget the oldest of very many."""
        kept = {"kept": DEPLOYS_KEPT}
        await self._write(
            ("begin_deploy", {**_columns(record), "auto_switch": auto_switch}),
            *((name, kept) for name in ("trim_steps", "trim_transitions", "trim_deploys")),
        )

    async def write_transition(
        self,
        record: DeployRecord,
        *,
        source: str,
        event: str,
        cause: str | None,
        step: Step | None,
    ) -> None:
        """Write a transition, the step that ended with it, and the deploy as it now stands."""
        deploy_id = record.deploy_id
        transition = {"deploy_id": deploy_id, "ts": now().isoformat(), "source": source}
        transition |= {"event": event, "target": record.phase, "cause": cause or ""}
        statements: list[tuple[str, dict[str, Any]]] = [
            ("add_transition", transition),
            ("update_deploy", _columns(record)),
        ]
        if step is not None:
            row = {**step.model_dump(), "deploy_id": deploy_id, "detail": json.dumps(step.detail)}
            statements.append(("add_step", row))
        await self._write(*statements)

    async def deploys(self, limit: int) -> list[DeployRecord]:
        """Return the latest deploys with their steps, newest first."""
        return [await self._record(row) for row in await self._read("latest_deploys", limit=limit)]

    async def deploy(self, deploy_id: str) -> DeployRecord | None:
        """Return one deploy with its steps."""
        rows = await self._read("deploy", deploy_id=deploy_id)
        return await self._record(rows[0]) if rows else None

    async def unfinished(self) -> list[UnfinishedDeploy]:
        """Return the deploys that never came to their end, oldest first."""
        return [
            UnfinishedDeploy(await self._record(row), bool(row["auto_switch"]))
            for row in await self._read("unfinished_deploys")
        ]

    async def last_deploys_by_release(self) -> dict[str, LastDeploy]:
        """Return the latest deploy of every release that ever was deployed."""
        return {
            row["release"]: LastDeploy(
                deploy_id=row["deploy_id"],
                started_ts=datetime.fromisoformat(row["started_ts"]),
                result=Result(row["result"]) if row["result"] else None,
            )
            for row in await self._read("last_deploys_by_release")
        }

    async def last_transition(self, deploy_id: str) -> tuple[str, str] | None:
        """Return phase and event of the deploy's last transition."""
        rows = await self._read("last_transition", deploy_id=deploy_id)
        return (rows[0]["phase"], rows[0]["event"]) if rows else None

    async def _record(self, row: aiosqlite.Row) -> DeployRecord:
        steps = [
            Step(
                name=step["name"],
                ok=bool(step["ok"]),
                duration_ms=step["duration_ms"],
                detail=json.loads(step["detail"]),
            )
            for step in await self._read("steps", deploy_id=row["deploy_id"])
        ]
        return DeployRecord(
            deploy_id=row["deploy_id"],
            result=Result(row["result"]) if row["result"] else None,
            dry_run=bool(row["dry_run"]),
            release=row["release"],
            version=row["version"],
            active_port=row["active_port"],
            staging_port=row["staging_port"],
            steps=steps,
            reason=row["reason"],
            phase=row["phase"],
            started_ts=datetime.fromisoformat(row["started_ts"]),
            ended_ts=datetime.fromisoformat(row["ended_ts"]) if row["ended_ts"] else None,
        )

    async def audit(
        self, actor: Actor, action: str, outcome: str, *, subject: str | None = None, **detail: Any
    ) -> None:
        """Write an entry of the audit trail."""
        entry = {"ts": now().isoformat(), "actor": actor.name, "origin": actor.origin}
        entry |= {"action": action, "outcome": outcome, "detail": json.dumps(detail)}
        await self._write(("add_audit", {**entry, "subject": subject}))

    async def push_version(
        self, slot: SlotName, release: Release, state: DeployState | None = None
    ) -> None:
        """Note that the release has the traffic from now on, and the state that says so."""
        row = {"ts": now().isoformat(), "slot": slot, "release": release.name}
        row |= {"directory": str(release.path), "version": release.version}
        await self._write(
            ("push_version", row), ("trim_versions", {"kept": _VERSIONS_KEPT}), *_saved(state)
        )

    async def pop_version(self, state: DeployState | None = None) -> None:
        """Note that the last version was rolled back, and the state that says so."""
        await self._write(("pop_version", {}), *_saved(state))

    async def versions(self) -> list[VersionRow]:
        """Return the versions that had the traffic, the active one first."""
        return [
            VersionRow(
                SlotName(row["slot"]),
                Release(name=row["release"], path=Path(row["directory"]), version=row["version"]),
            )
            for row in await self._read("versions")
        ]

    async def save_state(self, state: DeployState) -> None:
        """Keep a copy of the state file's content."""
        await self._write(*_saved(state))

    async def last_state(self) -> DeployState | None:
        """Return that copy."""
        rows = await self._read("last_state")
        return DeployState.model_validate_json(rows[0]["state"]) if rows else None

    async def add_instance(self, row: InstanceRow) -> None:
        """Remember a worker process."""
        await self._write(("add_instance", {**row._asdict(), "started_ts": now().isoformat()}))

    async def remove_instance(self, instance: str) -> None:
        """Forget a worker process that is gone."""
        await self._write(("remove_instance", {"instance": instance}))

    async def instances(self) -> list[InstanceRow]:
        """Return the worker processes that were not forgotten."""
        return [InstanceRow(*row) for row in await self._read("instances")]

    async def _write(self, *statements: tuple[str, dict[str, Any]]) -> None:
        # Shielded and one at a time: a transaction is never left open, nor mixed with another.
        with anyio.CancelScope(shield=True):
            async with self._using:
                try:
                    for name, parameters in statements:
                        await self._connection.execute(_QUERIES[name], parameters)
                    await self._connection.commit()
                except BaseException as error:
                    with suppress(*_FAILURES):  # there may be no transaction to take back
                        await self._connection.rollback()
                    if isinstance(error, _FAILURES):
                        raise StoreError(f"the database could not be written: {error}") from error
                    raise

    async def _read(self, name: str, **parameters: Any) -> list[aiosqlite.Row]:
        try:
            async with self._using:  # what is being written is not known yet
                rows = await self._connection.execute_fetchall(_QUERIES[name], parameters)
        except _FAILURES as error:
            raise StoreError(f"the database could not be read: {error}") from error
        return cast("list[aiosqlite.Row]", list(rows))


def _saved(state: DeployState | None) -> list[tuple[str, dict[str, Any]]]:
    return [("save_state", {"state": state.model_dump_json()})] if state else []


def _columns(record: DeployRecord) -> dict[str, Any]:
    return {
        **record.model_dump(exclude={"steps", "started_ts", "ended_ts"}),
        "started_ts": record.started_ts.isoformat(),
        "ended_ts": record.ended_ts.isoformat() if record.ended_ts else None,
    }


def active_release(path: Path) -> str | None:
    """Return the name of the release that had the traffic last, without a daemon.

    None if it had none, or nothing can be read. Blocks on the disk.
    """
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute(
                "SELECT release FROM versions ORDER BY id DESC LIMIT 1"
            ).fetchone()
    except sqlite3.Error:
        return None
    return row[0] if row else None


@asynccontextmanager
async def open_database(path: Path) -> AsyncIterator[tuple[Database, Path | None]]:
    """Open the database; a damaged one is set aside first, and where it went is told.

    Raises StartRefusedError if it can't be had, for instance while another process holds it.
    """
    aside: Path | None = None
    try:
        try:
            connection = await _connect(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:  # "file is not a database", "malformed": start a new one
            aside = await anyio.to_thread.run_sync(_set_aside, path)
            connection = await _connect(path)
    except (sqlite3.Error, OSError) as error:
        raise StartRefusedError(
            f"{path} can't be opened: {error}. Is the disk full or read-only, or the file another "
            "user's?"
        ) from error
    try:
        yield Database(connection), aside
    finally:
        with anyio.CancelScope(shield=True):
            await connection.close()


async def _connect(path: Path) -> aiosqlite.Connection:
    await anyio.to_thread.run_sync(_make_private, path)
    connection = await aiosqlite.connect(path, timeout=_BUSY_SECONDS)
    try:
        connection.row_factory = aiosqlite.Row
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.execute("PRAGMA foreign_keys = ON")
        problems = [row[0] for row in await connection.execute_fetchall("PRAGMA quick_check(1)")]
        if problems != ["ok"]:
            raise sqlite3.DatabaseError(f"damaged: {problems}")
        schema = files("supervisor.store").joinpath("schema.sql").read_text()
        await connection.executescript(schema)
        await connection.commit()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await connection.close()
        raise
    return connection


def _make_private(path: Path) -> None:
    """Give the file its mode before SQLite opens it: its companions take after it.

    Tries to open it, too: where that can't be done, aiosqlite would leave its thread behind.
    """
    path.touch(mode=_FILE_MODE)
    path.chmod(_FILE_MODE)
    sqlite3.connect(path).close()


def _set_aside(path: Path) -> Path:
    stamp = now().strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.name}.unreadable-{stamp}")
    for suffix in ("-wal", "-shm", ""):  # an old log beside a new database would be applied to it
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside
