"""Canaries on a real database, state file and rings, and processes that report calls."""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.canary import evidence
from atlas_supervisor.canary.service import FeatureCanaries, open_canaries
from atlas_supervisor.config import Settings
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.canary import CanaryPolicy, FeatureView
from atlas_supervisor.model.deploy import Mode
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from atlas_supervisor.system import procfs
from atlas_worker.contract import RINGS_DIRECTORY, STATE_FILE, latency_bucket
from atlas_worker.contract import ring as layout
from atlas_worker.contract.ring import EventKind, Outcome

OPERATOR = Actor(name="uid:7", origin="unix")
NO_PID = 2**22 + 7  # above the largest pid that Linux gives
WORDS = struct.Struct("<QQ")


@dataclass
class Clock:
    """Both clocks of the daemon; a test advances them."""

    slice: int = 1_000
    unix: float = 1_800_000_000.0

    def now(self) -> evidence.Moment:
        return evidence.Moment(self.slice, self.unix)

    def pass_seconds(self, seconds: float) -> None:
        self.slice += int(seconds / layout.SLICE_SECONDS)
        self.unix += seconds


@dataclass
class Process:
    """A worker process with a ring."""

    folder: Path
    clock: Clock
    policy: Callable[[], CanaryPolicy]
    pid: int = field(default_factory=os.getpid)
    index: int = 0
    keyed_index: int = 0
    version: int = layout.LAYOUT_VERSION

    def __post_init__(self) -> None:
        ticks = procfs.start_ticks(self.pid) or 1
        self.path = self.folder / f"{self.pid}-{ticks}-{secrets.token_hex(4)}{layout.RING_SUFFIX}"
        owner = layout.Owner(self.pid, ticks, procfs.boot_id(), "blue-1", "v1")
        with self.path.open("wb") as file:
            file.write(layout.pack_header(owner, self.version))
            file.truncate(layout.RING_BYTES)

    def write(
        self,
        kind: EventKind,
        *,
        canary: bool = True,
        feature: str = "vision",
        outcome: Outcome = Outcome.OK,
        ms: float = 10.0,
        key: int | None = None,
        serial: int = 0x8000,
        times: int = 1,
    ) -> None:
        """Write an event `times` times; `key` is the key's hash."""
        word = layout.encode(
            kind,
            is_canary=canary,
            epoch=self.policy().features[feature].epoch,
            slice_number=self.clock.slice % layout.SLICES,
            outcome=outcome,
            bucket=latency_bucket(ms),
        )
        with self.path.open("rb+") as file:
            if key is None:
                file.seek(layout.HEADER_BYTES + self.index * layout.WORD_BYTES)
                file.write(struct.pack("<Q", word) * times)
                self.index += times
            else:
                file.seek(layout.KEYED_OFFSET + self.keyed_index * WORDS.size)
                file.write(WORDS.pack(word, key << 16 | serial) * times)
                self.keyed_index += times
            for offset, index in (
                (layout.RESERVED_OFFSET, self.index),
                (layout.KEYED_RESERVED_OFFSET, self.keyed_index),
            ):
                file.seek(offset)
                file.write(struct.pack("<Q", index))

    def calls(self, count: int, *, failed: int = 0, **more: Any) -> None:
        """Write calls that have ended, the first `failed` of them as errors."""
        self.write(EventKind.STARTED, times=count, **more)
        self.write(EventKind.ENDED, outcome=Outcome.ERROR, times=failed, **more)
        self.write(EventKind.ENDED, times=count - failed, **more)

    def die(self) -> None:
        """Make the owner a process that does not exist."""
        ticks = procfs.start_ticks(self.pid) or 1
        owner = layout.Owner(NO_PID, ticks, procfs.boot_id(), "blue-1", "v1")
        with self.path.open("rb+") as file:
            file.write(layout.pack_header(owner, self.version))


@dataclass
class Canaries:
    """The service with its database, state file and clock."""

    service: FeatureCanaries
    settings: Settings
    database: Database
    state: StateKeeper
    clock: Clock

    def process(self) -> Process:
        folder = self.settings.state_dir / RINGS_DIRECTORY
        return Process(folder, self.clock, lambda: self.policy)

    @property
    def policy(self) -> CanaryPolicy:
        policy = self.state.state.canary
        assert policy is not None
        return policy

    @property
    def written(self) -> DeployState:
        """The state file as workers read it."""
        state = StateFile(self.settings.state_dir / STATE_FILE).read()
        assert state is not None
        return state

    async def look(self, *, after: float = 0.0) -> None:
        self.clock.pass_seconds(after)
        await self.service._poll(at_once=True)

    def feature(self, name: str = "vision") -> FeatureView:
        return next(each for each in self.service.view().features if each.feature == name)

    async def audited(self) -> list[tuple[str, str, str | None]]:
        rows = await self.database.statements.connection.execute_fetchall(
            "SELECT action, outcome, subject FROM audit ORDER BY id"
        )
        return [(row[0], row[1], row[2]) for row in rows]


def settings_in(folder: Path, **changes: Any) -> Settings:
    given = {"base_dir": folder, "state_dir": folder, "canary_enabled": True, **changes}
    return Settings(**given)


@asynccontextmanager
async def running(
    folder: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock | None = None, **changes: Any
) -> AsyncIterator[Canaries]:
    """Open the canaries of a folder; they poll only in `look`."""
    clock = clock or Clock()
    monkeypatch.setattr(evidence.Moment, "now", clock.now)
    settings = settings_in(folder, **changes)
    async with open_database(folder / "atlas.db") as (database, _):
        file = StateFile(folder / STATE_FILE)
        first = DeployState(mode=Mode.BLUEGREEN, active_port=8791, staging_port=8792)
        state = StateKeeper(file, database.state, file.read() or first)
        service = await open_canaries(settings, state, database)
        try:
            yield Canaries(service, settings, database, state, clock)
        finally:
            service.close()
