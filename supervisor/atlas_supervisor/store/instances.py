"""The worker processes there are, for a daemon that comes after a crash."""

from __future__ import annotations

from typing import NamedTuple

from atlas_supervisor.store.statements import Statements
from atlas_supervisor.system.clock import now


class InstanceRow(NamedTuple):
    """A worker process as it was recorded at its launch."""

    instance: str
    slot: str
    pid: int
    start_ticks: int
    boot_id: str


class InstanceStore:
    """Which processes were launched and not forgotten."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def add(self, row: InstanceRow) -> None:
        """Remember a worker process."""
        await self._statements.write(
            ("add_instance", {**row._asdict(), "started_ts": now().isoformat()})
        )

    async def remove(self, instance: str) -> None:
        """Forget a worker process that is gone."""
        await self._statements.write(("remove_instance", {"instance": instance}))

    async def all(self) -> list[InstanceRow]:
        """Return the worker processes that were not forgotten."""
        return [InstanceRow(*row) for row in await self._statements.read("instances")]
