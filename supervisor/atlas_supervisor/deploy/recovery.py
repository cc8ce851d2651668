"""What the last daemon left unfinished: it is ended, or goes on with the workers that live.

The journal says what was intended, the state file what was done. Where they differ the file is
right, because a switch counts from the moment when the file is durable. What the last transition
demanded is written if it was not.

A deploy that was interrupted before its switch is ended: aborted. The latest one, if it waits for
its switch or was beyond it, goes on where it was, provided that its worker in staging was adopted;
that is known only when the ports are open (`resumed`). Without that worker a deploy that waits
passes its gates once more, and any other one is ended in a way that its record explains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.effects import Transition
from atlas_supervisor.deploy.initial_state import read_state
from atlas_supervisor.deploy.machine import (
    FLIPS,
    SHARES,
    TABLE,
    Consequence,
    Event,
    Phase,
    Plan,
    demands_of,
    step,
)
from atlas_supervisor.deploy.recorder import AUDITED, demanded
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.deploy import (
    Cause,
    DeployEvent,
    DeployRecord,
    Mode,
    Result,
    Step,
    StepName,
)
from atlas_supervisor.model.ramp import Ramp
from atlas_supervisor.model.release import Release, Version, VersionChange
from atlas_supervisor.model.state import ActiveRelease, DeployState
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.deploys import UnfinishedDeploy
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.workers.releases import Releases, UnknownReleaseError
from atlas_worker.contract import STATE_FILE

log = structlog.get_logger(__name__)

_LATEST = 2
"""So many deploys can end in the same moment: one drains while the next one is in progress."""

_AFTER_SWITCH = frozenset({Phase.GUARD, Phase.WARM, Phase.DRAIN})
SPLIT_PHASES = SHARES | {Phase.GUARD}
"""Phases in which both versions may have a part of the traffic."""

_GOING_ON = _AFTER_SWITCH | SHARES | {Phase.DRAIN_REVERTED}


def plan_of(unfinished: UnfinishedDeploy, *, auto_switch: bool | None = None) -> Plan:
    """Return the deploy as it was begun by an earlier daemon, as far as it is recorded."""
    record, release = unfinished.record, unfinished.release
    recycle = record.cause is Cause.RECYCLED
    return Plan(
        record.dry_run,
        unfinished.auto_switch if auto_switch is None else auto_switch,
        unfinished.rollback,
        recycle=recycle,
        irreversible=release is not None and release.irreversible and not recycle,
    )


async def recover(
    settings: Settings, database: Database, written: Callable[[float, bool], None]
) -> tuple[StateKeeper, UnfinishedDeploy | None]:
    """Return the state after what the last daemon left unfinished, and the deploy that may go on.

    Raises StartRefusedError if the state file can't be written, and StoreError.
    """
    file = StateFile(settings.state_dir / STATE_FILE)
    state = await read_state(settings, file, database)
    state, open_ended = await finish_interrupted(database, state, settings)
    if open_ended is None or open_ended.record.phase not in SPLIT_PHASES:
        state = state.model_copy(update={"staging_weight": 0.0})
    keeper = StateKeeper(file, database.state, state, written)
    try:
        await keeper.change()
    except OSError as error:
        raise StartRefusedError(f"{file.path} can't be written: {error}") from error
    await keeper.copy_to_database()
    return keeper, open_ended


async def finish_interrupted(
    database: Database, state: DeployState, settings: Settings
) -> tuple[DeployState, UnfinishedDeploy | None]:
    """End what was in progress; return the state that follows, and the deploy that may go on.

    Afterwards, and once that one was resumed, the newest of the database's versions is the one that
    has the traffic.
    """
    open_ended: UnfinishedDeploy | None = None
    newest = {record.deploy_id for record in await database.deploys.latest(1)}
    for unfinished in await database.deploys.unfinished():
        latest = unfinished.record.deploy_id in newest
        if latest:
            unfinished = _as_the_file_says(unfinished, state)  # noqa: PLW2901  # the same deploy
        state = await _write_demands(database, unfinished, state, settings)
        if latest and _may_go_on(unfinished, state, settings):
            open_ended = unfinished
            continue
        # Only the latest one's switch can be what the file tells of.
        await _end(database, unfinished, state if latest else None, settings)
    await _audit_results(database)
    await database.keys.forget_undone()  # of a flip that goes on it is not known yet
    return state, open_ended


def _as_the_file_says(unfinished: UnfinishedDeploy, state: DeployState) -> UnfinishedDeploy:
    """Return a deploy whose switch failed as one in its switch, if the file has it all the same.

    A failing disk may take the file, then refuse to make it durable and to take it back.
    """
    record = unfinished.record
    if record.phase != Phase.AWAITING_SWITCH or not _turned(record, state):
        return unfinished
    return unfinished._replace(record=record.model_copy(update={"phase": Phase.SWITCH.value}))


def _may_go_on(unfinished: UnfinishedDeploy, state: DeployState, settings: Settings) -> bool:
    phase, turned = Phase(unfinished.record.phase), _turned(unfinished.record, state)
    if phase in SHARES and settings.deploy_mode is Mode.SINGLE:
        return False
    if phase in FLIPS:
        return turned or phase is Phase.REVERT
    return phase in _GOING_ON and not (turned and phase in _AFTER_SWITCH)


def _turned(record: DeployRecord, state: DeployState) -> bool:
    """Return whether the ports are the other way round than before the flip that was intended."""
    return state.active_port == record.staging_port


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
        if result is not None and not await database.audit.contains(subject, "deploy", result):
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
    plan = plan_of(unfinished)
    last = await database.transitions.last(record.deploy_id)
    cause = await database.transitions.cause_of(record.deploy_id, Phase.REVERT)
    rows = (row for row in TABLE if (row.phase.value, row.event.value) == last)
    found = next((row for row in rows if plan.meets(row.when)), None)
    return demands_of(plan, found, Event(cause) if cause else None) if found else ()


def _outcome(
    unfinished: UnfinishedDeploy, phase: Phase, *, turned: bool
) -> tuple[Result | None, str]:
    """Return the result, and why; `turned`: the ports are now the other way round."""
    plan = plan_of(unfinished)
    cause = f"the supervisor ended during {phase.value}"
    if turned and phase in FLIPS:
        return step(plan, phase, Event.PASSED).result, f"{cause}, after the switch was durable"
    if turned and phase in _AFTER_SWITCH:  # a revert whose own transition could not be written
        return Result.ROLLED_BACK, f"{cause}, after the switch back was durable"
    if phase is Phase.AWAITING_SWITCH:
        return Result.ABORTED, f"{cause}, and can't wait any longer"
    return step(plan, phase, Event.SUPERVISOR_STOPPED).result or unfinished.record.result, cause


async def _end(
    database: Database,
    unfinished: UnfinishedDeploy,
    state: DeployState | None,
    settings: Settings,
    target: Phase = Phase.ENDED,
) -> DeployRecord:
    """End it, or lead it to the phase after its flip; return the record then.

    `state` is where its switch would show, None if a later one hides that.
    """
    record, phase = unfinished.record, Phase(unfinished.record.phase)
    turned = state is not None and _turned(record, state)
    result, cause = _outcome(unfinished, phase, turned=turned)
    changes: dict[str, Any] = {
        "result": result,
        "phase": target.value,
        "reason": record.reason or cause,
        "ended_ts": now() if target is Phase.ENDED else None,
        "ramp": _ended_ramp(record),
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
    return ended


def _ended_ramp(record: DeployRecord) -> Ramp | None:
    """Return the ramp of a deploy whose phase ends."""
    in_it = record.ramp is not None and record.phase == Phase.RAMP
    return record.ramp.ended(now()) if record.ramp and in_it else record.ramp


def lost_in_ramp(record: DeployRecord) -> tuple[Transition, Transition]:
    """Return the end of a ramp whose new version did not survive the last daemon.

    It is reverted as at a crash; there is nothing left of it that would have to be ended.
    """
    row = step(Plan(), Phase.RAMP, Event.STAGING_DIED)
    cause = "the new version's worker did not survive the end of the last supervisor"
    failed = Step(name=StepName.SWITCH, ok=False, duration_ms=0, detail={"message": cause})
    reverted = record.model_copy(
        update={
            "phase": row.target.value,
            "result": row.result,
            "reason": f"{Phase.RAMP.value}: {cause}",
            "steps": [*record.steps, failed],
            "ramp": _ended_ramp(record),
        }
    )
    died = DeployEvent.of(
        reverted, ts=now(), source=Phase.RAMP, event=row.event, cause=cause, step=failed
    )
    ended = reverted.model_copy(update={"phase": Phase.ENDED.value, "ended_ts": now()})
    gone = DeployEvent.of(
        ended, ts=now(), source=row.target, event=Event.PASSED, cause="nothing is left of it"
    )
    first = Transition(reverted, died, row.demands, has_new_result=True)
    return first, Transition(ended, gone)


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
    if record.cause is Cause.RECYCLED:
        return VersionChange(rows[0]._replace(slot=slot) if rows else None, moved=True)
    noted = bool(rows) and (serving is None or _is(rows[0].release, serving))
    if noted and (unfinished.rollback or rows[0].slot is slot):
        return None
    if not (switched or unfinished.rollback):
        back = VersionChange(back=True, complaint=record.reason or "it was reverted")
        return back if len(rows) > 1 else None
    if serving is None:
        return None
    release = Releases.of(settings).active(serving)
    if switched and unfinished.release is not None:
        release = unfinished.release
    complaint = f"deploy {record.deploy_id} went back from it" if unfinished.rollback else None
    back_to = switched and unfinished.rollback
    return VersionChange(Version(slot, release), back_to, complaint)


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
    unfinished: UnfinishedDeploy,
    releases: Releases,
    state: DeployState,
    settings: Settings,
    *,
    lives: Release | None,
) -> tuple[DeployRecord, Release | None]:
    """Return the deploy as it goes on, or as it has ended, and its release if it goes on.

    `lives` is the release of its worker in staging, if that was adopted.
    """
    record, phase = unfinished.record, Phase(unfinished.record.phase)
    if lives is None:
        if phase is Phase.RAMP:
            return record, None
        if phase is not Phase.AWAITING_SWITCH:
            ended = await _end(database, unfinished, state, settings)
            await database.keys.forget_undone()
            return ended, None
        return await _once_more(database, unfinished, releases)
    if phase in FLIPS and _turned(record, state):
        target = step(plan_of(unfinished), phase, Event.PASSED).target
        record = await _end(database, unfinished, state, settings, target)
    else:
        cause = "the supervisor was started again, and goes on with the workers that live"
        subject = record.deploy_id
        await database.audit.write(
            SUPERVISOR, "deploy", "resumed", subject=subject, reason=cause, phase=phase
        )
    return record, unfinished.release or lives


async def _once_more(
    database: Database, waiting: UnfinishedDeploy, releases: Releases
) -> tuple[DeployRecord, Release | None]:
    """Lead a deploy that waited to its gates once more; it fails if its release is gone."""
    plan = plan_of(waiting, auto_switch=False)
    record, release = waiting.record, None
    cause = "the supervisor was started again; the release passes the gates once more"
    row = step(plan, Phase.AWAITING_SWITCH, Event.SUPERVISOR_STOPPED)
    try:
        release = await in_thread(_pinned, releases, waiting)
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
    return record, release
