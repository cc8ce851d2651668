"""The moment in which a deploy begins: written down as a whole, or not begun."""

from __future__ import annotations

import secrets

import structlog

from supervisor.clock import now
from supervisor.deploy import refusals
from supervisor.deploy.events import Events
from supervisor.deploy.machine import FIRST_PHASE, Event, Phase, Plan
from supervisor.model.actor import SUPERVISOR, Actor
from supervisor.model.deploy import DeployRecord, Result
from supervisor.model.event import BEGUN, Announcement, DeployEvent
from supervisor.model.key import Key
from supervisor.model.release import Release
from supervisor.store.database import Database
from supervisor.store.state_keeper import StateKeeper
from supervisor.store.statements import StoreError

log = structlog.get_logger(__name__)


def new_record(release: Release, plan: Plan, ports: tuple[int, int]) -> DeployRecord:
    """Return the record of a deploy that is about to begin."""
    active_port, staging_port = ports
    return DeployRecord(
        deploy_id=f"{now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        result=None,
        dry_run=plan.dry_run,
        release=release.name,
        version=release.version,
        active_port=active_port,
        staging_port=staging_port,
        steps=[],
        reason=None,
        phase=FIRST_PHASE.value,
        started_ts=now(),
        ended_ts=None,
    )


async def write_down(
    database: Database,
    state: StateKeeper,
    record: DeployRecord,
    plan: Plan,
    *,
    actor: Actor,
    key: Key | None,
    events: Events,
) -> None:
    """Write a new deploy down wherever it shows. Raises RefusedError; then it has not begun."""
    action = "rollback" if plan.rollback else "dry_run" if plan.dry_run else "deploy"
    begun = False
    try:
        cause = f"{action.replace('_', ' ')} requested by {actor.name}"
        journal_id = await database.begin_deploy(
            record, auto_switch=plan.auto_switch, rollback=plan.rollback, key=key, cause=cause
        )
        event = DeployEvent.of(record, ts=record.started_ts, source=None, event=BEGUN, cause=cause)
        events.tell(Announcement(event, rollback=plan.rollback), journal_id)
        begun = True
        await database.audit(
            actor, action, "begun", subject=record.deploy_id, release=record.release
        )
        await state.change(last_deploy_ts=record.started_ts)
    except (StoreError, OSError) as error:
        what = "the deploy could not be written down, so it was not begun"
        if begun:
            await _end_unbegun(database, record, f"{what}: {error}", key, events)
        raise refusals.not_durable(what, error) from error


async def _end_unbegun(
    database: Database, record: DeployRecord, why: str, key: Key | None, events: Events
) -> None:
    """Say of a deploy that was half written down that it never began."""
    ended = record.model_copy(
        update={
            "phase": Phase.ENDED.value,
            "result": Result.FAILED,
            "reason": why,
            "ended_ts": now(),
        }
    )
    event = DeployEvent.of(ended, ts=now(), source=FIRST_PHASE, event=Event.FAILED, cause=why)
    announcement = Announcement(event)
    database.audit_soon(SUPERVISOR, "deploy", "failed", subject=record.deploy_id, reason=why)
    try:
        journal_id = await database.write_transition(
            ended, source=FIRST_PHASE, event=Event.FAILED, cause=why, step=None
        )
        events.tell(announcement, journal_id)
        if key is not None:
            await database.forget_key(key)
    except StoreError as error:  # the next daemon says that it was interrupted
        events.tell(announcement, None)
        log.error("deploy_not_ended", **record.facts, why=str(error))
