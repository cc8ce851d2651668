"""What the last daemon left behind, put in order before this one begins.

The journal says what was intended, the state file what was done; where they differ, the file is
right, because a switch counts from the moment when the file is durable. Every deploy that was
under way is brought to an end that its record explains, or goes on waiting.
"""

from __future__ import annotations

import structlog

from supervisor.clock import now
from supervisor.config import Settings
from supervisor.deploy.machine import TABLE, Effect, Event, Phase, Plan, step
from supervisor.errors import StartRefusedError
from supervisor.model.actor import SUPERVISOR
from supervisor.model.deploy import DeployRecord, Mode, Result
from supervisor.model.state import DeployState
from supervisor.store.database import Database, UnfinishedDeploy
from supervisor.store.state_file import StateFile, UnreadableStateError

log = structlog.get_logger(__name__)


async def read_state(settings: Settings, file: StateFile, database: Database) -> DeployState:
    """Return the state to begin with, from the file, else its copy, else the settings."""
    try:
        known = file.read()
    except UnreadableStateError as error:
        aside = file.set_aside(now().strftime("%Y%m%dT%H%M%SZ"))
        known = await database.last_state()
        source = "its copy in the database" if known else "the settings"
        log.error("state_file_unreadable", why=str(error), aside=aside.name, rebuilt_from=source)
        await database.audit(
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
    ports = {settings.active_port, settings.staging_port}
    active = state.active_port
    if active not in ports:
        log.warning("active_port_unknown", active_port=active, configured=sorted(ports))
        await database.audit(
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
    database: Database, state: DeployState
) -> tuple[DeployState, UnfinishedDeploy | None]:
    """End what was under way; return the state that follows, and the deploy that still waits."""
    waiting: UnfinishedDeploy | None = None
    for unfinished in await database.unfinished():
        phase = Phase(unfinished.record.phase)
        if phase is Phase.AWAITING_SWITCH:
            waiting = unfinished
            continue
        if Effect.FALL_BACK_TO_SINGLE in await _last_effects(database, unfinished.record):
            state = state.model_copy(update={"mode": Mode.SINGLE})
        await _end(database, unfinished, phase, state)
    return state, waiting


async def _last_effects(database: Database, record: DeployRecord) -> set[Effect]:
    """Return the effects of the last transition: they may not have been performed."""
    last = await database.last_transition(record.deploy_id)
    if last is None:
        return set()
    plan = Plan(dry_run=record.dry_run)
    return {
        effect
        for row in TABLE
        if (row.phase.value, row.event.value) == last and plan.meets(row.when)
        for effect in row.effects
    }


async def _end(
    database: Database, unfinished: UnfinishedDeploy, phase: Phase, state: DeployState
) -> None:
    record = unfinished.record
    plan = Plan(dry_run=record.dry_run, auto_switch=unfinished.auto_switch)
    cause = f"the supervisor ended during {phase.value}"
    # The record's ports are those from before the flip that was intended.
    flipped = phase in {Phase.SWITCH, Phase.REVERT} and state.active_port == record.staging_port
    if flipped:
        result: Result | None = step(plan, phase, Event.PASSED).result
        cause += ", after the switch was durable"
    else:
        result = step(plan, phase, Event.SUPERVISOR_STOPPED).result or record.result
    ended = record.model_copy(
        update={
            "result": result,
            "phase": Phase.ENDED.value,
            "reason": record.reason or cause,
            "ended_ts": now(),
            **(
                {"active_port": state.active_port, "staging_port": state.staging_port}
                if flipped
                else {}
            ),
        }
    )
    log.warning("deploy_interrupted", deploy_id=record.deploy_id, phase=phase, result=result)
    await database.write_transition(
        ended, source=phase, event=Event.SUPERVISOR_STOPPED, cause=cause, step=None
    )
    await database.audit(
        SUPERVISOR, "deploy", result.value if result else "ended", subject=record.deploy_id,
        reason=cause,
    )  # fmt: skip
