"""What the daemon starts with: the state, and the release that had the traffic last.

The state file comes first. It is written with every switch, and is there without the database. Its
copy in the database and the settings stand in for a file that can't be used.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.deploy import Mode
from atlas_supervisor.model.release import Release, Version
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.state import ActiveRelease, DeployState
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper, UnreadableStateError
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.workers.releases import Releases, Start, UnknownReleaseError

log = structlog.get_logger(__name__)


async def read_state(settings: Settings, file: StateFile, database: Database) -> DeployState:
    """Return the state to begin with, from the file, else its copy, else the settings."""
    try:
        known = file.read()
    except UnreadableStateError as error:
        known = await _rebuilt(database, str(error), aside=_set_aside(file).name)
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


def _set_aside(file: StateFile) -> Path:
    try:
        return file.set_aside(now().strftime("%Y%m%dT%H%M%SZ"))
    except OSError as error:
        raise StartRefusedError(f"{file.path} can't be set aside: {error}") from error


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
    audited = await database.audit.last_outcome("mode")
    reason = "the daemon before was killed before it could audit the change"
    if mode is not state.mode:
        reason = "DEPLOY_MODE=single in the settings always wins"
    if mode is not state.mode or audited not in {None, mode.value}:
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


async def active_release(
    settings: Settings, database: Database, state: StateKeeper, releases: Releases, slot: SlotName
) -> Release:
    """Return the release to start: the one that had the traffic last, exactly as recorded.

    The version before it, if that is gone; `Releases.start` has the whole order. Raises StoreError.
    """
    rows, named = await database.versions.all(), state.state.active_release
    recorded = [row.release for row in rows]
    if named is not None:  # written with every switch, and there without the database
        recorded = [releases.active(named), *recorded]
    elif rows:
        recorded = [rows[0].release, *recorded]
    recorded = _until_irreversible(recorded, rows)
    # Without deploys, a start is the only way to a new content of the worker directory.
    is_followed = settings.deploy_mode is Mode.SINGLE and recorded and recorded[0].name is None
    if is_followed or not recorded:
        with suppress(UnknownReleaseError):
            release = await in_thread(releases.find, None)
            await _note(release, database, state, slot, rows)
            return release
    if not recorded:  # WORKER_DIRECTORY was removed a moment ago
        return Release(name=None, path=settings.worker_directory, version="unknown")
    start = await in_thread(releases.start, recorded)
    if start.why is None:
        await _note(start.release, database, state, slot, rows)
        return start.release
    log.critical("active_release_missing", slot=slot, why=start.why)
    if start.position > 0:
        await _fall_back(start, database, state, slot)
    return start.release


def _until_irreversible(recorded: list[Release], rows: list[Version]) -> list[Release]:
    """Leave out what ran before an irreversible version: nothing goes back past that by itself."""
    known = next((n for n, row in enumerate(rows, 1) if row.release.irreversible), len(rows))
    return recorded[: known + 1]


async def _fall_back(start: Start, database: Database, state: StateKeeper, slot: SlotName) -> None:
    """Record that a version before the active one has the traffic from now on."""
    release = start.release
    log.critical("version_before_started", slot=slot, release=release.label, why=start.why)
    await _save(database.versions.replace(start.position, slot, release), release)
    await _name(release, state)
    await database.audit.record(
        SUPERVISOR,
        "release",
        "fell_back",
        reason=start.why,
        release=release.name,
        version=release.version,
    )


async def _note(
    release: Release,
    database: Database,
    state: StateKeeper,
    slot: SlotName,
    rows: list[Version],
) -> None:
    """Record the release that is about to run, where it is not recorded yet."""
    last = rows[0].release if rows else None
    if last is None or not last.is_same(release):
        # A row of an earlier version names the same release and not its folder.
        is_named = last is not None and last.identity is None
        is_named = is_named and last is not None and last.label == release.label
        await _save(database.versions.replace(int(is_named), slot, release), release)
    await _name(release, state)


async def _save(change: Awaitable[None], release: Release) -> None:
    """Change the versions; the daemon can serve without."""
    try:
        await change
    except StoreError as error:
        log.error("version_not_saved", release=release.label, why=str(error))


async def _name(release: Release, state: StateKeeper) -> None:
    """Name the release in the state file; the daemon can serve without."""
    named = ActiveRelease(**release.record)
    if state.state.active_release == named:
        return
    try:
        await state.change(active_release=named)
    except OSError as error:
        log.error("active_release_not_saved", release=release.label, why=str(error))
    else:
        await state.copy_to_database()
