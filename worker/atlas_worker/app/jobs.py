"""The job store: due times, leases and results, in a file that instances share.

Two instances use the file during a deploy. A job is claimed in a write transaction, so that one
instance gets it, and the claim is a lease that its holder renews: if the holder dies, the lease
expires and another instance claims the job. Leases are measured on the machine's boot clock, which
all processes share and no one can set; a lease from before a reboot has expired. Each write for a
claimed job names its attempt, so that a holder without its lease changes nothing.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atlas_worker.app.database import ModuleDatabase

MAX_ATTEMPTS = 5
KEEP_FINISHED_SECONDS = 7 * 24 * 3600.0

MIGRATIONS = (
    """CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        payload TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'queued',
        run_at REAL NOT NULL,
        created_at REAL NOT NULL,
        started_at REAL,
        ended_at REAL,
        attempts INTEGER NOT NULL DEFAULT 0,
        instance TEXT,
        lease_boot TEXT,
        lease_until REAL,
        result TEXT,
        error TEXT
    )""",
    "CREATE INDEX jobs_by_state ON jobs (state, run_at)",
)

_DUE = (
    "(state = 'queued' AND run_at <= :now) OR"
    " (state = 'running' AND (lease_boot <> :boot OR lease_until < :tick))"
)
_MINE = "id = :id AND state = 'running' AND instance = :instance AND attempts = :attempt"


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this instance holds until its lease expires."""

    id: str
    kind: str
    payload: dict[str, Any]
    instance: str
    attempt: int


class JobStore:
    """The jobs of all instances, in one file. Leases are in seconds."""

    def __init__(self, directory: Path, *, instance: str, lease_seconds: float) -> None:
        self.path = directory / "scheduler.db"
        self._database = ModuleDatabase(self.path, MIGRATIONS)
        self._instance = instance
        self._lease_seconds = lease_seconds
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    async def open(self) -> None:
        """Open the file; raises sqlite3.Error or OSError."""
        await self._database.open()

    async def close(self) -> None:
        """Close the file."""
        await self._database.close()

    async def add(
        self, kind: str, payload: dict[str, Any], *, run_at: float | None, keep: bool = True
    ) -> dict[str, Any]:
        """Queue a job for a time (Unix seconds; None is now) and return it."""

        def work(db: sqlite3.Connection) -> dict[str, Any]:
            now = time.time()
            row = db.execute(
                "INSERT INTO jobs (id, kind, payload, run_at, created_at)"
                " VALUES (?, ?, ?, ?, ?) RETURNING *",
                (
                    uuid.uuid4().hex,
                    kind,
                    json.dumps(payload),
                    now if run_at is None else run_at,
                    now,
                ),
            )
            return as_json(row.fetchone())

        return await self._database.write(work, keep=keep)

    async def claim(self) -> Claim | None:
        """Claim the job that is due the longest, if there is one."""
        # A read needs no lock, so that an idle worker does not delay the other instance's writes.
        if not await self._database.read(self._any_due):
            return None
        return await self._database.write(self._claim)

    async def renew(self, claim: Claim) -> bool:
        """Extend the lease; return False if it was lost."""
        return await self._change(claim, "lease_until = :until")

    async def finish(self, claim: Claim, *, result: Any = None, error: str | None = None) -> bool:
        """Record the job's outcome; return False, and change nothing, if the lease was lost."""
        return await self._change(
            claim,
            "state = :state, ended_at = :now, result = :result, error = :error, lease_until = NULL",
            state="done" if error is None else "failed",
            result=json.dumps(result),
            error=error,
        )

    async def release(self, claim: Claim) -> bool:
        """Release an unfinished job at once; return False if the lease was lost."""
        return await self._change(claim, "state = 'queued', lease_until = NULL, instance = NULL")

    async def get(self, job_id: str) -> dict[str, Any] | None:
        """Return one job, or None."""

        def work(db: sqlite3.Connection) -> dict[str, Any] | None:
            row = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
            return as_json(row) if row else None

        return await self._database.read(work)

    async def newest(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest jobs, the newest first."""

        def work(db: sqlite3.Connection) -> list[dict[str, Any]]:
            rows = db.execute("SELECT * FROM jobs ORDER BY created_at DESC LIMIT ?", (limit,))
            return [as_json(row) for row in rows]

        return await self._database.read(work)

    async def forget_old(self) -> int:
        """Delete jobs that ended more than a week ago; return their number."""

        def work(db: sqlite3.Connection) -> int:
            limit = time.time() - KEEP_FINISHED_SECONDS
            return db.execute("DELETE FROM jobs WHERE ended_at < ?", (limit,)).rowcount

        return await self._database.write(work)

    def _clocks(self) -> dict[str, Any]:
        tick = time.clock_gettime(time.CLOCK_BOOTTIME)
        return {
            "now": time.time(),
            "boot": self._boot,
            "tick": tick,
            "until": tick + self._lease_seconds,
            "instance": self._instance,
        }

    def _any_due(self, db: sqlite3.Connection) -> bool:
        found = db.execute(f"SELECT 1 FROM jobs WHERE {_DUE} LIMIT 1", self._clocks())  # noqa: S608 - a constant
        return found.fetchone() is not None

    def _claim(self, db: sqlite3.Connection) -> Claim | None:
        clocks = self._clocks()
        db.execute(
            "UPDATE jobs SET state = 'failed', ended_at = :now, lease_until = NULL, error = :error"  # noqa: S608 - a constant
            f" WHERE attempts >= :most AND ({_DUE})",
            {**clocks, "most": MAX_ATTEMPTS, "error": f"{MAX_ATTEMPTS} instances died of it"},
        )
        row = db.execute(
            "UPDATE jobs SET state = 'running', attempts = attempts + 1, started_at = :now,"  # noqa: S608 - a constant
            " instance = :instance, lease_boot = :boot, lease_until = :until"
            f" WHERE id = (SELECT id FROM jobs WHERE {_DUE} ORDER BY run_at LIMIT 1) RETURNING *",
            clocks,
        ).fetchone()
        if row is None:
            return None
        payload = json.loads(row["payload"])
        return Claim(row["id"], row["kind"], payload, self._instance, row["attempts"])

    async def _change(self, claim: Claim, assignments: str, **values: Any) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            changed = db.execute(
                f"UPDATE jobs SET {assignments} WHERE {_MINE}",  # noqa: S608 - constants of this class
                {**self._clocks(), **values, "id": claim.id, "attempt": claim.attempt},
            )
            return changed.rowcount == 1

        return await self._database.write(work)


def as_json(row: sqlite3.Row) -> dict[str, Any]:
    """Return a job as JSON; times are ISO 8601 in UTC."""
    job = {name: row[name] for name in ("id", "kind", "state", "attempts", "instance", "error")}
    job["payload"] = json.loads(row["payload"])
    job["result"] = json.loads(row["result"]) if row["result"] else None
    for name in ("run_at", "created_at", "started_at", "ended_at"):
        seconds = row[name]
        job[name] = None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
    return job
