"""An engine in memory, and a machine that does as it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from atlas_supervisor.fleet.documents import ArmCount, Evidence, FeatureCount, KillSwitch
from atlas_supervisor.fleet.engine import (
    Changes,
    Delete,
    EngineUnavailableError,
    Entry,
    Outage,
    Put,
    Snapshot,
    Unchanged,
)
from atlas_supervisor.fleet.local import LocalOutcome, LocalState
from atlas_supervisor.system.clock import now


class PlayedEngine:
    """Keeps its promises, in memory. While `is_away`, it answers nothing."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.revision = 0
        self.is_away = False
        self.asked = 0
        """How many requests there were."""
        self.reads: list[tuple[str, ...]] = []
        self.counts: list[str] = []
        self.watched: list[str] = []
        """The prefixes of the watches that are open."""
        self._claimed: set[tuple[float, str]] = set()
        self._changed = asyncio.Event()

    @property
    def outage(self) -> Outage | None:
        return Outage(now(), "it is away") if self.is_away else None

    def put(self, key: str, value: bytes) -> None:
        """Write a key as another program would."""
        self.revision += 1
        self.entries[key] = Entry(key, value, self.revision)
        self._changed.set()
        self._changed = asyncio.Event()

    def remove(self, key: str) -> None:
        """Remove a key as another program would, or the end of a lease."""
        self.revision += 1
        self.entries.pop(key, None)
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self, *prefixes: str) -> Snapshot:
        await self._ask()
        self.reads.append(prefixes)
        found = [self.entries[key] for key in sorted(self.entries) if key.startswith(prefixes)]
        return Snapshot(self.revision, tuple(found))

    async def read_again(self, earlier: Snapshot, *prefixes: str) -> Snapshot:
        return await self.read(*prefixes)

    async def count(self, prefix: str) -> int:
        await self._ask()
        self.counts.append(prefix)
        return sum(key.startswith(prefix) for key in self.entries)

    async def commit(self, conditions: Sequence[Unchanged], *writes: Put | Delete) -> int | None:
        await self._ask()
        for each in conditions:
            known = self.entries.get(each.key)
            if (known.revision if known else 0) != each.revision:
                return None
        for write in writes:
            if isinstance(write, Put):
                self.put(write.key, write.value)
            else:
                self.remove(write.key)
        return self.revision

    async def watch(self, prefix: str) -> AsyncGenerator[Changes, None]:
        self.watched.append(prefix)
        try:
            while True:
                changed = self._changed
                if not self.is_away:
                    found = await self.read(prefix)
                    yield Changes(found.revision, found.entries, anew=True)
                await changed.wait()
        finally:
            self.watched.remove(prefix)

    async def claim(
        self, key: str, value: bytes, *, revision: int, ttl_seconds: float
    ) -> int | None:
        written = await self.commit([Unchanged(key, revision)], Put(key, value))
        self._claimed |= {(ttl_seconds, key)} if written else set()
        return written

    async def keep(self, *, ttl_seconds: float) -> bool:
        await self._ask()
        return any(ttl == ttl_seconds and key in self.entries for ttl, key in self._claimed)

    async def _ask(self) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise EngineUnavailableError("it is away")


@dataclass
class PlayedMachine:
    """A machine whose kills and counts are looked at."""

    kills: list[KillSwitch] = field(default_factory=list)
    full_disk: bool = False
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Calls and errors of each feature's canary."""
    origin: str = "first"

    def state(self) -> LocalState:
        return LocalState("v1", 100, "bluegreen", None, deploying=False)

    async def find_release(self, release: str) -> None:
        raise NotImplementedError

    async def deploy(self, release: str, *, key: str) -> LocalOutcome:
        raise NotImplementedError

    async def go_back(self, release: str, *, key: str) -> LocalOutcome:
        raise NotImplementedError

    async def outcome(self, *, key: str) -> LocalOutcome | None:
        raise NotImplementedError

    async def abort(self, *, key: str) -> None:
        raise NotImplementedError

    async def kill(self, switch: KillSwitch) -> None:
        if self.full_disk:
            raise OSError(28, "No space left on device")
        self.kills.append(switch)

    def evidence(self) -> Evidence:
        none = ArmCount(calls=0, errors=0)
        features = {
            name: FeatureCount(canary=ArmCount(calls=calls, errors=errors), stable=none)
            for name, (calls, errors) in self.counts.items()
        }
        return Evidence(boot_epoch=self.origin, features=features, counted_ts=now())
