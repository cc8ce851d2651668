"""Runs one deploy through the table: writes each transition down, then performs its effects.

Every phase has one activity. It ends with a finding, which is an event; or another event comes
from outside (an abort, a death, the next deploy) and the activity is cancelled. What follows is
the table's decision alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import anyio
import structlog

from atlas_supervisor.deploy.effects import ActiveDeploy, Effects, StepOutcome
from atlas_supervisor.deploy.machine import (
    FLIPS,
    IN_PROGRESS,
    STEP_OF,
    Consequence,
    Event,
    Phase,
    Plan,
    Row,
    explains,
    possible,
    step,
    succeeded,
)
from atlas_supervisor.errors import AtlasError
from atlas_supervisor.model.deploy import DeployRecord, Result
from atlas_supervisor.model.event import DeployEvent, PublishedEvent
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.step import Step, StepDetail
from atlas_supervisor.system.clock import Stopwatch, now

log = structlog.get_logger(__name__)

_UNSETTLED = FLIPS | {Phase.UNSTAGE}
"""Phases that end in an answer by themselves and soon."""

_PORTS_CHANGE = FLIPS | {Phase.PREFLIGHT}
"""Phases after which the ports may be others; during preflight the deploy before may revert."""

_WRITE_AGAIN_SECONDS = 1.0


class DeployRun:
    """One deploy, from its first transition to its last."""

    def __init__(
        self, record: DeployRecord, plan: Plan, release: Release, world: Effects, phase: Phase
    ) -> None:
        self.record = record
        self.plan = plan
        self.release = release
        self.phase = phase
        self.settled = anyio.Event()
        """Set while there is an answer for whoever asked last."""
        self.ended = anyio.Event()
        self.switch_failure: str | None = None
        """Why the last switch could not be done; None if it was, or there was none."""
        self._world = world
        self._news: StepOutcome | None = None
        self._news_came = anyio.Event()
        self._changed = anyio.Event()
        self._left_slot = False
        """Whether only an instance that lingers is left of it."""
        self._noted = StepDetail()
        """What the step records should its activity be interrupted."""
        self._owed: list[Callable[[], Awaitable[None]]] = []
        """What is to be written yet, in order: so the journal never says more than was done."""
        self._unwritten: list[PublishedEvent] = []
        """The transitions among them."""

    @property
    def in_progress(self) -> bool:
        """Whether it holds the place, or is about to, so that no other deploy may begin."""
        if self._news is None:
            return self.phase in IN_PROGRESS
        following = step(self.plan, self.phase, self._news.event).target
        return self.phase in IN_PROGRESS or following in IN_PROGRESS

    @property
    def whereabouts(self) -> str:
        """Its phase, and what is about to lead out of it."""
        return (
            f"{self.phase}, and {self._news.event} came first" if self._news else self.phase.value
        )

    @property
    def waits(self) -> bool:
        """Whether it waits for the operator, who has not said anything yet."""
        return self.phase is Phase.AWAITING_SWITCH and self._news is None

    def accepts(self, event: Event) -> bool:
        """Tell whether the event has a row in this phase, and no other is being handled.

        What is being done already is taken once more: both who asked for it get the answer.
        """
        return self._does(event) or (self._news is None and self._possible(event))

    def _does(self, event: Event) -> bool:
        """Tell whether a switch, or to be given up, is what it was told and has not settled yet."""
        if event is Event.SWITCH_REQUESTED:
            doing = self.phase is Phase.SWITCH
        elif event is Event.ABORT_REQUESTED:
            doing = self.phase is Phase.UNSTAGE and self.record.result is Result.ABORTED
        else:
            return False
        return doing or (self._news is not None and self._news.event is event)

    def _possible(self, event: Event) -> bool:
        if event is Event.SUPERVISOR_STOPPED and self.phase is Phase.AWAITING_SWITCH:
            return False  # it goes on waiting; the next daemon takes that row
        return possible(self.plan, self.phase, event)

    def offer(self, event: Event, cause: str, detail: StepDetail | None = None) -> bool:
        """Let something happen to the deploy; return whether it was accepted.

        `detail` goes into the step that ends by it, if one does.
        """
        if self._does(event):
            return True
        if not self.accepts(event):
            return False
        self._news = StepOutcome(event, cause, detail or StepDetail())
        if self.settled.is_set():
            self.settled = anyio.Event()  # a caller from now on waits for what follows
        self.switch_failure = None
        self._news_came.set()
        return True

    def note(self, detail: StepDetail) -> None:
        """Note what the step is to record should its activity be interrupted."""
        self._noted = detail

    async def finish(self, event: Event, cause: str) -> None:
        """Let the event end it as soon as it can be taken; return once it has ended, or waits."""
        while not (self.ended.is_set() or self.waits):
            changed = self._changed  # from here on: a change must not go unseen
            self.offer(event, cause)
            await changed.wait()

    async def make_way(self, event: Event, cause: str) -> None:
        """Let the event bring it to its drain; return once it needs the staging slot no more."""
        while not (self.ended.is_set() or self._left_slot):
            changed = self._changed  # as above
            self.offer(event, cause)
            await changed.wait()

    def leave_slot(self) -> None:
        """Note that the deploy needs the staging slot no more."""
        self._left_slot = True
        self._tell_change()

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def drive(self) -> None:
        """Run the activity of each phase until the deploy has ended and is written."""
        while self.phase is not Phase.ENDED:
            watch = Stopwatch()
            await self._advance(await self._outcome(), watch.milliseconds)
        while not await self._write_owed():  # noqa: ASYNC110  # a disk tells nobody that it is well
            await anyio.sleep(_WRITE_AGAIN_SECONDS)

    async def _outcome(self) -> StepOutcome:
        """Return what ended the phase: its activity, or news from outside."""
        outcomes: list[StepOutcome] = []
        self._noted = StepDetail()

        async def run() -> None:
            outcomes.append(await self._guarded())
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            if self.phase not in FLIPS:
                await self._news_came.wait()
                group.cancel_scope.cancel()
        if outcomes:  # it counts before news of the same moment, which may still fit afterwards
            return outcomes[0]
        assert self._news is not None  # noqa: S101  # nothing else ends the group without an error
        news, interrupted = self._news, self._noted
        self._forget_news()
        detail = news.detail if news.detail.model_fields_set else interrupted
        return StepOutcome(news.event, news.message, detail)

    def _forget_news(self) -> None:
        self._news = None
        self._news_came = anyio.Event()

    async def _guarded(self) -> StepOutcome:
        """Run the activity; a failing disk, or a bug of ours, is a failure of the phase."""
        if self.phase is Phase.SWITCH and self._owed:
            return StepOutcome.failed("the intent to switch could not be written down")
        try:
            outcome = await self._activity()(self)
        except AtlasError as error:
            return StepOutcome.failed(str(error))
        except Exception as error:
            log.exception("deploy_activity_failed", phase=self.phase)
            return StepOutcome.failed(f"internal error: {type(error).__name__}: {error}")
        if possible(self.plan, self.phase, outcome.event):
            return outcome
        return replace(outcome, event=Event.FAILED)  # staging died where that is no event

    def _activity(self) -> Callable[[ActiveDeploy], Awaitable[StepOutcome]]:
        """Return the activity of the phase."""
        effects = self._world
        return {
            Phase.PREFLIGHT: effects.preflight,
            Phase.LAUNCH: effects.launch,
            Phase.SMOKE: effects.smoke,
            Phase.HEALTH: effects.health,
            Phase.AWAITING_SWITCH: _wait_for_operator,
            Phase.SWITCH: effects.switch,
            Phase.GUARD: effects.guard,
            Phase.WARM: effects.warm,
            Phase.DRAIN: effects.drain,
            Phase.REVERT: effects.revert,
            Phase.DRAIN_REVERTED: effects.drain,
            Phase.UNSTAGE: effects.unstage,
        }[self.phase]

    async def _advance(self, outcome: StepOutcome, duration_ms: float) -> None:
        """Make the transition: write it down, then what it demands."""
        source, row = self.phase, step(self.plan, self.phase, outcome.event)
        ended_step = self._ended_step(outcome, duration_ms)
        before, self.record = self.record.result, self._updated(row, outcome.message, ended_step)
        self.phase = row.target
        self._settle_news()
        log.info(
            "deploy_transition",
            source=source,
            happening=outcome.event,
            target=row.target,
            why=outcome.message,
        )
        self._owe(row, outcome.message, ended_step, duration_ms)
        if self.record.result not in (None, before):
            self._owed.append(partial(self._world.audit_result, self.record))
        await self._write_owed()
        # Whoever has asked for something meanwhile waits for what follows from that.
        if self.record.result is not None and row.target not in _UNSETTLED and not self._news:
            self.settled.set()
        if row.target is Phase.ENDED:
            self.ended.set()
        self._tell_change()

    def _ended_step(self, outcome: StepOutcome, duration_ms: float) -> Step | None:
        name = STEP_OF.get(self.phase)
        if name is None:
            return None
        return Step(
            name=name,
            ok=succeeded(self.phase, outcome.event),
            duration_ms=duration_ms,
            detail=outcome.detail.recorded(outcome.message),
        )

    def _updated(self, row: Row, cause: str, ended_step: Step | None) -> DeployRecord:
        """Return the record as it is after the transition."""
        record, changes = self.record, dict[str, object]()
        active_port, staging_port = self._world.ports()
        if explains(row.phase, row.event):
            changes["reason"] = f"{row.phase.value}: {cause}"
        elif row.phase is Phase.SWITCH:
            changes["reason"] = None  # an earlier attempt may have failed
        if row.target is Phase.ENDED:
            changes["ended_ts"] = now()
        if row.result is not None:
            changes["result"] = row.result
        if row.phase in _PORTS_CHANGE:
            changes |= {"active_port": active_port, "staging_port": staging_port}
        return record.model_copy(
            update={
                **changes,
                "phase": row.target.value,
                "steps": [*record.steps, ended_step] if ended_step else record.steps,
            }
        )

    def _settle_news(self) -> None:
        """Keep news that came during a transition only if it means something in the new phase."""
        if self._news is None:
            return
        event = self._news.event
        if event is Event.STAGING_DIED and possible(self.plan, self.phase, Event.ACTIVE_DIED):
            # It died just as it received the traffic.
            self._news = replace(self._news, event=Event.ACTIVE_DIED)
        elif not self._possible(event):
            log.info("deploy_event_too_late", happening=event, phase=self.phase)
            self._forget_news()

    def _owe(self, row: Row, cause: str, ended_step: Step | None, duration_ms: float) -> None:
        """Note what must be written of a transition: first itself, then what it brings about."""
        world, record = self._world, self.record
        reason = record.reason or cause
        announcement = PublishedEvent(
            DeployEvent.of(
                record,
                ts=now(),
                source=row.phase,
                event=row.event,
                cause=cause,
                duration_ms=duration_ms,
                step=ended_step,
            )
        )
        self._unwritten.append(announcement)
        self._owed.append(partial(self._journal, record, announcement))
        for demand in row.demands:
            if demand is Consequence.SINGLE_MODE:
                self._owed.append(partial(world.fall_back_to_single, reason))
            elif demand is Consequence.ROLLBACK_AUDITED:
                self._owed.append(partial(world.audit, "rollback", "done", record, reason))
            elif demand is Consequence.SWITCH_FAILURE_AUDITED:
                self.switch_failure = cause
                self._owed.append(partial(world.audit, "switch", "failed", record, reason))

    async def _journal(self, record: DeployRecord, announcement: PublishedEvent) -> None:
        journal_id = await self._world.journal(record, announcement.event)
        self._world.tell(announcement, journal_id)  # at once, so that ids are told in order
        self._unwritten.remove(announcement)

    async def _write_owed(self) -> bool:
        """Write what is owed, in order; return whether that is all. A failing disk has time."""
        while self._owed:
            try:
                await self._owed[0]()
            except (AtlasError, OSError) as error:
                log.error("deploy_not_written", owed=len(self._owed), why=str(error))
                self._tell_unwritten()
                return False
            except Exception:
                log.exception("deploy_not_writable")  # a bug: trying again would not help
                self._tell_unwritten()
            self._owed.pop(0)
        return True

    def _tell_unwritten(self) -> None:
        """Tell what has happened although the disk does not take it: nobody is kept waiting."""
        for announcement in self._unwritten:
            self._world.tell(announcement, None)


async def _wait_for_operator(_deploy: ActiveDeploy) -> StepOutcome:
    await anyio.sleep_forever()
    raise AssertionError  # pragma: no cover  # cancelled by the news that it waits for
