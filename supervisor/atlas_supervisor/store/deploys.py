"""Deploys with their steps; what happens to one is written together with its journal.

The journal: every transition of every deploy, in the order in which they happened.

An id is given once and grows, over restarts of the daemon too. The beginning of a deploy is a row
as well, with an empty phase before it.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NamedTuple

import aiosqlite

from atlas_supervisor.model.deploy import DeployRecord, Result
from atlas_supervisor.model.event import BEGUN, DeployEvent, PublishedEvent, Transition
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.release import LastDeploy
from atlas_supervisor.model.step import Step
from atlas_supervisor.store.keys import kept_since, key_added, trim_keys
from atlas_supervisor.store.statements import Statement, Statements
from atlas_supervisor.system.clock import now

_OUTCOME = ("result", "reason", "version", "active_port", "staging_port")
"""What of a deploy changes on its way; a row keeps it as it was then."""


class TransitionStore:
    """What happened to deploys; it satisfies `deploy.event_hub.Journal`."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def newest(self) -> int:
        """Return the id of the last event; 0 if there is none."""
        return int((await self._statements.read("newest_transition"))[0]["id"])

    async def knows(self, transition_id: int) -> bool:
        """Tell whether an event has this id."""
        return bool(await self._statements.read("transition_known", id=transition_id))

    async def after(
        self, transition_id: int, *, deploy_id: str | None, limit: int
    ) -> list[PublishedEvent]:
        """Return the first events after the id, of one deploy or of all, in order."""
        rows = await self._statements.read(
            "transitions_after", id=transition_id, deploy_id=deploy_id, limit=limit
        )
        return [
            PublishedEvent(_event(row), id=row["id"], journal_id=row["id"], told=True)
            for row in rows
        ]

    async def of_deploy(self, deploy_id: str) -> list[Transition]:
        """Return a deploy's story so far."""
        return [
            Transition(
                id=row["id"],
                ts=datetime.fromisoformat(row["ts"]),
                source=row["phase"] or None,
                event=row["event"],
                target=row["target"],
                cause=row["cause"] or "",
                duration_ms=row["duration_ms"],
            )
            for row in await self._statements.read("transitions_of", deploy_id=deploy_id)
        ]

    async def last(self, deploy_id: str) -> tuple[str, str] | None:
        """Return phase and event of the deploy's last transition; None if it has only begun."""
        rows = await self._statements.read("last_transition", deploy_id=deploy_id)
        return (rows[0]["phase"], rows[0]["event"]) if rows else None


def begun_row(record: DeployRecord, cause: str) -> Statement:
    """Return what writes the beginning of a deploy."""
    return transition_row(
        record, source="", event=BEGUN, cause=cause, step=None, ts=record.started_ts
    )


def transition_row(
    record: DeployRecord,
    *,
    source: str,
    event: str,
    cause: str | None,
    step: Step | None,
    duration_ms: float | None = None,
    ts: datetime | None = None,
) -> Statement:
    """Return what writes a transition; `record` is the deploy after it."""
    outcome = record.model_dump(mode="json", include=set(_OUTCOME))
    return "add_transition", {
        "deploy_id": record.deploy_id,
        "ts": (ts or now()).isoformat(),
        "source": source,
        "event": event,
        "target": record.phase,
        "cause": cause or "",
        "duration_ms": duration_ms,
        "step_position": len(record.steps) - 1 if step is not None else None,
        "outcome": json.dumps(outcome),
    }


def _event(row: aiosqlite.Row) -> DeployEvent:
    return DeployEvent(
        deploy_id=row["deploy_id"],
        ts=datetime.fromisoformat(row["ts"]),
        source=row["phase"] or None,
        event=row["event"],
        target=row["target"],
        cause=row["cause"] or "",
        duration_ms=row["duration_ms"],
        step=_step(row),
        release=row["release"],
        dry_run=bool(row["dry_run"]),
        **_outcome(row),
    )


def _step(row: aiosqlite.Row) -> Step | None:
    if row["name"] is None:
        return None
    return Step(
        name=row["name"],
        ok=bool(row["ok"]),
        duration_ms=row["step_duration_ms"],
        detail=json.loads(row["detail"]),
    )


def _outcome(row: aiosqlite.Row) -> dict[str, Any]:
    """Return what the deploy had come to; of a row from before this was kept, what it came to."""
    kept = json.loads(row["outcome"]) if row["outcome"] else {name: row[name] for name in _OUTCOME}
    return {**kept, "result": Result(kept["result"]) if kept["result"] else None}


DEPLOYS_KEPT = 1000
"""As many as `GET /deploy/history` can list. The audit trail is kept whole."""


class UnfinishedDeploy(NamedTuple):
    """A deploy that the last daemon did not bring to its end."""

    record: DeployRecord
    auto_switch: bool
    rollback: bool = False
    """Whether it brings back the version before the active one."""


class DeployStore:
    """What was deployed, and how it came out."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def begin(
        self,
        record: DeployRecord,
        *,
        auto_switch: bool,
        rollback: bool = False,
        key: IdempotencyKey | None = None,
        cause: str = "",
    ) -> int:
        """Write a new deploy down, with the key it was asked for under; forget very old ones.

        Returns its beginning's id in the journal.
        """
        kept = {"kept": DEPLOYS_KEPT, "since": kept_since()}
        plan = {"auto_switch": auto_switch, "rollback": rollback}
        _, begun, *_ = await self._statements.write(
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
        return (await self._statements.write(*statements))[0] or 0

    async def latest(self, limit: int) -> list[DeployRecord]:
        """Return the latest deploys with their steps, newest first."""
        return [
            await self._record(row)
            for row in await self._statements.read("latest_deploys", limit=limit)
        ]

    async def find(self, deploy_id: str) -> DeployRecord | None:
        """Return one deploy with its steps."""
        rows = await self._statements.read("deploy", deploy_id=deploy_id)
        return await self._record(rows[0]) if rows else None

    async def unfinished(self) -> list[UnfinishedDeploy]:
        """Return the deploys that never came to their end, oldest first."""
        return [
            UnfinishedDeploy(
                await self._record(row), bool(row["auto_switch"]), bool(row["rollback"])
            )
            for row in await self._statements.read("unfinished_deploys")
        ]

    async def last_by_release(self) -> dict[str, LastDeploy]:
        """Return the latest deploy of every release that ever was deployed."""
        return {
            row["release"]: LastDeploy(
                deploy_id=row["deploy_id"],
                started_ts=datetime.fromisoformat(row["started_ts"]),
                result=Result(row["result"]) if row["result"] else None,
            )
            for row in await self._statements.read("last_deploys_by_release")
        }

    async def _record(self, row: aiosqlite.Row) -> DeployRecord:
        steps = [
            Step(
                name=step["name"],
                ok=bool(step["ok"]),
                duration_ms=step["duration_ms"],
                detail=json.loads(step["detail"]),
            )
            for step in await self._statements.read("steps", deploy_id=row["deploy_id"])
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
