"""Opens what the daemon keeps on disk, and ends what the last daemon left unfinished.

A damaged database is set aside and the start goes on without it: the state file says by itself
which worker serves. A database or a file that can't be read or written refuses the start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass

import structlog

from atlas_supervisor.canary.service import FeatureCanaries, open_canaries
from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.recovery import recover
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.fleet.fleet import recorded_kills
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.requests.collector import RequestCollector
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.deploys import UnfinishedDeploy
from atlas_supervisor.store.state_folder import DATABASE_FILE
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.store.statements import StoreError, is_damage
from atlas_supervisor.system.program import own_version
from atlas_supervisor.telemetry.metrics import Metrics
from atlas_supervisor.workers.registry import WorkerRegistry

log = structlog.get_logger(__name__)

_LATEST_READ = 50
"""So many deploys are read at the start to see whether the database holds what it should."""


@dataclass(frozen=True)
class Opened:
    """What is on disk, open, and what was read of it."""

    database: Database
    registry: WorkerRegistry
    state: StateKeeper
    canaries: FeatureCanaries
    requests: RequestCollector
    unfinished: UnfinishedDeploy | None
    """The deploy that the last daemon did not end."""


@contextmanager
def refused_by_store() -> Iterator[None]:
    """Refuse to start on a database that can't be read or written."""
    try:
        yield
    except StoreError as error:
        raise StartRefusedError(str(error)) from error


async def open_all(
    settings: Settings, metrics: Metrics, stack: AsyncExitStack, *, reloaded: bool
) -> Opened:
    """Open database and state file; without what the database holds if that is damaged."""
    try:
        async with AsyncExitStack() as attempt:
            opened = await _read(settings, metrics, attempt, reloaded=reloaded)
            stack.push_async_exit(attempt.pop_all())
            return opened
    except Exception as error:
        if not is_damage(error):
            raise
        log.error("database_damaged", why=str(error), kind=type(error).__name__)
    return await _read(settings, metrics, stack, reloaded=reloaded, damaged=True)


async def _read(
    settings: Settings,
    metrics: Metrics,
    stack: AsyncExitStack,
    *,
    reloaded: bool,
    damaged: bool = False,
) -> Opened:
    """Read all that a start goes by, and end what the last daemon left unfinished."""
    folder, storage = settings.state_dir, metrics.storage
    database, aside = await stack.enter_async_context(
        open_database(folder / DATABASE_FILE, storage.database.written, damaged=damaged)
    )
    if aside is not None:
        log.error("database_unreadable", aside=aside.name)
        if aside.stat().st_size:  # else its entries are missing, and the trail stays broken
            await database.audit.write(SUPERVISOR, "database", "set_aside", aside=aside.name)
    await database.audit.record(
        SUPERVISOR, "daemon", "started", pid=os.getpid(), version=own_version(), reloaded=reloaded
    )
    registry = WorkerRegistry(database.statements)
    state, unfinished = await recover(settings, database, storage.state_file.written)
    kills = recorded_kills(settings)
    canaries = await open_canaries(settings, state, database, metrics.canaries.observe, kills)
    stack.callback(canaries.close)
    requests = RequestCollector(folder, database.requests)
    await requests.restore()
    # Values that are read later, and would fail then.
    canaries.view()
    await registry.rows()
    await database.versions.all()
    await database.deploys.latest(_LATEST_READ)
    return Opened(database, registry, state, canaries, requests, unfinished)
