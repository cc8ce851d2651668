"""What the daemon starts with: the state, and the release that had the traffic last.

The state file comes first. It is written with every switch, and is there without the database. Its
copy in the database and the settings stand in for a file that can't be used.
"""

from __future__ import annotations

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.deploy import Mode
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.state import ActiveRelease, DeployState
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper, UnreadableStateError
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import now
from atlas_supervisor.workers.releases import Releases, UnknownReleaseError

log = structlog.get_logger(__name__)


async def read_state(settings: Settings, file: StateFile, database: Database) -> DeployState:
    """Return the state to begin with, from the file, else its copy, else the settings."""
    try:
        known = file.read()
    except UnreadableStateError as error:
        aside = file.set_aside(now().strftime("%Y%m%dT%H%M%SZ"))
        known = await _rebuilt(database, str(error), aside=aside.name)
    except OSError as error:
        raise StartRefusedError(f"{file.path} can't be read: {error}") from error
    else:
        if known is None and not await _is_first_start(database):
            known = await _rebuilt(database, "is missing")
    if known is None:
        return DeployState(
            mode=settings.deploy_mode,
            active_port=settings.active_port,
            staging_port=settings.staging_port,
        )
    return await _fitted(known, settings, database)


async def _is_first_start(database: Database) -> bool:
    """Return whether this daemon's own start is all that the audit trail has."""
    _, newest = await database.audit.settled()
    return newest <= 1


async def _rebuilt(database: Database, why: str, **detail: str) -> DeployState | None:
    """Return the copy of a state file that is lost, and audit the loss; None if there is none."""
    known = await database.state.load()
    source = "its copy in the database" if known else "the settings"
    log.error("state_file_lost", why=why, rebuilt_from=source, **detail)
    await database.audit.write(
        SUPERVISOR, "state_file", "rebuilt", reason=why, source=source, **detail
    )
    return known


async def _fitted(state: DeployState, settings: Settings, database: Database) -> DeployState:
    """Return the state after what the settings override."""
    mode = Mode.SINGLE if settings.deploy_mode is Mode.SINGLE else state.mode
    if mode is not state.mode:
        reason = "DEPLOY_MODE=single in the settings always wins"
        await database.audit.write(SUPERVISOR, "mode", mode.value, reason=reason)
    ports = {settings.active_port, settings.staging_port}
    active = state.active_port
    if active not in ports:
        log.warning("active_port_unknown", active_port=active, configured=sorted(ports))
        await database.audit.write(
            SUPERVISOR,
            "active_port",
            "reset",
            reason=f"{active} in the state file is none of the two configured ports",
            active_port=settings.active_port,
        )
        active = settings.active_port
    (staging,) = ports - {active}
    return state.model_copy(update={"mode": mode, "active_port": active, "staging_port": staging})


async def last_active(
    database: Database, state: StateKeeper, releases: Releases, slot: SlotName
) -> Release:
    """Return the release that had the traffic last, or the worker directory at the first start.

    The state file decides: it is written with every switch, and is there without the database.
    Both then name the release that is about to run. Raises UnknownReleaseError, and StoreError if
    the database can't be read.
    """
    rows, named = await database.versions.all(), state.state.active_release
    last = named or (rows[0].release if rows else None)
    release = await anyio.to_thread.run_sync(releases.find, last.name if last else None)
    if not rows or rows[0].release != release:
        try:
            await database.versions.push(slot, release)
        except StoreError as error:  # it can serve without
            log.error("version_not_saved", slot=slot, release=release.label, why=str(error))
    await _name(release, state)
    return release


async def active_release(
    database: Database, state: StateKeeper, releases: Releases, slot: SlotName
) -> Release | None:
    """Return the release that had the traffic last; None if it is gone. Raises StoreError."""
    try:
        return await last_active(database, state, releases, slot)
    except UnknownReleaseError as error:
        log.critical("active_release_missing", slot=slot, why=str(error))
        return None


async def _name(release: Release, state: StateKeeper) -> None:
    """Name the release in the state file; it can serve without."""
    named = ActiveRelease(name=release.name, version=release.version)
    if state.state.active_release == named:
        return
    try:
        await state.change(active_release=named)
    except OSError as error:
        log.error("active_release_not_saved", release=release.label, why=str(error))
    else:
        await state.copy_to_database()
