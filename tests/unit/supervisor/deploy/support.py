"""Slots with workers that are ready, and what a daemon left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy import switch as switching
from atlas_supervisor.deploy.machine import Event, Phase
from atlas_supervisor.deploy.recovery import finish_interrupted, resumed
from atlas_supervisor.deploy.switch import Landing, LandingCheck, Switch
from atlas_supervisor.model.deploy import Cause, DeployRecord, Mode
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.deploys import UnfinishedDeploy
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from atlas_supervisor.workers.releases import Releases
from atlas_supervisor.workers.slot import Slot
from tests.harness import write_release
from tests.unit.supervisor.store.support import a_deploy, a_state, moved
from tests.unit.supervisor.workers.support import READY_AND_SLEEP, Bench, bench, release

BLUE, GREEN = SlotName.BLUE, SlotName.GREEN
PORT = {BLUE: 8791, GREEN: 8792}
BEFORE_SWITCH = [Phase.PREFLIGHT, Phase.LAUNCH, Phase.SMOKE, Phase.HEALTH]
AFTER_SWITCH = [Phase.GUARD, Phase.WARM, Phase.DRAIN]


@dataclass
class Ready:
    """Two living instances, blue being active, and all that a switch changes."""

    bench: Bench
    switch: Switch
    file: StateFile
    state: StateKeeper
    database: Database

    def has(self, active: SlotName) -> bool:
        """Return whether steering, file and memory all say that this slot is active."""
        port = self.bench.slots[active].port
        held = self.file.read()
        assert held is not None
        assert held == self.state.state
        assert {held.active_port, held.staging_port} == {s.port for s in self.bench.slots}
        found = {self.bench.plane.active, self.bench.slots.active.name}
        return found == {active} and held.active_port == port


@asynccontextmanager
async def ready(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ready]:
    async def unseen(*_: Any) -> LandingCheck:
        return LandingCheck(Landing.UNSEEN, "these workers accept nothing")

    monkeypatch.setattr(switching, "check_landing", unseen)
    async with bench(folder) as made, open_database(folder / "atlas.db") as (database, _):
        ports = {"active_port": made.blue.port, "staging_port": made.green.port}
        file = StateFile(folder / "deploy_state.json")
        state = StateKeeper(file, database.state, a_state(**ports))
        await state.change()
        for slot in (made.blue, made.green):
            await slot.start(release(folder / slot.name, READY_AND_SLEEP))
        switch = Switch(
            settings=made.settings,
            plane=made.plane,
            slots=made.slots,
            state=state,
            tasks=made.tasks,
        )
        yield Ready(made, switch, file, state, database)


async def kill(slot: Slot) -> None:
    assert slot.instance is not None
    os.kill(slot.instance.pid, signal.SIGKILL)
    await slot.instance.exited.wait()


@dataclass
class Left:
    """What was left, in a real database."""

    database: Database
    settings: Settings
    folder: Path

    def release(self, name: str) -> Release:
        return Release(name=name, path=self.folder / "releases" / name, version=name)

    async def versions(self, *names: tuple[str, SlotName]) -> None:
        for name, slot in names:
            await self.database.versions.push(slot, self.release(name))

    async def deploy(
        self,
        phase: Phase,
        deploy_id: str = "d1",
        *,
        release: str = "v2",
        source: Phase = Phase.HEALTH,
        event: Event = Event.PASSED,
        rollback: bool = False,
        cause: Cause = Cause.REQUESTED,
        **changes: Any,
    ) -> DeployRecord:
        record = a_deploy(deploy_id, release=release, version=release, cause=cause)
        await self.database.deploys.begin(record, auto_switch=True, rollback=rollback)
        if phase in {*AFTER_SWITCH, Phase.REVERT}:
            ports = {"active_port": PORT[GREEN], "staging_port": PORT[BLUE], "result": "switched"}
            changes = {**ports, **changes}
        record = DeployRecord(**{**record.model_dump(), "phase": phase.value, **changes})
        await self.database.deploys.write_transition(*moved(record, source=source, event=event))
        return record

    async def recover(self, active: SlotName, **changes: Any) -> tuple[DeployState, Any]:
        """Recover with no worker alive."""
        state, left = await self.interrupted(active, **changes)
        if left is None or left.record.phase == Phase.AWAITING_SWITCH:
            return state, left
        await self.resume(left, state)
        return state, None

    async def interrupted(
        self, active: SlotName, **changes: Any
    ) -> tuple[DeployState, UnfinishedDeploy | None]:
        """Return the state, and the deploy that goes on if its worker lives."""
        ports = {"active_port": PORT[active], "staging_port": PORT[active.other]}
        state = a_state(**ports, **changes)
        return await finish_interrupted(self.database, state, self.settings)

    async def resume(
        self, left: UnfinishedDeploy, state: DeployState, lives: Release | None = None
    ) -> tuple[DeployRecord, Release | None]:
        """Go on with what was left, with this release in staging."""
        releases = Releases(directory=self.folder, releases_dir=self.folder / "releases")
        return await resumed(self.database, left, releases, state, self.settings, lives=lives)

    async def stack(self) -> list[tuple[str | None, SlotName]]:
        """Return the versions, the first one last, as they were pushed."""
        return [
            (row.release.name, row.slot) for row in reversed(await self.database.versions.all())
        ]

    async def audited(self) -> list[tuple[str, str]]:
        """Return action and outcome of every entry, in order."""
        entries = await self.database.trail.entries(
            limit=100, before=None, action=None, subject=None
        )
        return [(each.action, each.outcome) for each in reversed(entries)]

    async def ended(self, deploy_id: str = "d1") -> DeployRecord:
        record = await self.database.deploys.find(deploy_id)
        assert record is not None
        assert record.phase == "ended"
        assert record.ended_ts is not None
        assert record.reason
        return record


@asynccontextmanager
async def left(folder: Path, **changes: Any) -> AsyncIterator[Left]:
    for name in ("v1", "v2"):
        write_release(folder / "releases" / name, name)
    settings = Settings(
        base_dir=folder,
        **{
            "active_port": PORT[BLUE],
            "staging_port": PORT[GREEN],
            "releases_dir": folder / "releases",
            "deploy_mode": Mode.BLUEGREEN,
            **changes,
        },
    )
    async with open_database(folder / "atlas.db") as (database, _):
        yield Left(database, settings, folder)
