"""What the last daemon left unfinished, ended before this one begins.

The journal says what was intended, the state file what was done. Where they differ the file is
right, because a switch counts from the moment when the file is durable. Every deploy that was in
progress is brought to an end that its record explains, or goes on waiting. What the last
transition demanded is written if it was not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.effects import Effects, TransitionLog
from atlas_supervisor.deploy.initial_state import read_state
from atlas_supervisor.deploy.machine import (
    FLIPS,
    TABLE,
    Consequence,
    Event,
    Phase,
    Plan,
    demands_of,
    step,
)
from atlas_supervisor.deploy.recorder import AUDITED, demanded
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.deploy import DeployEvent, DeployRecord, Mode, Result
from atlas_supervisor.model.release import Release, Version, VersionChange
from atlas_supervisor.model.state import ActiveRelease, DeployState
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.deploys import UnfinishedDeploy
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from atlas_supervisor.system.clock import now
from atlas_supervisor.workers.releases import Releases, UnknownReleaseError
from atlas_worker.contract import STATE_FILE

log = structlog.get_logger(__name__)

_LATEST = 2
"""So many deploys can end in the same moment: one drains while the next one is in progress."""

_AFTER_SWITCH = frozenset({Phase.GUARD, Phase.WARM, Phase.DRAIN})


async def recover(
    settings: Settings, database: Database, written: Callable[[float, bool], None]
) -> tuple[StateKeeper, UnfinishedDeploy | None]:
    """Return the state after what the last daemon left unfinished, and the deploy that still waits.

    Raises StartRefusedError if the state file can't be written, and StoreError.
    """
    file = StateFile(settings.state_dir / STATE_FILE)
    state = await read_state(settings, file, database)
    state, waiting = await finish_interrupted(database, state, settings)
    keeper = StateKeeper(file, database.state, state, written)
    try:
        await keeper.change()
    except OSError as error:
        raise StartRefusedError(f"{file.path} can't be written: {error}") from error
    await keeper.copy_to_database()
    return keeper, waiting


async def finish_interrupted(
    database: Database, state: DeployState, settings: Settings
) -> tuple[DeployState, UnfinishedDeploy | None]:
    """End what was in progress; return the state that follows, and the deploy that still waits.

    Afterwards the newest of the database's versions is the one that has the traffic.
    """
    waiting: UnfinishedDeploy | None = None
    newest = {record.deploy_id for record in await database.deploys.latest(1)}
    for unfinished in await database.deploys.unfinished():
        record = unfinished.record
        latest = record.deploy_id in newest
        may_wait = latest and settings.deploy_mode is not Mode.SINGLE
        if record.phase == Phase.AWAITING_SWITCH and may_wait:
            waiting = unfinished
            continue
        state = await _write_demands(database, unfinished, state, settings)
        # Only the latest one's switch can be what the file tells of.
        await _end(database, unfinished, state if latest else None, settings)
    await _audit_results(database)
    await database.keys.forget_undone()
    return state, waiting


async def _write_demands(
    database: Database, unfinished: UnfinishedDeploy, state: DeployState, settings: Settings
) -> DeployState:
    """Write what the last transition demands, unless it is written; return the state then."""
    record, demands = unfinished.record, await _last_demands(database, unfinished)
    for demand in demanded(demands, settings.after_failure):
        if demand is not Consequence.SINGLE_MODE:
            await _audit_once(database, demand, record)
        elif not await database.audit.contains(record.deploy_id, "mode", Mode.SINGLE):
            # With that entry the mode fell back before, and may have been reset since.
            state = state.model_copy(update={"mode": Mode.SINGLE})
            subject, reason = record.deploy_id, record.reason
            await database.audit.write(
                SUPERVISOR, "mode", Mode.SINGLE.value, subject=subject, reason=reason
            )
    return state


async def _audit_results(database: Database) -> None:
    """Audit the results of the latest deploys, if a daemon was killed just before it did."""
    for record in await database.deploys.latest(_LATEST):
        result, subject = record.result, record.deploy_id
        if record.ended_ts is None or result is None:
            continue
        if not await database.audit.contains(subject, "deploy", result):
            await database.audit.write(
                SUPERVISOR, "deploy", result.value, subject=subject, reason=record.reason
            )


async def _audit_once(database: Database, demand: Consequence, record: DeployRecord) -> None:
    action, outcome = AUDITED[demand]
    if not await database.audit.contains(record.deploy_id, action, outcome):
        await database.audit.write(
            SUPERVISOR,
            action,
            outcome,
            subject=record.deploy_id,
            reason=record.reason,
            version=record.version,
        )


async def _last_demands(
    database: Database, unfinished: UnfinishedDeploy
) -> tuple[Consequence, ...]:
    """Return the demands of the last transition, in order."""
    record = unfinished.record
    plan = Plan(dry_run=record.dry_run, rollback=unfinished.rollback)
    last = await database.transitions.last(record.deploy_id)
    cause = await database.transitions.cause_of(record.deploy_id, Phase.REVERT)
    rows = (row for row in TABLE if (row.phase.value, row.event.value) == last)
    found = next((row for row in rows if plan.meets(row.when)), None)
    return demands_of(plan, found, Event(cause) if cause else None) if found else ()


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
        return Result.ABORTED, f"{cause}, and can't wait any longer"
    return step(plan, phase, Event.SUPERVISOR_STOPPED).result or unfinished.record.result, cause


async def _end(
    database: Database, unfinished: UnfinishedDeploy, state: DeployState | None, settings: Settings
) -> None:
    """End it; `state` is where its switch would show, None if a later one hides that."""
    record, phase = unfinished.record, Phase(unfinished.record.phase)
    # The record's ports are those from before the flip that was intended.
    turned = state is not None and state.active_port == record.staging_port
    result, cause = _outcome(unfinished, phase, turned=turned)
    changes: dict[str, Any] = {
        "result": result,
        "phase": Phase.ENDED.value,
        "reason": record.reason or cause,
        "ended_ts": now(),
    }
    versions = None
    if state is not None and turned and phase in FLIPS | _AFTER_SWITCH:
        changes |= {"active_port": state.active_port, "staging_port": state.staging_port}
        versions = await _version_change(database, unfinished, result, state, settings)
    log.warning("deploy_interrupted", **record.facts, phase=phase, result=result)
    ended = record.model_copy(update=changes)
    await database.deploys.write_transition(
        ended,
        _stopped(ended, phase, cause),
        versions=versions,
        state=state if versions else None,
    )
    if phase is Phase.REVERT or (turned and phase in _AFTER_SWITCH):
        done = Consequence.ROLLBACK_AUDITED if turned else Consequence.ROLLBACK_FAILURE_AUDITED
        await _audit_once(database, done, ended)
    outcome = result.value if result else "ended"
    subject = record.deploy_id
    await database.audit.write(SUPERVISOR, "deploy", outcome, subject=subject, reason=cause)


def _stopped(record: DeployRecord, source: Phase, cause: str) -> DeployEvent:
    """Return the event that the last daemon's end is for a deploy; `record` is the deploy after."""
    stopped = Event.SUPERVISOR_STOPPED
    return DeployEvent.of(record, ts=now(), source=source, event=stopped, cause=cause)


async def _version_change(
    database: Database,
    unfinished: UnfinishedDeploy,
    result: Result | None,
    state: DeployState,
    settings: Settings,
) -> VersionChange | None:
    """Return how the flip that the state file tells of changes the versions.

    Its transition is not written, so its version is not written either. An earlier supervisor
    wrote the version first, apart from the transition: then there may be nothing left to change.
    """
    record, switched = unfinished.record, result is Result.SWITCHED
    slot, serving = settings.slot_of_port(state.active_port), state.active_release
    if switched:
        serving = ActiveRelease(name=record.release, version=record.version or "unknown")
        if unfinished.release is not None:
            serving = ActiveRelease(**unfinished.release.record)
    rows = await database.versions.all()
    noted = bool(rows) and (serving is None or _is(rows[0].release, serving))
    if noted and (unfinished.rollback or rows[0].slot is slot):
        return None
    if switched is unfinished.rollback:
        return VersionChange(None) if len(rows) > 1 else None
    if serving is None:
        return None
    return VersionChange(Version(slot, Releases.of(settings).active(serving)))


def _is(release: Release, other: ActiveRelease) -> bool:
    return (release.name, release.version) == (other.name, other.version)


def _pinned(releases: Releases, waiting: UnfinishedDeploy) -> Release:
    """Return the release of a deploy that waits, with the version that its folder has now."""
    if waiting.release is None:
        return releases.find(waiting.record.release)
    found = releases.checked(releases.recorded(waiting.release))
    return found.model_copy(update={"recorded_version": None, "problem": None})  # gates follow


async def resumed(
    database: Database,
    waiting: UnfinishedDeploy,
    releases: Releases,
    *,
    effects: Effects,
    transitions: TransitionLog,
) -> DeployRun | None:
    """Return the waiting deploy, about to pass its gates once more; None: its release is gone."""
    plan = Plan(dry_run=False, auto_switch=False, rollback=waiting.rollback)
    record, release = waiting.record, None
    cause = "the supervisor was started again; the release passes the gates once more"
    row = step(plan, Phase.AWAITING_SWITCH, Event.SUPERVISOR_STOPPED)
    try:
        release = await anyio.to_thread.run_sync(_pinned, releases, waiting)
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
    stopped = _stopped(record, Phase.AWAITING_SWITCH, cause)
    await database.deploys.write_transition(record, stopped)
    if release is None:
        await database.audit.write(
            SUPERVISOR, "deploy", "failed", subject=record.deploy_id, reason=cause
        )
        return None
    return DeployRun(
        record, plan, release, effects=effects, transitions=transitions, phase=row.target
    )
