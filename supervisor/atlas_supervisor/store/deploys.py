"""Deploys with their steps, the journal of their transitions, and the versions that they brought.

A transition is written in one transaction with the deploy as it then is, the step that ended, how
a flip changed the versions, and the copy of the state file: they never contradict each other. Its
id is unique and grows, over restarts of the daemon too. The start of a deploy is a row of the
journal as well, with an empty phase before it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiosqlite

from atlas_supervisor.model.deploy import (
    BEGUN,
    Cause,
    DeployEvent,
    DeployRecord,
    PublishedEvent,
    Result,
    Step,
    Transition,
)
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.ramp import Ramp
from atlas_supervisor.model.release import LastDeploy, Release, Version, VersionChange
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.store.keys import KEYS_KEPT, key_added
from atlas_supervisor.store.outbox import Outbox, PendingWrite
from atlas_supervisor.store.state_keeper import state_saved
from atlas_supervisor.store.statements import Statement, Statements
from atlas_supervisor.system.clock import now

_OUTCOME = ("result", "reason", "version", "active_port", "staging_port")
"""The fields of a deploy that change; a row of the journal keeps them as they were then."""


class TransitionStore:
    """The journal; it satisfies `deploy.event_hub.EventJournal`."""

    def __init__(self, statements: Statements, outbox: Outbox) -> None:
        self._statements = statements
        self._outbox = outbox

    def pending(self) -> list[PublishedEvent]:
        """Return the events that are published and not in the journal yet, in order."""
        writes = [entry.write for entry in self._outbox]
        events = [write.event for write in writes if isinstance(write, TransitionWrite)]
        return [event for event in events if event.is_published]

    async def newest(self) -> int:
        """Return the id of the last event; 0 if there is none."""
        return int((await self._statements.read("newest_transition"))[0]["id"])

    async def knows(self, transition_id: int) -> bool:
        """Return whether an event has this id."""
        return bool(await self._statements.read("transition_known", id=transition_id))

    async def after(
        self, transition_id: int, *, deploy_id: str | None, limit: int
    ) -> list[PublishedEvent]:
        """Return the first events after the id, of one deploy or of all, in order."""
        rows = await self._statements.read(
            "transitions_after", id=transition_id, deploy_id=deploy_id, limit=limit
        )
        return [
            PublishedEvent(_event(row), id=row["id"], journal_id=row["id"], is_published=True)
            for row in rows
        ]

    async def of_deploy(self, deploy_id: str) -> list[Transition]:
        """Return the transitions of a deploy so far."""
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
        """Return phase and event of the deploy's last transition; None if it has only started."""
        rows = await self._statements.read("last_transition", deploy_id=deploy_id)
        return (rows[0]["phase"], rows[0]["event"]) if rows else None

    async def cause_of(self, deploy_id: str, phase: str) -> str | None:
        """Return the event that led to the phase the last time; None if none did."""
        rows = await self._statements.read("last_cause", deploy_id=deploy_id, target=phase)
        return rows[0]["event"] if rows else None


def _transition_row(record: DeployRecord, event: DeployEvent) -> Statement:
    outcome = record.model_dump(mode="json", include=set(_OUTCOME))
    return "add_transition", {
        "deploy_id": record.deploy_id,
        "ts": event.ts.isoformat(),
        "source": event.source or "",
        "event": event.event,
        "target": record.phase,
        "cause": event.cause,
        "duration_ms": event.duration_ms,
        "step_position": len(record.steps) - 1 if event.step is not None else None,
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
        deploy_cause=row["deploy_cause"],
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
    """Return the deploy's fields as of then; of an old row, which has none, those of today."""
    kept = json.loads(row["outcome"]) if row["outcome"] else {name: row[name] for name in _OUTCOME}
    return {**kept, "result": Result(kept["result"]) if kept["result"] else None}


DEPLOYS_KEPT = 1000
"""As many as `GET /deploy/history` can list. The audit trail is kept whole."""


class UnfinishedDeploy(NamedTuple):
    """A deploy that has not ended."""

    record: DeployRecord
    auto_switch: bool
    rollback: bool = False
    """Whether it brings back the version before the active one."""
    release: Release | None = None
    """What it deploys; None in a record of an earlier version."""


@dataclass(frozen=True)
class TransitionWrite:
    """A transition in the outbox; `record` is the deploy after it."""

    store: DeployStore
    publish: Callable[[PublishedEvent, int | None], None]
    record: DeployRecord
    event: PublishedEvent
    versions: VersionChange | None
    state: Callable[[], DeployState]

    async def __call__(self) -> None:
        """Write it, and publish its event."""
        journal_id = await self.store.write_transition(
            self.record,
            self.event.event,
            versions=self.versions,
            state=self.state() if self.versions else None,
        )
        self.publish(self.event, journal_id)  # without a pause, so that ids are in order


class DeployStore:
    """The deploys, each as it is now."""

    def __init__(self, statements: Statements, outbox: Outbox) -> None:
        self._statements = statements
        self._outbox = outbox

    async def begin(
        self,
        record: DeployRecord,
        *,
        auto_switch: bool,
        rollback: bool = False,
        release: Release | None = None,
        key: IdempotencyKey | None = None,
    ) -> int:
        """Write a new deploy, with the key of its request; forget very old ones.

        Return the id of its start in the journal.
        """
        kept = {"kept": DEPLOYS_KEPT, "since": (now() - KEYS_KEPT).isoformat()}
        trims = ("trim_steps", "trim_transitions", "trim_deploys", "trim_keys")
        plan = {"auto_switch": auto_switch, "rollback": rollback}
        why = record.requested or ""
        event = DeployEvent.of(record, ts=record.started_ts, source=None, event=BEGUN, cause=why)
        _, begun, *_ = await self._statements.write(
            ("begin_deploy", {**_columns(record), **plan, **_folder(release)}),
            _transition_row(record, event),
            *([key_added(key, deploy_id=record.deploy_id)] if key else []),
            *((name, kept) for name in trims),
        )
        return begun or 0

    async def write_transition(
        self,
        record: DeployRecord,
        event: DeployEvent,
        *,
        versions: VersionChange | None = None,
        state: DeployState | None = None,
    ) -> int:
        """Write a transition, the step that ended with it, and the deploy as it now stands.

        With it, in the same transaction: how a flip changes the versions, and the copy of the
        state file. Return its id in the journal.
        """
        statements = [_transition_row(record, event), ("update_deploy", _columns(record))]
        if (step := event.step) is not None:
            row = {**step.model_dump(), "detail": json.dumps(step.detail)}
            statements.append(("add_step", {**row, "deploy_id": record.deploy_id}))
        if versions is not None:
            statements += versions_changed(versions)
        if state is not None:
            statements.append(state_saved(state))
        return (await self._statements.write(*statements))[0] or 0

    def enqueue_transition(
        self,
        record: DeployRecord,
        event: PublishedEvent,
        versions: VersionChange | None = None,
        *,
        state: Callable[[], DeployState],
        publish: Callable[[PublishedEvent, int | None], None],
    ) -> PendingWrite:
        """Put a transition into the outbox; it is published once, written or delayed.

        `state` is asked for as late as it is written, with the versions.
        """
        write = TransitionWrite(self, publish, record, event, versions, state)
        return self._outbox.put(write, on_delay=lambda: publish(event, None))

    async def save_ramp(self, record: DeployRecord) -> None:
        """Write a ramp's numbers as they are now, between two transitions. Raises StoreError."""
        await self._statements.write(("save_ramp", _columns(record)))

    async def latest(self, limit: int) -> list[DeployRecord]:
        """Return the latest deploys with their steps, newest first."""
        return [
            await self._record(row)
            for row in await self._statements.read("latest_deploys", limit=limit)
        ]

    async def latest_requested(self) -> DeployRecord | None:
        """Return the latest deploy that is no recycle."""
        rows = await self._statements.read("latest_requested_deploy", cause=Cause.REQUESTED)
        return await self._record(rows[0]) if rows else None

    async def latest_answered(self) -> DeployRecord | None:
        """Return the latest deploy that has a result and is neither a recycle nor a dry run."""
        rows = await self._statements.read("latest_answered_deploy", cause=Cause.REQUESTED)
        return await self._record(rows[0]) if rows else None

    async def find(self, deploy_id: str) -> DeployRecord | None:
        """Return one deploy with its steps."""
        rows = await self._statements.read("deploy", deploy_id=deploy_id)
        return await self._record(rows[0]) if rows else None

    async def unfinished(self) -> list[UnfinishedDeploy]:
        """Return the deploys that have not ended, oldest first."""
        return [
            UnfinishedDeploy(
                await self._record(row),
                bool(row["auto_switch"]),
                bool(row["rollback"]),
                release_of(row) if row["directory"] else None,
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
            requested=row["requested"] or None,
            cause=row["deploy_cause"],
            ramp=Ramp.model_validate_json(row["ramp"]) if row["ramp"] else None,
        )


def _columns(record: DeployRecord) -> dict[str, Any]:
    ramp = record.ramp
    kept = {**ramp.model_dump(mode="json"), "saved": ramp.saved} if ramp else None
    return {
        **record.model_dump(exclude={"steps", "until_ts", "started_ts", "ended_ts", "ramp"}),
        "ramp": json.dumps(kept) if kept else None,
        "started_ts": record.started_ts.isoformat(),
        "ended_ts": record.ended_ts.isoformat() if record.ended_ts else None,
    }


_VERSIONS_KEPT = 50


class VersionStore:
    """The versions that had the traffic, the active one last: a rollback takes the one before.

    Those that were taken away are kept, since one can go back to them by name.
    """

    def __init__(self, statements: Statements) -> None:
        self._statements = statements
        self.depth = 0
        """How many versions `served` found last that were not undone, the active one among them."""

    async def push(self, slot: SlotName, release: Release) -> None:
        """Note that the release has the traffic from now on."""
        await self._statements.write(*versions_changed(VersionChange(Version(slot, release))))

    async def replace(self, count: int, slot: SlotName, release: Release) -> None:
        """Forget the last `count`, and note that this one has the traffic instead."""
        added = versions_changed(VersionChange(Version(slot, release)))
        await self._statements.write(*([("forget_version", {})] * count), *added)

    async def all(self) -> list[Version]:
        """Return the versions that had the traffic and were not undone, the active one first."""
        return [version for version in await self.served() if not version.undone]

    async def served(self) -> list[Version]:
        """Return every version that had the traffic, the last one that got it first."""
        found = [
            Version(
                slot=SlotName(row["slot"]),
                release=release_of(row),
                undone=bool(row["undone"]),
                until=datetime.fromisoformat(row["until_ts"]) if row["until_ts"] else None,
                complaint=row["complaint"],
            )
            for row in await self._statements.read("versions")
        ]
        self.depth = sum(not version.undone for version in found)
        return found


def _folder(release: Release | None) -> dict[str, str | bool | None]:
    """Return the columns that say which folder it is, and what it says of itself."""
    return {
        "directory": str(release.path) if release else None,
        "identity": release.identity if release else None,
        "version_source": release.source if release else None,
        "irreversible": release is not None and release.irreversible,
    }


def release_of(row: sqlite3.Row) -> Release:
    """Return the release of a row; a database of an earlier version has fewer columns."""
    columns = set(row.keys())
    optional = {"identity": "identity", "source": "version_source", "irreversible": "irreversible"}
    found = {field: row[column] for field, column in optional.items() if column in columns}
    return Release(
        name=row["release"], path=Path(row["directory"]), version=row["version"] or "", **found
    )


def versions_changed(change: VersionChange) -> list[Statement]:
    """Return the statements that change the versions."""
    moment = now().isoformat() if change.added or change.back else None
    last: Statement = ("replace_version", {"ts": moment, "complaint": change.complaint})
    if change.added is None:
        return [last, ("undo_version", {}), ("resume_version", {})] if change.back else [last]
    release = change.added.release
    if change.moved:
        return [("move_version", {"slot": change.added.slot})]
    row = {"ts": moment, "slot": change.added.slot, "release": release.name, **_folder(release)}
    row["version"] = release.version
    trim: Statement = ("trim_versions", {"kept": _VERSIONS_KEPT})
    if change.back:
        again = ("push_version_again", row)
        return [last, ("undo_versions_after", row), again, ("resume_version", {}), trim]
    return [last, ("push_version", row), trim]
