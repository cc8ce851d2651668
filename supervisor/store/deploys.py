"""Deploys with their steps; what happens to one is written together with its journal."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NamedTuple

import aiosqlite

from supervisor.model.deploy import DeployRecord, Result, Step
from supervisor.model.key import Key
from supervisor.model.release import LastDeploy
from supervisor.store.journal import begun_row, transition_row
from supervisor.store.keys import kept_since, key_added, trim_keys
from supervisor.store.statements import Statement, Statements

DEPLOYS_KEPT = 1000
"""As many as `GET /deploy/history` can list. The audit trail is kept whole."""


class UnfinishedDeploy(NamedTuple):
    """A deploy that the last daemon did not bring to its end."""

    record: DeployRecord
    auto_switch: bool
    rollback: bool = False
    """Whether it brings back the version before the active one."""


class Deploys(Statements):
    """What was deployed, and how it came out."""

    async def begin_deploy(
        self,
        record: DeployRecord,
        *,
        auto_switch: bool,
        rollback: bool = False,
        key: Key | None = None,
        cause: str = "",
    ) -> int:
        """Write a new deploy down, with the key it was asked for under; forget very old ones.

        Returns its beginning's id in the journal.
        """
        kept = {"kept": DEPLOYS_KEPT, "since": kept_since()}
        plan = {"auto_switch": auto_switch, "rollback": rollback}
        _, begun, *_ = await self._write(
            ("begin_deploy", {**_columns(record), **plan}),
            begun_row(record, cause),
            *([key_added(key, deploy_id=record.deploy_id)] if key else []),
            *((name, kept) for name in ("trim_steps", "trim_transitions", "trim_deploys")),
            trim_keys(),
        )
        return begun or 0

    async def write_transition(
        self,
        record: DeployRecord,
        *,
        source: str,
        event: str,
        cause: str | None,
        step: Step | None,
        duration_ms: float | None = None,
        ts: datetime | None = None,
    ) -> int:
        """Write a transition, the step that ended with it, and the deploy as it now stands.

        Returns its id in the journal. `ts` is now if not given.
        """
        statements: list[Statement] = [
            transition_row(
                record,
                source=source,
                event=event,
                cause=cause,
                step=step,
                duration_ms=duration_ms,
                ts=ts,
            ),
            ("update_deploy", _columns(record)),
        ]
        if step is not None:
            row = {**step.model_dump(), "detail": json.dumps(step.detail)}
            statements.append(("add_step", {**row, "deploy_id": record.deploy_id}))
        return (await self._write(*statements))[0] or 0

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
            UnfinishedDeploy(
                await self._record(row), bool(row["auto_switch"]), bool(row["rollback"])
            )
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


def _columns(record: DeployRecord) -> dict[str, Any]:
    return {
        **record.model_dump(exclude={"steps", "started_ts", "ended_ts"}),
        "started_ts": record.started_ts.isoformat(),
        "ended_ts": record.ended_ts.isoformat() if record.ended_ts else None,
    }
