"""The journal: every transition of every deploy, in the order in which they happened.

An id is given once and grows, over restarts of the daemon too. The beginning of a deploy is a row
as well, with an empty phase before it.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import aiosqlite

from supervisor.clock import now
from supervisor.model.deploy import DeployRecord, Result, Step
from supervisor.model.event import BEGUN, Announcement, DeployEvent, Transition
from supervisor.store.statements import Statement, Statements

_OUTCOME = ("result", "reason", "version", "active_port", "staging_port")
"""What of a deploy changes on its way; a row keeps it as it was then."""


class Journal(Statements):
    """What happened to deploys; it satisfies `deploy.events.Journal`."""

    async def newest_transition(self) -> int:
        """Return the id of the last event; 0 if there is none."""
        return int((await self._read("newest_transition"))[0]["id"])

    async def knows_transition(self, transition_id: int) -> bool:
        """Tell whether an event has this id."""
        return bool(await self._read("transition_known", id=transition_id))

    async def transitions_after(
        self, transition_id: int, *, deploy_id: str | None, limit: int
    ) -> list[Announcement]:
        """Return the first events after the id, of one deploy or of all, in order."""
        rows = await self._read(
            "transitions_after", id=transition_id, deploy_id=deploy_id, limit=limit
        )
        return [
            Announcement(_event(row), id=row["id"], journal_id=row["id"], told=True) for row in rows
        ]

    async def transitions(self, deploy_id: str) -> list[Transition]:
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
            for row in await self._read("transitions_of", deploy_id=deploy_id)
        ]

    async def last_transition(self, deploy_id: str) -> tuple[str, str] | None:
        """Return phase and event of the deploy's last transition; None if it has only begun."""
        rows = await self._read("last_transition", deploy_id=deploy_id)
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
