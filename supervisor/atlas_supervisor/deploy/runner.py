"""Runs one deploy through the table, from its first phase to its end.

A deploy is always in one phase, and a phase is its activity. The activity ends with an event. Or
an event comes from outside (an operator asks, a worker dies, the daemon stops) and the activity is
cancelled and has undone what it did. The table alone decides what follows.

1. One event ends a phase. At most one event from outside waits. More are refused, but a request for
   what is being done already is accepted, and both callers get the same answer. An event that was
   accepted counts, even if the activity ends in the same moment: its outcome is then void, unless
   both lead to the same phase. No activity begins while an event waits. Only a split, which is
   done when its event comes, gives way to another event.
2. A flip (`switch`, `revert`) is never cancelled: it is short, and done as a whole or not at all.
   It accepts only `machine.KEPT_DURING_FLIP`: such an event waits for the phase that follows, and
   is dropped if it means nothing there. No request is among them, so none is accepted and dropped.
3. The order of a transition: record and phase in memory, then the journal, then what the row
   demands, then the answer to callers (`settled`), then the next activity. So no activity begins
   before the transition that leads to it was tried to be written.
4. A failing disk delays the journal, and neither the deploy nor its callers: the transition stays
   in the outbox and is published without an id. The one exception: without a written intent there
   is no switch.
5. However an activity ends, by a bug too, that is an event with a row: every phase that can be
   reached has a row for PASSED or waits, one for FAILED, and a way to the end (`test_machine`).
6. `settled` is set while there is an answer for the last request: a result is known, the phase does
   not bring another by itself soon, and no event waits. A later request makes a new one, so that no
   caller gets another one's answer. `ended` is set when nothing more follows; `drive` returns once
   all of it is on the disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio
import structlog

from atlas_supervisor.deploy.effects import (
    ActiveDeploy,
    Effects,
    PendingWrite,
    Transition,
    TransitionLog,
)
from atlas_supervisor.deploy.machine import (
    ACTIVITIES,
    FIRST_PHASE,
    FLIPS,
    HELD_WHY,
    IN_PROGRESS,
    KEPT_DURING_FLIP,
    SHARES,
    STEP_OF,
    UNTIL_BEGUN,
    Consequence,
    Event,
    Phase,
    Plan,
    Row,
    StepOutcome,
    demands_of,
    explains,
    possible,
    step,
    succeeded,
)
from atlas_supervisor.deploy.ramp import after_row
from atlas_supervisor.errors import AtlasError
from atlas_supervisor.model.deploy import DeployEvent, DeployRecord, Result, Step, StepDetail
from atlas_supervisor.model.release import Release, VersionChange
from atlas_supervisor.system.clock import Stopwatch, now
from atlas_supervisor.system.failpoints import seam

log = structlog.get_logger(__name__)

_UNSETTLED = FLIPS | {Phase.RAMP, Phase.UNSTAGE}
"""Phases that end in an answer by themselves."""

_OF_RAMP = frozenset({Event.PAUSE_REQUESTED, Event.RESUME_REQUESTED, Event.ADVANCE_REQUESTED})

_PORTS_CHANGE = FLIPS | {Phase.PREFLIGHT}
"""Phases after which the ports may be others; during preflight the deploy before may revert."""


class Settled:
    """The answer to the requests that a deploy has accepted; set once."""

    def __init__(self) -> None:
        self._answered = anyio.Event()
        self._record: DeployRecord | None = None
        self.switch_failure: str | None = None
        """Why the last flip could not be done; None if it was, or there was none."""

    def set(self, record: DeployRecord, switch_failure: str | None) -> None:
        """Answer every caller that waits."""
        self._record, self.switch_failure = record, switch_failure
        self._answered.set()

    def is_set(self) -> bool:
        """Return whether there is an answer."""
        return self._record is not None

    async def wait(self) -> DeployRecord:
        """Wait for the answer, and return the deploy as it was then."""
        await self._answered.wait()
        assert self._record is not None  # noqa: S101  # `set` sets both
        return self._record


class DeployRun:
    """One deploy, from its first transition to its last."""

    def __init__(
        self,
        record: DeployRecord,
        plan: Plan,
        release: Release,
        *,
        effects: Effects,
        transitions: TransitionLog,
        phase: Phase = FIRST_PHASE,
    ) -> None:
        self.record = record
        self.plan = plan
        self.release = release
        self.phase = phase
        self.settled = Settled()
        """The answer to the last request."""
        self.ended = anyio.Event()
        self._switch_failure: str | None = None
        self._reverts_because: Event | None = None
        """The event that led to the last revert."""
        self._effects = effects
        self._transitions = transitions
        self._last: PendingWrite | None = None
        """The last transition; None before there is one."""
        self._incoming: StepOutcome | None = None
        """The event from outside that waits to be handled."""
        self._arrived = anyio.Event()
        self._changed = anyio.Event()
        self._has_begun = False
        """Whether the activity of the phase has begun."""
        self._noted = StepDetail()
        """What the step records should its activity be interrupted."""
        if record.result is not None and phase not in _UNSETTLED:  # it goes on after a restart
            self.settled.set(record, None)

    # What can happen from outside.

    @property
    def in_progress(self) -> bool:
        """Whether it is in progress, or is about to be, so that no other deploy may begin."""
        if self.phase in IN_PROGRESS or self._incoming is None:
            return self.phase in IN_PROGRESS
        return step(self.plan, self.phase, self._incoming.event).target in IN_PROGRESS

    @property
    def whereabouts(self) -> str:
        """Its phase, and what is about to lead out of it."""
        first = f", and {self._incoming.event} came first" if self._incoming else ""
        return f"{self.phase}{first}"

    @property
    def waits(self) -> bool:
        """Whether the next daemon can go on from here, and no request is being handled."""
        return self.phase in SHARES and self._incoming is None

    def accepts(self, event: Event) -> bool:
        """Return whether the event means something in this phase, and no other is being handled.

        What is being done already is accepted again: both callers get the answer.
        """
        free = self._incoming is None or self._incoming.event is Event.SPLIT_REQUESTED
        return self._does(event) or (free and self._possible(event))

    def _does(self, event: Event) -> bool:
        """Return whether the request is being done already, and is not settled yet."""
        if event is Event.SWITCH_REQUESTED:
            doing = self.phase is Phase.SWITCH
        elif event is Event.ABORT_REQUESTED:
            doing = self.phase is Phase.UNSTAGE and self.record.result is Result.ABORTED
        elif event in _OF_RAMP:
            doing = False
        else:
            return False
        return doing or (self._incoming is not None and self._incoming.event is event)

    def _possible(self, event: Event) -> bool:
        if self.phase in FLIPS:
            return event in KEPT_DURING_FLIP[self.phase]
        if self._has_begun and event in UNTIL_BEGUN.get(self.phase, ()):
            return False
        if event is Event.SUPERVISOR_STOPPED and self.phase is Phase.AWAITING_SWITCH:
            return False  # it goes on waiting; the next daemon takes that row
        return possible(self.plan, self.phase, event)

    def offer(
        self,
        event: Event,
        cause: str,
        detail: StepDetail | None = None,
        *,
        share: float | None = None,
    ) -> bool:
        """Let something happen to the deploy; return whether it was accepted.

        `detail` goes into the step that ends by it, if one does; `share` is what was split by hand.
        """
        if self._does(event):
            return True
        if not self.accepts(event):
            return False
        self._incoming = StepOutcome(event, cause, detail or StepDetail(), share=share)
        if self.settled.is_set():  # a caller from now on waits for what follows
            self.settled, self._switch_failure = Settled(), None
        self._arrived.set()
        return True

    def note(self, detail: StepDetail) -> None:
        """Note what the step is to record should its activity be interrupted."""
        self._noted = detail

    async def handled(self, event: Event, cause: str, share: float | None = None) -> bool:
        """Let something happen to it; return whether it was accepted, once it is published."""
        changed = self._changed
        if not self.offer(event, cause, share=share):
            return False
        await changed.wait()
        return True

    async def finish(self, event: Event, cause: str) -> None:
        """Let the event end it as soon as it is accepted; return once it has ended, or waits."""
        while not (self.ended.is_set() or (self.waits and not self._possible(event))):
            changed = self._changed  # from here on: a change must not go unseen
            self.offer(event, cause)
            await changed.wait()

    async def give_way(self, cause: str) -> None:
        """Abort it, unless its flip comes first; return once it is not in progress any more."""
        while self.in_progress:
            changed = self._changed
            self.offer(Event.ABORT_REQUESTED, cause)
            await changed.wait()

    # What it does.

    async def drive(self) -> None:
        """Run the activity of each phase until the deploy has ended and is written."""
        while self.phase is not Phase.ENDED:
            watch = Stopwatch()
            await self._advance(await self._outcome(), watch.milliseconds)
        if self._last is not None:
            await self._last.wait()

    async def _outcome(self) -> StepOutcome:
        """Return the outcome that ended the phase: its activity, or an event from outside."""
        self._noted = StepDetail()
        outcome = await self._run_activity()
        if self._incoming is None or self.phase in FLIPS:
            assert outcome is not None  # noqa: S101  # only an event ends it without one
            return outcome
        incoming, interrupted = self._incoming, self._noted
        self._forget_incoming()
        target = self._target(incoming)
        if outcome is not None and self._target(outcome) is target is not self.phase:
            return outcome  # it says more
        detail = interrupted.model_copy(update=incoming.detail.model_dump(exclude_unset=True))
        return replace(incoming, detail=detail)

    async def _run_activity(self) -> StepOutcome | None:
        """Return the outcome of the activity; None if an event from outside cut it short."""
        outcome: StepOutcome | None = None
        if self._incoming is not None and self.phase not in FLIPS:
            return None
        if self.phase in FLIPS:
            return await self._guarded()

        async def run() -> None:
            nonlocal outcome
            if self._incoming is None:
                outcome = await self._guarded()
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await self._arrived.wait()
            group.cancel_scope.cancel()
        return outcome

    def _target(self, outcome: StepOutcome) -> Phase:
        return step(self.plan, self.phase, outcome.event).target

    def _forget_incoming(self) -> None:
        self._incoming = None
        self._arrived = anyio.Event()

    @seam("activity", ACTIVITIES, lambda run: run.phase)
    async def _guarded(self) -> StepOutcome:
        """Run the activity; a failing disk, or a bug of ours, is a failure of the phase."""
        self._has_begun = True
        if self.phase is Phase.SWITCH and self._last is not None and not self._last.written:
            return StepOutcome.failed("the intent to switch could not be saved")
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
        effects = self._effects
        return {
            Phase.PREFLIGHT: effects.preflight,
            Phase.LAUNCH: effects.launch,
            Phase.SMOKE: effects.smoke,
            Phase.HEALTH: effects.health,
            Phase.AWAITING_SWITCH: effects.await_switch,
            Phase.RAMP: effects.ramp,
            Phase.SWITCH: effects.switch,
            Phase.GUARD: effects.guard,
            Phase.WARM: effects.warm,
            Phase.DRAIN: effects.drain,
            Phase.REVERT: effects.revert,
            Phase.DRAIN_REVERTED: effects.drain,
            Phase.UNSTAGE: effects.unstage,
        }[self.phase]

    async def _advance(self, outcome: StepOutcome, duration_ms: float) -> None:
        """Make the transition that the outcome leads to."""
        row = step(self.plan, self.phase, outcome.event)
        if row.target is Phase.REVERT:
            self._reverts_because = row.event
        if Consequence.HELD in row.demands:
            why = f"{outcome.message}; {HELD_WHY}"
            outcome = replace(outcome, message=why, versions=VersionChange(complaint=why))
        ended_step = self._ended_step(row, outcome, duration_ms)
        before, self.record = self.record.result, self._updated(row, outcome, ended_step)
        self.phase, self._has_begun = row.target, False
        self._settle_incoming()
        if row.phase in FLIPS:
            self._switch_failure = None if outcome.has_passed else outcome.message
        log.info(
            "deploy_transition",
            source=row.phase,
            happening=outcome.event,
            target=row.target,
            why=outcome.message,
        )
        event = DeployEvent.of(
            self.record,
            ts=now(),
            source=row.phase,
            event=row.event,
            cause=outcome.message,
            duration_ms=duration_ms,
            step=ended_step,
        )
        has_new_result = self.record.result not in (None, before)
        self._last = await self._transitions.write(
            Transition(
                self.record,
                event,
                demands_of(self.plan, row, self._reverts_because),
                outcome.versions,
                has_new_result,
            )
        )
        # A request that has come meanwhile waits for what follows from it.
        if self.record.result is not None and row.target not in _UNSETTLED and not self._incoming:
            self.settled.set(self.record, self._switch_failure)
        if row.target is Phase.ENDED:
            self.ended.set()
        self._changed.set()
        self._changed = anyio.Event()

    def _ended_step(self, row: Row, outcome: StepOutcome, duration_ms: float) -> Step | None:
        name = STEP_OF.get(self.phase)
        if name is None or outcome.event in UNTIL_BEGUN.get(self.phase, ()):
            return None
        if row.phase is Phase.RAMP and row.target in {Phase.RAMP, Phase.SWITCH}:
            return None
        return Step(
            name=name,
            ok=succeeded(self.phase, outcome.event),
            duration_ms=duration_ms,
            detail=outcome.detail.recorded(outcome.message),
        )

    def _updated(self, row: Row, outcome: StepOutcome, ended_step: Step | None) -> DeployRecord:
        """Return the record as it is after the transition."""
        record, changes = self.record, dict[str, object]()
        active_port, staging_port = self._effects.ports()
        if Phase.RAMP in {row.phase, row.target}:
            weight = self._effects.weight() if outcome.share is None else outcome.share
            changes["ramp"] = after_row(self.plan, record.ramp, row, weight=weight, at=now())
            changes["result"] = None
        if row.target is Phase.SWITCH:  # a retry needs no second ramp
            self.plan = replace(self.plan, ramp=())
        if explains(row.phase, row.event):
            changes["reason"] = f"{row.phase.value}: {outcome.message}"
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
                "guard": None,
                "until_ts": None,
                "steps": [*record.steps, ended_step] if ended_step else record.steps,
            }
        )

    def _settle_incoming(self) -> None:
        """Keep an event that came during a flip only if it means something in the new phase."""
        if self._incoming is None:
            return
        event = self._incoming.event
        if event is Event.STAGING_DIED and possible(self.plan, self.phase, Event.ACTIVE_DIED):
            # It died just as it received the traffic.
            self._incoming = replace(self._incoming, event=Event.ACTIVE_DIED)
        elif not self._possible(event):
            log.info("deploy_event_dropped", happening=event, phase=self.phase)
            self._forget_incoming()
