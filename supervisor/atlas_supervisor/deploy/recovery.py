"""What the last daemon left behind, put in order before this one begins.

The journal says what was intended, the state file what was done; where they differ, the file is
right, because a switch counts from the moment when the file is durable. Every deploy that was
under way is brought to an end that its record explains, or goes on waiting.

Which release to start when the daemon starts: the one that had the traffic last.
"""

from __future__ import annotations

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.effects import Effects
from atlas_supervisor.deploy.machine import FLIPS, TABLE, Consequence, Event, Phase, Plan, step
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.deploy import DeployRecord, Mode, Result
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.state import ActiveRelease, DeployState
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.deploys import UnfinishedDeploy
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper, UnreadableStateError
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import now
from atlas_supervisor.workers.releases import Releases, UnknownReleaseError

log = structlog.get_logger(__name__)

_AFTER_SWITCH = frozenset({Phase.GUARD, Phase.WARM})
_AUDITED = (
    (Consequence.ROLLBACK_AUDITED, "rollback", "done"),
    (Consequence.SWITCH_FAILURE_AUDITED, "switch", "failed"),
)


async def read_state(settings: Settings, file: StateFile, database: Database) -> DeployState:
    """Return the state to begin with, from the file, else its copy, else the settings."""
    try:
        known = file.read()
    except UnreadableStateError as error:
        aside = file.set_aside(now().strftime("%Y%m%dT%H%M%SZ"))
        known = await database.state.load()
        source = "its copy in the database" if known else "the settings"
        log.error("state_file_unreadable", why=str(error), aside=aside.name, rebuilt_from=source)
        await database.audit.write(
            SUPERVISOR, "state_file", "rebuilt", reason=str(error), aside=aside.name, source=source
        )
    except OSError as error:
        raise StartRefusedError(f"{file.path} can't be read: {error}") from error
    if known is None:
        return DeployState(
            mode=settings.deploy_mode,
            active_port=settings.active_port,
            staging_port=settings.staging_port,
        )
    return await _fitted(known, settings, database)


async def _fitted(state: DeployState, settings: Settings, database: Database) -> DeployState:
    """Return the state with what the settings have the last word on."""
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


async def finish_interrupted(
    database: Database, state: DeployState, settings: Settings
) -> tuple[DeployState, UnfinishedDeploy | None]:
    """End what was under way; return the state that follows, and the deploy that still waits.

    Afterwards the first of the database's versions is the one that has the traffic.
    """
    waiting: UnfinishedDeploy | None = None
    newest = {record.deploy_id for record in await database.deploys.latest(1)}
    for unfinished in await database.deploys.unfinished():
        record, phase = unfinished.record, Phase(unfinished.record.phase)
        latest = record.deploy_id in newest
        may_wait = latest and settings.deploy_mode is not Mode.SINGLE
        if phase is Phase.AWAITING_SWITCH and may_wait:
            waiting = unfinished
            continue
        demands = await _last_demands(database, record)
        await _make_up_for_audit(database, record, demands)
        if Consequence.SINGLE_MODE in demands and state.mode is not Mode.SINGLE:
            state = state.model_copy(update={"mode": Mode.SINGLE})
            await database.audit.write(SUPERVISOR, "mode", "single", reason=record.reason)
        # Only the latest one's switch can be what the file tells of.
        ended = await _end(database, unfinished, phase, state if latest else None)
        if latest and unfinished.rollback:
            await _mend_versions_of_rollback(database, ended, state, settings)
        elif latest:
            await _mend_versions(database, ended, state, settings)
    await database.keys.forget_undone()
    return state, waiting


async def _mend_versions(
    database: Database, record: DeployRecord, state: DeployState, settings: Settings
) -> None:
    """Make up for a switch, or for its revert, that was durable before its version was noted."""
    rows = await database.versions.all()
    active = _active_slot(state, settings)
    is_first = bool(rows) and _is(rows[0].release, record.release, record.version)
    in_active = bool(rows) and rows[0].slot is active
    if record.result is Result.SWITCHED and not (is_first and in_active):
        release = _release(record.release, record.version, settings)
        await database.versions.push(active, release, state)
    elif record.result is not Result.SWITCHED and is_first and not in_active and len(rows) > 1:
        await database.versions.pop(state)
    else:
        return
    await _tell_mended(database, record)


async def _tell_mended(database: Database, record: DeployRecord) -> None:
    log.warning("versions_mended", **record.facts, result=record.result)
    await database.audit.write(
        SUPERVISOR, "versions", "mended", subject=record.deploy_id, result=record.result
    )


async def _mend_versions_of_rollback(
    database: Database, record: DeployRecord, state: DeployState, settings: Settings
) -> None:
    """Do the same for a deploy of the version before, which takes one away and does not add one.

    Reverted, what it had taken away has the traffic again; the state file tells what that was.
    """
    rows, known = await database.versions.all(), state.active_release
    brought_back = bool(rows) and _is(rows[0].release, record.release, record.version)
    if record.result is Result.SWITCHED and not brought_back and len(rows) > 1:
        await database.versions.pop(state)
    elif record.result is Result.ROLLED_BACK and brought_back and known is not None:
        release = _release(known.name, known.version, settings)
        await database.versions.push(_active_slot(state, settings), release, state)
    else:
        return
    await _tell_mended(database, record)


def _active_slot(state: DeployState, settings: Settings) -> SlotName:
    blue = state.active_port == settings.active_port
    return SlotName.BLUE if blue else SlotName.GREEN


def _is(release: Release, name: str | None, version: str | None) -> bool:
    return (release.name, release.version) == (name, version)


def _release(name: str | None, version: str | None, settings: Settings) -> Release:
    """Return what was deployed; its folder may be gone by now."""
    path = settings.worker_directory
    if name is not None and settings.releases_dir is not None:
        path = settings.releases_dir / name
    return Release(name=name, path=path, version=version or "unknown")


async def _last_demands(database: Database, record: DeployRecord) -> set[Consequence]:
    """Return what the last transition demands: it may not have been written."""
    last = await database.transitions.last(record.deploy_id)
    if last is None:
        return set()
    plan = Plan(dry_run=record.dry_run)
    return {
        demand
        for row in TABLE
        if (row.phase.value, row.event.value) == last and plan.meets(row.when)
        for demand in row.demands
    }


async def _make_up_for_audit(
    database: Database, record: DeployRecord, demands: set[Consequence]
) -> None:
    """Write those entries of the last transition that the last daemon did not get to."""
    for demand, action, outcome in _AUDITED:
        if demand in demands and not await database.audit.contains(
            record.deploy_id, action, outcome
        ):
            await database.audit.write(
                SUPERVISOR,
                action,
                outcome,
                subject=record.deploy_id,
                reason=record.reason,
                version=record.version,
            )


def _outcome(
    unfinished: UnfinishedDeploy, phase: Phase, *, turned: bool
) -> tuple[Result | None, str]:
    """Return the result, and why; `turned`: the ports are now the other way round."""
    plan = Plan(dry_run=unfinished.record.dry_run, auto_switch=unfinished.auto_switch)
    cause = f"the supervisor ended during {phase.value}"
    if turned and phase in FLIPS:
        return step(plan, phase, Event.PASSED).result, f"{cause}, after the switch was durable"
    if turned and phase in _AFTER_SWITCH:  # a revert whose own transition could not be written
        return Result.ROLLED_BACK, f"{cause}, after the switch back was durable"
    if phase is Phase.AWAITING_SWITCH:
        return Result.ABORTED, f"{cause}, and can't go on waiting"
    return step(plan, phase, Event.SUPERVISOR_STOPPED).result or unfinished.record.result, cause


async def _end(
    database: Database, unfinished: UnfinishedDeploy, phase: Phase, state: DeployState | None
) -> DeployRecord:
    """End it; `state` is where its switch would show, None if a later one hides that."""
    record = unfinished.record
    # The record's ports are those from before the flip that was intended.
    turned = state is not None and state.active_port == record.staging_port
    result, cause = _outcome(unfinished, phase, turned=turned)
    ports: dict[str, int] = {}
    if state is not None and turned and phase in FLIPS | _AFTER_SWITCH:
        ports = {"active_port": state.active_port, "staging_port": state.staging_port}
    ended = record.model_copy(
        update={
            "result": result,
            "phase": Phase.ENDED.value,
            "reason": record.reason or cause,
            "ended_ts": now(),
            **ports,
        }
    )
    log.warning("deploy_interrupted", **record.facts, phase=phase, result=result)
    await database.deploys.write_transition(
        ended, source=phase, event=Event.SUPERVISOR_STOPPED, cause=cause, step=None
    )
    await database.audit.write(
        SUPERVISOR, "deploy", result.value if result else "ended", subject=record.deploy_id,
        reason=cause,
    )  # fmt: skip
    return ended


async def resumed(
    database: Database, waiting: UnfinishedDeploy, releases: Releases, world: Effects
) -> DeployRun | None:
    """Return the waiting deploy, about to pass its gates once more; None: its release is gone."""
    plan = Plan(dry_run=False, auto_switch=False, rollback=waiting.rollback)
    record, release = waiting.record, None
    cause = "the supervisor was started again; the release passes the gates once more"
    row = step(plan, Phase.AWAITING_SWITCH, Event.SUPERVISOR_STOPPED)
    try:
        release = await anyio.to_thread.run_sync(releases.find, record.release)
    except UnknownReleaseError as error:
        row = step(plan, Phase.PREFLIGHT, Event.FAILED)
        cause = str(error)
    record = record.model_copy(
        update={
            "phase": row.target.value,
            "result": row.result,
            "reason": None if release else cause,
            "ended_ts": None if release else now(),
            "version": release.version if release else record.version,
        }
    )
    await database.deploys.write_transition(
        record,
        source=Phase.AWAITING_SWITCH,
        event=Event.SUPERVISOR_STOPPED,
        cause=cause,
        step=None,
    )
    if release is None:
        await database.audit.write(
            SUPERVISOR, "deploy", "failed", subject=record.deploy_id, reason=cause
        )
        return None
    return DeployRun(record, plan, release, world, row.target)


async def last_active(
    database: Database, state: StateKeeper, releases: Releases, slot: SlotName
) -> Release:
    """Return what had the traffic last, or the worker directory at the first start.

    The state file's word counts: it is written with the port, and lives without the database.
    Both are told what is about to run. Raises UnknownReleaseError, and StoreError if nothing
    can be read.
    """
    rows, named = await database.versions.all(), state.state.active_release
    last = named or (rows[0].release if rows else None)
    release = await anyio.to_thread.run_sync(releases.find, last.name if last else None)
    if not rows or rows[0].release != release:
        try:
            await database.versions.push(slot, release)
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
