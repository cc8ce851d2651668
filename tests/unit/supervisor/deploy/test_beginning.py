"""A deploy is written down as a whole, or it has not begun; with disks that fail in between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.machine import Plan
from atlas_supervisor.deploy.service import new_record, write_down
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.deploy import DeployRecord
from atlas_supervisor.model.event import EventFeed
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.release import Release
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

    async def begin(self, plan: Plan | None = None) -> DeployRecord:
        plan = plan or Plan()
        record = new_record(RELEASE, plan, (8791, 8792))
        await write_down(
            self.database,
            self.state,
            record,
            plan,
            actor=Actor(name="uid:0", origin="unix"),
            key=KEY,
            events=self.events,
        )
        return record

    async def refused(self) -> DeployRecord:
        """Begin in vain; return the record that is left."""
        with pytest.raises(RefusedError, match="so it was not begun") as refused:
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
        yield Scene(folder, database, EventHub(database.transitions), state)


async def told(feed: EventFeed) -> list[tuple[int | None, str, str]]:
    """Return what was told of it: the journal's id, what happened, and what follows."""
    found = [await feed.next() for _ in range(2)]
    return [(each.id, each.event.event, each.event.target) for each in found if each]


@pytest.mark.parametrize(
    ("plan", "action"),
    [(Plan(), "deploy"), (Plan(dry_run=True), "dry_run"), (Plan(rollback=True), "rollback")],
)
async def test_it_is_in_the_database_with_its_key_in_the_audit_trail_and_in_the_file(
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
async def test_half_written_down_it_is_ended_and_its_key_can_be_given_again(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path) as it:
        if failing == "audit":
            monkeypatch.setattr(it.database.audit, "write", broken)
        else:
            (tmp_path / ".deploy_state.json.new").mkdir()
        feed = await it.events.feed(after=None, deploy_id=None)
        record = await it.refused()
        assert (record.result, record.phase) == ("failed", "ended")
        assert "so it was not begun" in (record.reason or "")
        assert record.ended_ts is not None
        assert await it.database.deploys.unfinished() == []
        assert await it.database.keys.get("k1") is None
        transitions = it.rows("SELECT id, event, target FROM transitions ORDER BY id")
        assert transitions == [(1, "begun", "preflight"), (2, "failed", "ended")]
        assert await told(feed) == transitions
        assert it.state.state.last_deploy_ts is None
        monkeypatch.undo()
        await it.database.audit.write(SUPERVISOR, "later", "done")  # what is owed comes first
        begun, failed = ("deploy", "begun"), ("deploy", "failed")
        known = [failed] if failing == "audit" else [begun, failed]
        assert it.rows("SELECT action, outcome FROM audit") == [*known, ("later", "done")]


async def test_a_disk_that_takes_nothing_more_leaves_the_end_to_the_next_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path) as it:
        monkeypatch.setattr(it.database.audit, "write", broken)
        monkeypatch.setattr(it.database.deploys, "write_transition", broken)
        feed = await it.events.feed(after=None, deploy_id=None)
        record = await it.refused()
        (unfinished,) = await it.database.deploys.unfinished()
        assert (unfinished.record, record.phase) == (record, "preflight")
        assert await told(feed) == [(1, "begun", "preflight"), (None, "failed", "ended")]


async def test_what_could_not_be_written_at_all_has_left_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path) as it:
        monkeypatch.setattr(it.database.statements, "write", broken)
        with pytest.raises(RefusedError, match="so it was not begun"):
            await it.begin()
        assert await it.database.deploys.latest(10) == []
        assert await it.database.keys.get("k1") is None
