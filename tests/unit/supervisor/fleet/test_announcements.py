"""What a host announces, and when: others decide by it, and operators read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.config import Settings
from atlas_supervisor.fleet import presence
from atlas_supervisor.fleet.documents import PRESENT, SEMAPHORE, Presence, Semaphore
from atlas_supervisor.fleet.fleet import Fleet
from atlas_supervisor.fleet.local import LocalOutcome, LocalState
from tests.harness import eventually
from tests.unit.supervisor.fleet.fakes import PlayedEngine, PlayedMachine
from tests.unit.supervisor.fleet.support import rollout_of


class Deploying(PlayedMachine):
    """A machine whose deploys pass at once."""

    version = "1.3.2"
    score = 100
    looks = 0

    def state(self) -> LocalState:
        self.looks += 1
        return LocalState(self.version, self.score, "bluegreen", None, deploying=False)

    async def deploy(self, release: str, *, key: str) -> LocalOutcome:
        self.version = release
        return LocalOutcome(passed=True, deploy_id=key, version=release, reason="")


class Witness(PlayedEngine):
    """Keeps which version host a had announced whenever the slots changed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, str | None]] = []

    def put(self, key: str, value: bytes) -> None:
        super().put(key, value)
        if key == SEMAPHORE and PRESENT + "a" in self.entries:
            held = len(Semaphore.read(key, value).holders)
            self.seen.append((held, announced(self).version))


def announced(engine: PlayedEngine) -> Presence:
    return Presence.read(PRESENT + "a", engine.entries[PRESENT + "a"].value)


def fill(engine: PlayedEngine, documents: dict[str, Any]) -> None:
    for key, document in documents.items():
        engine.put(key, document.written())


@asynccontextmanager
async def host_a(
    engine: PlayedEngine, machine: PlayedMachine, folder: Path
) -> AsyncIterator[Fleet]:
    settings = Settings.model_construct(base_dir=folder, state_dir=folder, fleet_host="a")
    unused: Any = None
    fleet = Fleet(settings, engine, machine, unused, kills=None)
    running = asyncio.create_task(fleet.run())
    try:
        await eventually(lambda: PRESENT + "a" in engine.entries)
        yield fleet
    finally:
        await fleet.stop()
        await running


async def test_a_host_announces_its_new_version_before_it_gives_its_slot_back(
    tmp_path: Path,
) -> None:
    engine = Witness()
    async with host_a(engine, Deploying(), tmp_path):
        fill(engine, rollout_of("a"))
        await eventually(lambda: len(engine.seen) == 2, within=10)
    assert engine.seen == [(1, "1.3.2"), (0, "1.4.0")]


async def test_a_host_that_begins_to_serve_announces_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "EVERY_SECONDS", 60.0)
    engine, machine = PlayedEngine(), Deploying()
    machine.score = 0
    async with host_a(engine, machine, tmp_path):
        await eventually(lambda: machine.looks >= 4, within=10)  # what it began with is announced
        machine.score = 100
        await eventually(lambda: announced(engine).health_score == 100, within=10)
