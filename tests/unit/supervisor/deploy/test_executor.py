"""The versions that had the traffic, and what is done with an old one, on real slots and files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.executor import Executor
from atlas_supervisor.deploy.machine import FIRST_PHASE, Plan
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.deploy.switch import Switch
from atlas_supervisor.model.event import DeployEvent
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName, SlotState
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.statements import StoreError
from tests.harness import eventually
from tests.unit.supervisor.deploy.support import Ready, kill, ready
from tests.unit.supervisor.store.support import a_deploy

BLUE, GREEN = SlotName.BLUE, SlotName.GREEN


@dataclass
class Stage:
    it: Ready
    activities: Executor
    database: Database
    let_go: list[SlotName]

    @property
    def switch(self) -> Switch:
        return self.it.switch

    def release(self, slot: SlotName) -> Release:
        instance = self.it.bench.slots[slot].instance
        assert instance is not None
        return instance.release

    def deploy(self, *, rollback: bool = False) -> DeployRun:
        """Return a deploy of what is on green; only its activities are run."""
        unused: Any = None
        plan = Plan(rollback=rollback)
        return DeployRun(a_deploy(), plan, self.release(GREEN), unused, FIRST_PHASE)

    async def stack(self) -> list[str]:
        """Return the folders of the versions, the first one last."""
        return [row.release.path.name for row in reversed(await self.database.versions.all())]


@asynccontextmanager
async def stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    async with ready(folder, monkeypatch) as it, HttpProber() as prober:
        let_go: list[SlotName] = []

        async def note(slot: SlotName) -> None:
            let_go.append(slot)

        database = it.database
        activities = Executor(
            settings=it.bench.settings.model_copy(update={"keep_warm_seconds": 0}),
            switch=it.switch,
            plane=it.bench.plane,
            prober=prober,
            database=database,
            events=EventHub(database.transitions),
            state=it.state,
            make_room=_nothing,
            let_go=note,
        )
        made = Stage(it, activities, database, let_go)
        await database.versions.push(BLUE, made.release(BLUE))
        yield made


async def _nothing() -> None:
    pass


async def test_a_switch_notes_its_version_and_a_revert_takes_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        assert (await on.activities.switch(on.deploy())).has_passed
        assert await on.stack() == ["blue", "green"]
        assert (await on.activities.revert(on.deploy())).has_passed
        assert await on.stack() == ["blue"]


async def test_a_rollback_takes_a_version_back_and_its_revert_notes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        await on.database.versions.pop()
        await on.database.versions.push(GREEN, on.release(GREEN))
        await on.database.versions.push(BLUE, on.release(BLUE))
        assert (await on.activities.switch(on.deploy(rollback=True))).has_passed
        assert await on.stack() == ["green"]
        assert (await on.activities.revert(on.deploy(rollback=True))).has_passed
        assert await on.stack() == ["green", "blue"]


async def test_a_version_that_could_not_be_noted_is_noted_before_the_journal_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        record = a_deploy()
        await on.database.deploys.begin(record, auto_switch=True)

        event = DeployEvent.of(record, ts=record.started_ts, source="s", event="e", cause="")
        push, locked = on.database.versions.push, True

        async def tried(*noted: Any) -> None:
            if locked:
                raise StoreError("the database is locked")
            await push(*noted)

        monkeypatch.setattr(on.database.versions, "push", tried)
        assert (await on.activities.switch(on.deploy())).has_passed
        with pytest.raises(StoreError):
            await on.activities.journal(record, event)
        assert await on.database.transitions.last(record.deploy_id) is None
        locked = False
        await on.activities.journal(record, event)
        assert await on.database.transitions.last(record.deploy_id) == ("s", "e")
        assert await on.stack() == ["blue", "green"]


async def test_the_old_version_stays_while_it_is_the_only_one_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        assert (await on.activities.switch(on.deploy())).has_passed
        await kill(on.it.bench.green)
        warm = asyncio.create_task(on.activities.warm(on.deploy()))
        done, _ = await asyncio.wait([warm], timeout=0.3)
        assert not done
        await on.it.bench.green.stop()
        await on.it.bench.green.start(on.release(BLUE))
        assert (await asyncio.wait_for(warm, 5)).has_passed


async def test_nobody_cares_for_the_old_slot_any_more_once_it_is_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        assert (await on.activities.switch(on.deploy())).has_passed
        assert (await on.activities.drain(on.deploy())).has_passed
        assert on.let_go == [BLUE]
        assert on.it.bench.blue.state is SlotState.EMPTY


async def test_a_hung_version_is_ended_without_waiting_for_its_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        assert (await on.activities.switch(on.deploy())).has_passed
        instance = on.it.bench.blue.instance
        assert instance is not None
        instance.expected_to_exit = True  # so does whoever found that it hangs
        outcome = await on.activities.drain(on.deploy())
        assert "was dead" in outcome.message
        await eventually(lambda: not instance.alive)


async def test_what_a_failed_step_left_on_staging_is_ended_by_the_next_preflight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as on:
        assert (await on.activities.preflight(on.deploy())).has_passed
        assert on.let_go == [GREEN]
        assert on.it.bench.green.instance is None
