"""Which release to start when the daemon starts: the one that had the traffic last."""

from __future__ import annotations

import anyio
import structlog

from supervisor.model.release import Release
from supervisor.model.slot import SlotName
from supervisor.model.state import ActiveRelease
from supervisor.store.database import Database
from supervisor.store.state_keeper import StateKeeper
from supervisor.store.statements import StoreError
from supervisor.workers.releases import Releases

log = structlog.get_logger(__name__)


async def last_active(
    database: Database, state: StateKeeper, releases: Releases, slot: SlotName
) -> Release:
    """Return what had the traffic last, or the worker directory at the first start.

    The state file's word counts: it is written with the port, and lives without the database.
    Both are told what is about to run. Raises UnknownReleaseError, and StoreError if nothing
    can be read.
    """
    rows, named = await database.versions(), state.state.active_release
    last = named or (rows[0].release if rows else None)
    release = await anyio.to_thread.run_sync(releases.find, last.name if last else None)
    if not rows or rows[0].release != release:
        try:
            await database.push_version(slot, release)
        except StoreError as error:  # it can serve all the same
            log.error("version_not_remembered", slot=slot, release=release.label, why=str(error))
    await _name(release, state)
    return release


async def _name(release: Release, state: StateKeeper) -> None:
    """Let the state file name the release; it can serve all the same without."""
    named = ActiveRelease(name=release.name, version=release.version)
    if state.state.active_release == named:
        return
    try:
        await state.change(active_release=named)
    except OSError as error:
        log.error("active_release_not_named", release=release.label, why=str(error))
    else:
        await state.copy_to_database()
