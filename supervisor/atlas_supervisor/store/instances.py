"""The worker processes, recorded for the daemon that follows after a crash."""

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
    """The processes that were launched and not removed."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def add(self, row: InstanceRow) -> None:
        """Record a worker process."""
        await self._statements.write(
            ("add_instance", {**row._asdict(), "started_ts": now().isoformat()})
        )

    async def remove(self, instance: str) -> None:
        """Remove a worker process that has ended."""
        await self._statements.write(("remove_instance", {"instance": instance}))

    async def all(self) -> list[InstanceRow]:
        """Return the recorded worker processes."""
        return [InstanceRow(*row) for row in await self._statements.read("instances")]
