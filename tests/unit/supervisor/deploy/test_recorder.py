"""Deploys start as a whole or not at all, and transitions keep their order, on failing disks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from atlas_supervisor.deploy.effects import Transition
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.machine import Consequence, Plan
from atlas_supervisor.deploy.recorder import Recorder, new_record
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.deploy import (
    AfterFailure,
    DeployEvent,
    DeployRecord,
    EventFeed,
    Mode,
    Result,
)
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.release import Release, Version, VersionChange
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from atlas_supervisor.store.statements import StoreError
from tests.unit.supervisor.store.support import a_state, rows

RELEASE = Release(name="v2", path=Path("releases/v2"), version="2")
KEY = IdempotencyKey("k1", "the request")


async def broken(*_: object, **__: object) -> NoReturn:
    raise StoreError("database or disk is full")


@dataclass
class Scene:
    folder: Path
    database: Database
    events: EventHub
    state: StateKeeper
    recorder: Recorder

    async def begin(self, plan: Plan | None = None) -> DeployRecord:
        plan = plan or Plan()
        actor = Actor(name="uid:0", origin="unix")
        record = new_record(RELEASE, plan, (8791, 8792), actor=actor)
        await self.recorder.begin(record, plan, actor=actor, key=KEY)
        return record

    async def refused(self) -> DeployRecord:
        """Start a deploy that is refused; return the record that is left."""
        with pytest.raises(RefusedError, match="so it was not started") as refused:
            await self.begin()
        assert (refused.value.status, refused.value.code) == (503, "not_durable")
        (record,) = await self.database.deploys.latest(10)
        return record

    def rows(self, query: str) -> list[tuple[object, ...]]:
        return rows(self.folder / "atlas.db", query)


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    async with open_database(folder / "atlas.db") as (database, _):
        state = StateKeeper(StateFile(folder / "deploy_state.json"), database.state, a_state())
        events = EventHub(database.transitions)
        yield Scene(folder, database, events, state, Recorder(database, state, events))


async def published(feed: EventFeed) -> list[tuple[int | None, str, str]]:
    """Return two events: the journal's id, what happened, and what follows."""
    found = [await feed.next() for _ in range(2)]
    return [(each.id, each.event.event, each.event.target) for each in found if each]


@pytest.mark.parametrize(
    ("plan", "action"),
    [(Plan(), "deploy"), (Plan(dry_run=True), "dry_run"), (Plan(rollback=True), "rollback")],
)
async def test_a_deploy_that_starts_is_in_database_audit_trail_and_state_file(
    tmp_path: Path, plan: Plan, action: str
) -> None:
    async with scene(tmp_path) as it:
        record = await it.begin(plan)
        (unfinished,) = await it.database.deploys.unfinished()
        assert (unfinished.record, unfinished.rollback) == (record, plan.rollback)
        known = await it.database.keys.get("k1")
        assert known is not None
        assert known.deploy_id == record.deploy_id
        assert it.rows("SELECT action, subject FROM audit") == [(action, record.deploy_id)]
        assert it.state.state.last_deploy_ts == record.started_ts


@pytest.mark.parametrize("failing", ["audit", "file"])
async def test_a_deploy_written_in_part_is_ended_and_its_key_can_be_used_again(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path) as it:
        if failing == "audit":
            monkeypatch.setattr(it.database.audit, "write", broken)
        else:
            (tmp_path / ".deploy_state.json.new").mkdir()
        feed = await it.events.subscribe(after=None, deploy_id=None)
        record = await it.refused()
        assert (record.result, record.phase) == ("failed", "ended")
        assert "so it was not started" in (record.reason or "")
        assert record.ended_ts is not None
        assert await it.database.deploys.unfinished() == []
        assert await it.database.keys.get("k1") is None
        transitions = it.rows("SELECT id, event, target FROM transitions ORDER BY id")
        assert transitions == [(1, "begun", "preflight"), (2, "failed", "ended")]
        assert await published(feed) == transitions
        assert it.state.state.last_deploy_ts is None
        monkeypatch.undo()
        await it.database.audit.write(SUPERVISOR, "later", "done")  # what is pending comes first
        begun, failed = ("deploy", "begun"), ("deploy", "failed")
        known = [failed] if failing == "audit" else [begun, failed]
        assert it.rows("SELECT action, outcome FROM audit") == [*known, ("later", "done")]


async def test_on_a_failing_disk_that_end_is_published_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path) as it:
        monkeypatch.setattr(it.database.audit, "write", broken)
        monkeypatch.setattr(it.database.deploys, "write_transition", broken)
        feed = await it.events.subscribe(after=None, deploy_id=None)
        record = await it.refused()
        (unfinished,) = await it.database.deploys.unfinished()
        assert (unfinished.record, record.phase) == (record, "preflight")
        assert await published(feed) == [(1, "begun", "preflight"), (None, "failed", "ended")]
        assert [each.event.target for each in it.database.transitions.pending()] == ["ended"]
        monkeypatch.undo()
        await it.database.outbox.flush()
        assert await it.database.deploys.unfinished() == []
        assert await it.database.keys.get("k1") is None
        assert it.database.transitions.pending() == []


async def test_a_deploy_that_could_not_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path) as it:
        monkeypatch.setattr(it.database.statements, "write", broken)
        with pytest.raises(RefusedError, match="so it was not started"):
            await it.begin()
        assert await it.database.deploys.latest(10) == []
        assert await it.database.keys.get("k1") is None


# What has happened.


def happened(record: DeployRecord, **changes: Any) -> Transition:
    after = record.model_copy(
        update={"phase": "unstage", "result": Result.FAILED, "reason": "smoke: 500"}
    )
    event = DeployEvent.of(after, ts=after.started_ts, source="smoke", event="failed", cause="500")
    demands = (Consequence.ROLLBACK_UNNEEDED_AUDITED, Consequence.SINGLE_MODE)
    return Transition(after, event, **{"demands": demands, "has_new_result": True, **changes})


async def test_a_transition_is_followed_by_what_it_demands_and_by_its_result(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as it:
        record = await it.begin()
        pending = await it.recorder.write(happened(record))
        assert pending.written
        assert it.state.state.mode is Mode.SINGLE
        assert it.rows("SELECT event FROM transitions ORDER BY id") == [("begun",), ("failed",)]
        await it.database.outbox.flush()
        assert it.rows("SELECT action, outcome FROM audit ORDER BY id") == [
            *(("deploy", "begun"), ("rollback", "not_needed")),
            *(("mode", "single"), ("deploy", "failed")),
        ]


async def test_with_AFTER_FAILURE_stay_a_failed_deploy_leaves_the_mode_and_is_audited(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as it:
        recorder = Recorder(it.database, it.state, it.events, AfterFailure.STAY)
        record = await it.begin()
        await recorder.write(happened(record))
        await it.database.outbox.flush()
        assert it.state.state.mode is Mode.BLUEGREEN
        assert it.rows("SELECT action, outcome FROM audit ORDER BY id") == [
            *(("deploy", "begun"), ("rollback", "not_needed"), ("deploy", "failed")),
        ]


async def test_a_demand_that_can_not_be_written_holds_back_what_follows_it(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as it:
        record = await it.begin()
        obstacle = tmp_path / ".deploy_state.json.new"
        obstacle.mkdir()
        pending = await it.recorder.write(happened(record))
        assert not pending.written
        assert it.state.state.mode is Mode.BLUEGREEN
        assert it.rows("SELECT event FROM transitions ORDER BY id") == [("begun",), ("failed",)]
        later = await it.recorder.write(happened(record, demands=(), has_new_result=False))
        assert not later.written
        with pytest.raises(RefusedError, match="so it was not started"):
            await it.begin()
        obstacle.rmdir()
        await it.database.outbox.flush()
        assert later.written
        assert it.state.state.mode is Mode.SINGLE
        assert it.rows("SELECT count(*) FROM transitions") == [(3,)]


async def test_a_version_is_written_with_its_transition_and_the_state_of_then(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as it:
        record = await it.begin()
        await it.state.change(active_port=8792, staging_port=8791)
        added = Version(SlotName.GREEN, RELEASE)
        await it.recorder.write(happened(record, versions=VersionChange(added)))
        assert await it.database.versions.all() == [added]
        assert await it.database.state.load() == it.state.state.model_copy(
            update={"mode": Mode.SINGLE, "generation": it.state.state.generation}
        )


async def test_a_transition_that_no_database_takes_is_published_and_blocks_no_other(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as it:
        record = await it.begin()
        feed = await it.events.subscribe(after=None, deploy_id=None)
        bad = happened(record, demands=(), has_new_result=False)
        unknown = bad.record.model_copy(update={"deploy_id": "trimmed"})
        await it.recorder.write(replace(bad, record=unknown))
        await it.recorder.write(bad)
        assert [each and each[0] for each in await published(feed)] == [None, 2]
        assert it.rows("SELECT count(*) FROM transitions") == [(2,)]
