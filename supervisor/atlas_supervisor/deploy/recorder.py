"""The deploys: those that have not ended, in memory; and what happens to all of them, on disk.

`Recorder` writes it to the journal, to the audit trail and to the state file; `Runs` knows them.

A deploy starts as a whole or not at all: the request is refused if it can't be written. Later
events can't be refused; they go through the outbox (`store.outbox`), which keeps their order and
retries. A transition is written in this order: itself, in one transaction with its step and its
versions; then its event is published; then what its row demands; then the audit of a new result.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from functools import partial

import structlog

from atlas_supervisor.deploy import errors
from atlas_supervisor.deploy.effects import Transition
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.machine import FIRST_PHASE, TARGETS, Consequence, Event, Phase, Plan
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.deploy import (
    BEGUN,
    AfterFailure,
    Cause,
    DeployEvent,
    DeployRecord,
    Mode,
    PublishedEvent,
    Result,
)
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.release import Release
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.outbox import PendingWrite
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.failpoints import seam

log = structlog.get_logger(__name__)

AUDITED = {
    Consequence.ROLLBACK_UNNEEDED_AUDITED: ("rollback", "not_needed"),
    Consequence.ROLLBACK_AUDITED: ("rollback", "done"),
    Consequence.ROLLBACK_FAILURE_AUDITED: ("rollback", "failed"),
    Consequence.SWITCH_FAILURE_AUDITED: ("switch", "failed"),
    Consequence.HELD: ("rollback", "held"),
}
"""Action and outcome of the entries that a row may demand."""


def demanded(
    demands: tuple[Consequence, ...], after_failure: AfterFailure
) -> Iterator[Consequence]:
    """Yield the demands that the settings leave."""
    for demand in demands:
        if demand is not Consequence.SINGLE_MODE or after_failure is AfterFailure.SINGLE:
            yield demand


def new_record(
    release: Release, plan: Plan, ports: tuple[int, int], *, actor: Actor, why: str | None = None
) -> DeployRecord:
    """Return the record of a deploy that is about to start; `why` is the reason of a recycle."""
    requested = f"{_action(plan).replace('_', ' ')} requested by {actor.name}"
    if plan.remark:
        requested += f", {plan.remark}"
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
        requested=f"recycled: {why}" if plan.recycle else requested,
        cause=Cause.RECYCLED if plan.recycle else Cause.REQUESTED,
    )


def _action(plan: Plan) -> str:
    """Return the audited action of a deploy's start."""
    if plan.recycle:
        return "recycle"
    return "rollback" if plan.rollback else "dry_run" if plan.dry_run else "deploy"


class Recorder:
    """The one writer of deploys; it satisfies `effects.TransitionLog`."""

    def __init__(
        self,
        database: Database,
        state: StateKeeper,
        events: EventHub,
        after_failure: AfterFailure = AfterFailure.SINGLE,
    ) -> None:
        self._database = database
        self._state = state
        self._events = events
        self._after_failure = after_failure
        self._fallback: PendingWrite | None = None
        """The audit entry of the last fallback to `single`, which is written after it."""

    async def begin(
        self,
        record: DeployRecord,
        plan: Plan,
        *,
        actor: Actor,
        key: IdempotencyKey | None,
        release: Release | None = None,
        why: str | None = None,
    ) -> None:
        """Write a new deploy to all three. Raises RefusedError; then it has not started.

        `why` is the reason of a recycle, in words.
        """
        cause, more = record.requested or "", {}
        if plan.rollback:
            more = {"fast": plan.fast, "remark": plan.remark}
        if why is not None:
            more = {"reason": why}
        event = DeployEvent.of(record, ts=record.started_ts, source=None, event=BEGUN, cause=cause)
        is_written = False
        try:
            await self._database.outbox.flush()
            journal_id = await self._database.deploys.begin(
                record,
                auto_switch=plan.auto_switch,
                rollback=plan.rollback,
                release=release,
                key=key,
            )
            self._events.publish(PublishedEvent(event, rollback=plan.rollback), journal_id)
            is_written = True
            await self._database.audit.write(
                actor,
                _action(plan),
                "begun",
                subject=record.deploy_id,
                release=record.release,
                **more,
            )
            held_back = self._state.state.staging_weight  # of the deploy whose guard this one ends
            await self._state.change(last_deploy_ts=record.started_ts, staging_weight=0.0)
            if held_back:
                await self._state.copy_to_database()
        except (StoreError, OSError) as error:
            what = "the deploy could not be saved, so it was not started"
            if is_written:
                await self._end_unstarted(record, f"{what}: {error}", key)
            raise errors.not_durable(what, error) from error

    async def _end_unstarted(
        self, record: DeployRecord, why: str, key: IdempotencyKey | None
    ) -> None:
        """End a deploy that was written in part, and let its key be used again."""
        failed = {"phase": Phase.ENDED.value, "result": Result.FAILED, "reason": why}
        ended = record.model_copy(update={**failed, "ended_ts": now()})
        event = DeployEvent.of(ended, ts=now(), source=FIRST_PHASE, event=Event.FAILED, cause=why)
        await self.write(Transition(ended, event, has_new_result=True))
        if key is not None:
            self._database.outbox.put(partial(self._database.keys.forget, key))
        await self._database.outbox.attempt()

    @seam("transition-to", TARGETS, lambda _, transition: transition.record.phase)
    async def write(self, transition: Transition) -> PendingWrite:
        """Write a transition, and what it demands, after everything that is pending.

        Return at the first failure, too: it is then published all the same and tried again.
        """
        record = transition.record
        pending = self._database.deploys.enqueue_transition(
            record,
            PublishedEvent(transition.event),
            transition.versions,
            state=lambda: self._state.state,
            publish=self._events.publish,
        )
        reason = record.reason or transition.event.cause
        for demand in demanded(transition.demands, self._after_failure):
            pending = self._demand(demand, record, reason)
        if transition.has_new_result:  # no caller waits for this entry
            self._audit("deploy", str(record.result), record, record.reason)
        await self._database.outbox.attempt(pending)
        return pending

    def _demand(self, demand: Consequence, record: DeployRecord, reason: str) -> PendingWrite:
        """Put what a row demands into the outbox; return its last entry."""
        if demand is Consequence.HELD:
            log.error("revert_held", **record.facts, why=reason)
        if demand is not Consequence.SINGLE_MODE:
            return self._audit(*AUDITED[demand], record, reason)
        self._database.outbox.put(partial(self._fall_back_to_single, reason))
        self._fallback = self._database.audit.enqueue(
            SUPERVISOR, "mode", Mode.SINGLE.value, subject=record.deploy_id, reason=reason
        )
        return self._fallback

    def _audit(
        self, action: str, outcome: str, record: DeployRecord, reason: str | None
    ) -> PendingWrite:
        return self._database.audit.enqueue(
            SUPERVISOR,
            action,
            outcome,
            subject=record.deploy_id,
            reason=reason,
            version=record.version,
        )

    async def finish_fallback(self) -> None:
        """Write a fallback that is pending: it must not undo a later request. Raises StoreError."""
        if self._fallback is not None:
            await self._database.outbox.flush(self._fallback)

    async def _fall_back_to_single(self, reason: str) -> None:
        """Disable deploys until an operator enables them again."""
        log.warning("mode_fallback", why=reason)
        await self._state.change(mode=Mode.SINGLE)
        await self._state.copy_to_database()


class Runs:
    """Deploys that have not ended; at most one of them is in progress."""

    def __init__(self) -> None:
        self._runs: dict[str, DeployRun] = {}
        self._latest: DeployRecord | None = None
        self._requested: DeployRecord | None = None
        self._answered: DeployRecord | None = None
        self.stopping = False
        """Whether the daemon stops, so that nothing new may begin."""

    def __iter__(self) -> Iterator[DeployRun]:
        """Yield the runs that there are now, oldest first."""
        yield from list(self._runs.values())

    def get(self, deploy_id: str) -> DeployRun | None:
        """Return the run of a deploy; None if it has ended."""
        return self._runs.get(deploy_id)

    @property
    def current(self) -> DeployRun | None:
        """The deploy in progress, if any."""
        return next((run for run in self if run.in_progress), None)

    @property
    def latest(self) -> DeployRecord | None:
        """The latest deploy as it is now, whether it has ended or not."""
        return self.fresh(self._latest) if self._latest else None

    @property
    def requested(self) -> DeployRecord | None:
        """The latest deploy that is no recycle, as it is now."""
        return self.fresh(self._requested) if self._requested else None

    @property
    def answered(self) -> DeployRecord | None:
        """The latest deploy that has a result and is neither a recycle nor a dry run."""
        requested = self.requested
        if requested is not None and requested.result is not None and not requested.dry_run:
            return requested
        return self.fresh(self._answered) if self._answered else None

    def show(
        self,
        record: DeployRecord | None,
        *,
        requested: DeployRecord | None,
        answered: DeployRecord | None = None,
    ) -> None:
        """Let these be the latest deploys until there are others."""
        self._latest, self._requested, self._answered = record, requested, answered

    async def make_way(self, cause: str) -> None:
        """Abort a recycle that is in progress, for something that was asked for.

        It goes on if its switch comes first; either way it is in the way no longer.
        """
        while (run := self.current) is not None and run.plan.recycle:
            await run.give_way(cause)

    def fresh(self, record: DeployRecord) -> DeployRecord:
        """Return the record as it is now, even if that could not be written yet."""
        run = self._runs.get(record.deploy_id)
        return run.record if run else record

    def add(self, run: DeployRun) -> None:
        """Note a deploy that begins."""
        self._answered = self.answered
        self._runs[run.record.deploy_id] = run
        self._latest = run.record
        if not run.plan.recycle:
            self._requested = run.record

    def remove(self, run: DeployRun) -> None:
        """Forget a deploy that has ended and is written."""
        self._latest, self._requested, self._answered = self.latest, self.requested, self.answered
        del self._runs[run.record.deploy_id]
