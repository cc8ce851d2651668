"""A running monitor on a real database and real servers; the test sets the active worker."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from atlas_supervisor.health.monitor import HealthMonitor
from atlas_supervisor.health.worker_checks import ActiveWorker
from atlas_supervisor.model.health import Check, CheckStatus, Health
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from atlas_supervisor.traffic.steering import SteeringPolicy
from tests.unit.supervisor.probes.fakes import Handler, answer
from tests.unit.supervisor.store.support import a_state
from tests.unit.supervisor.workers.support import make_settings

BLUE, GREEN = SlotName.BLUE, SlotName.GREEN


@dataclass
class Steered:
    """The part of a plane that is checked."""

    active: SlotName = BLUE
    held: bool = False
    policy: SteeringPolicy = field(default_factory=lambda: SteeringPolicy(BLUE))


@dataclass
class Watched:
    """A running monitor, and its subject."""

    monitor: HealthMonitor
    subject: ActiveWorker
    database: Database
    state: StateKeeper
    file: StateFile
    plane: Steered

    async def seen(self) -> Health:
        """Return a report once everything was checked, which takes time on a busy machine."""
        with anyio.fail_after(5):
            while True:
                health = await self.monitor.report()
                if health.age_seconds is not None and self._all_checked():
                    return health
                await anyio.sleep(0.005)

    def _all_checked(self) -> bool:
        return all(poller.last is not None for poller in self.monitor._daemon.values())

    async def until(self, check: str, status: str, *, within: float = 5.0) -> Health:
        """Wait until a check has this status, and return the report."""
        with anyio.fail_after(within):
            while True:
                health = await self.monitor.report()
                if health.checks[check].status == status:
                    return health
                await anyio.sleep(0.01)


@asynccontextmanager
async def watched(folder: Path, port: int, **changes: Any) -> AsyncIterator[Watched]:
    """Run a monitor of blue on this port; `changes` are to the settings."""
    settings = make_settings(folder, **{"public_port": 0, "active_port": port, **changes})
    async with open_database(folder / "atlas.db") as (database, _), HttpProber() as prober:
        ports = {"active_port": port, "staging_port": settings.staging_port}
        file = StateFile(settings.state_dir / "deploy_state.json")
        state = StateKeeper(file, database.state, a_state(**ports))
        await state.change()
        plane: Any = Steered()
        monitor = HealthMonitor(
            settings=settings,
            prober=prober,
            plane=plane,
            database=database,
            state=state,
            subject=lambda: it.subject,
            canaries=lambda: Check(status=CheckStatus.PASS),
        )
        it = Watched(
            monitor, ActiveWorker(BLUE, port, "blue-1", "v1"), database, state, file, plane
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(monitor.run)
            try:
                yield it
            finally:
                tasks.cancel_scope.cancel()


def telling(status: str = "200 OK", instance: str | None = None, **checks: Any) -> Handler:
    """Return a handler that answers with these checks, as a worker does."""
    body = json.dumps({"checks": {name: {"status": word} for name, word in checks.items()}})
    headers = f"X-Atlas-Instance: {instance}\r\n" if instance else ""
    return answer(body.encode(), status=status, headers=headers)
