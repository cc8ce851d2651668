"""Runs one deploy through the table: writes each transition down, then performs its effects.

Every phase has one activity. It ends with a finding, which is an event; or another event comes
from outside (an abort, a death, the next deploy) and the activity is cancelled. What follows is
the table's decision alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import structlog

from atlas_supervisor.deploy.effects import Effects, StepOutcome
from atlas_supervisor.deploy.machine import (
    AFTER_SWITCH,
    IN_PROGRESS,
    STEP_OF,
    Effect,
    Event,
    Phase,
    Plan,
    Row,
    explains,
    possible,
    step,
)
from atlas_supervisor.errors import AtlasError
from atlas_supervisor.model.deploy import DeployRecord, Result, Step
from atlas_supervisor.model.event import DeployEvent, PublishedEvent
from atlas_supervisor.model.release import Release
from atlas_supervisor.system.clock import Stopwatch, now

log = structlog.get_logger(__name__)

_UNINTERRUPTED = frozenset({Phase.SWITCH, Phase.REVERT})
"""Phases whose activity is short and runs to its end once it has begun."""

_UNSETTLED = _UNINTERRUPTED | {Phase.UNSTAGE}
"""Phases that end in an answer by themselves and soon."""

_PORTS_CHANGE = frozenset({Phase.PREFLIGHT, Phase.SWITCH, Phase.REVERT})
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
        self._news: tuple[Event, str] | None = None
        self._news_came = anyio.Event()
        self._changed = anyio.Event()
        self._known: dict[str, Any] = {}
        """What the news came with, and what the activity knew that it cancelled."""
        self._owed: list[Callable[[], Awaitable[None]]] = []
        """What is to be written yet, in order: so the journal never says more than was done."""
        self._unwritten: list[PublishedEvent] = []
        """The transitions among them."""

    @property
    def in_progress(self) -> bool:
        """Whether it holds the place, or is about to, so that no other deploy may begin."""
        if self._news is None:
            return self.phase in IN_PROGRESS
        following = step(self.plan, self.phase, self._news[0]).target
        return self.phase in IN_PROGRESS or following in IN_PROGRESS

    @property
    def whereabouts(self) -> str:
        """Its phase, and what is about to lead out of it."""
        return f"{self.phase}, and {self._news[0]} came first" if self._news else self.phase.value

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
        return doing or (self._news is not None and self._news[0] is event)

    def _possible(self, event: Event) -> bool:
        if event is Event.SUPERVISOR_STOPPED and self.phase is Phase.AWAITING_SWITCH:
            return False  # it goes on waiting; the next daemon takes that row
        return possible(self.plan, self.phase, event)

    def offer(self, event: Event, cause: str, **detail: Any) -> bool:
        """Let something happen to the deploy; return whether it was taken.

        `detail` goes into the step that ends by it, if one does.
        """
        if self._does(event):
            return True
        if not self.accepts(event):
            return False
        self._news = (event, cause)
        self._known |= detail
        if self.settled.is_set():
            self.settled = anyio.Event()  # whoever asks from now on waits for what follows
        self.switch_failure = None
        self._news_came.set()
        return True

    async def finish(self, event: Event, cause: str) -> None:
        """Let the event end it as soon as it can be taken; return once it has ended, or waits."""
        while not (self.ended.is_set() or self.waits):
            changed = self._changed  # from here on: a change must not go unseen
            self.offer(event, cause)
            await changed.wait()

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def drive(self, effect: Effect) -> None:
        """Perform the effect and whatever follows, until the deploy has ended and is written."""
        following: Effect | None = effect
        while following is not None:
            watch = Stopwatch()
            event, finding = await self._outcome(following)
            following = await self._advance(event, finding, watch.milliseconds)
        while not await self._write_owed():  # noqa: ASYNC110  # a disk tells nobody that it is well
            await anyio.sleep(_WRITE_AGAIN_SECONDS)

    async def _outcome(self, effect: Effect) -> tuple[Event, StepOutcome]:
        """Return what ended the phase: its activity, or news from outside."""
        findings: list[StepOutcome] = []

        async def run() -> None:
            findings.append(await self._guarded(effect))
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            if self.phase not in _UNINTERRUPTED:
                await self._news_came.wait()
                group.cancel_scope.cancel()
        if findings:  # it counts before news of the same moment, which may still fit afterwards
            finding = findings[0]
            if finding.staging_died and possible(self.plan, self.phase, Event.STAGING_DIED):
                return Event.STAGING_DIED, finding
            if finding.superseded and possible(self.plan, self.phase, Event.SUPERSEDED):
                return Event.SUPERSEDED, finding
            return (Event.PASSED if finding.ok else Event.FAILED), finding
        assert self._news is not None  # noqa: S101  # nothing else ends the group without an error
        (event, cause), known = self._news, self._known
        self._forget_news()
        harmless = event is Event.SUPERSEDED or (
            event is Event.SUPERVISOR_STOPPED and self.phase in AFTER_SWITCH
        )
        return event, StepOutcome(ok=harmless, message=cause, detail=known)

    def _forget_news(self) -> None:
        self._news, self._known = None, {}
        self._news_came = anyio.Event()

    async def _guarded(self, effect: Effect) -> StepOutcome:
        """Run the activity; a failing disk, or a bug of ours, is a failure of the phase."""
        if effect is Effect.FLIP and self._owed:
            return StepOutcome(ok=False, message="the intent to switch could not be written down")
        try:
            return await self._activity(effect)()
        except AtlasError as error:
            return StepOutcome(ok=False, message=str(error))
        except Exception as error:
            log.exception("deploy_activity_failed", phase=self.phase)
            return StepOutcome(ok=False, message=f"internal error: {type(error).__name__}: {error}")

    def _activity(self, effect: Effect) -> Callable[[], Awaitable[StepOutcome]]:
        world = self._world
        return {
            Effect.CHECK_PREFLIGHT: lambda: world.preflight(self.release),
            Effect.LAUNCH_STAGING: lambda: world.launch(self.release),
            Effect.RUN_SMOKE_TESTS: lambda: world.smoke(self.record.deploy_id),
            Effect.PROBE_HEALTH: world.health,
            Effect.WAIT_FOR_OPERATOR: _wait_for_operator,
            Effect.FLIP: lambda: world.flip(self.release, rollback=self.plan.rollback),
            Effect.FLIP_BACK: world.flip_back,
            Effect.WATCH: world.watch,
            Effect.KEEP_WARM: world.keep_warm,
            Effect.DRAIN_OLD: lambda: world.drain_staging(self._known),
            Effect.DRAIN_NEW: lambda: world.drain_staging(self._known),
            Effect.STOP_STAGING: world.stop_staging,
        }[effect]

    async def _advance(
        self, event: Event, finding: StepOutcome, duration_ms: float
    ) -> Effect | None:
        """Make the transition: journal, then side effects; return the next activity."""
        source, row = self.phase, step(self.plan, self.phase, event)
        ended_step = self._ended_step(finding, duration_ms)
        before, self.record = self.record.result, self._updated(row, event, finding, ended_step)
        self.phase = row.target
        self._settle_news()
        log.info(
            "deploy_transition",
            source=source,
            happening=event,
            target=row.target,
            why=finding.message,
        )
        self._owe(row, event, finding.message, ended_step, duration_ms)
        if self.record.result not in (None, before):
            self._owed.append(partial(self._world.audit_result, self.record))
        await self._write_owed()
        # Whoever has asked for something meanwhile waits for what follows from that.
        if self.record.result is not None and row.target not in _UNSETTLED and not self._news:
            self.settled.set()
        if row.target is Phase.ENDED:
            self.ended.set()
        self._tell_change()
        return row.effects[-1] if row.effects else None

    def _ended_step(self, finding: StepOutcome, duration_ms: float) -> Step | None:
        name = STEP_OF.get(self.phase)
        if name is None:
            return None
        detail = {"message": finding.message, **finding.detail}
        return Step(name=name, ok=finding.ok, duration_ms=duration_ms, detail=detail)

    def _updated(
        self, row: Row, event: Event, finding: StepOutcome, ended_step: Step | None
    ) -> DeployRecord:
        """Return the record as it is after the transition."""
        record, changes = self.record, dict[str, object]()
        active_port, staging_port = self._world.ports()
        if explains(row.phase, event):
            changes["reason"] = f"{row.phase.value}: {finding.message}"
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
        event, cause = self._news
        if event is Event.STAGING_DIED and possible(self.plan, self.phase, Event.ACTIVE_DIED):
            self._news = (Event.ACTIVE_DIED, cause)  # it died as the traffic came to it
        elif not self._possible(event):
            log.info("deploy_event_too_late", happening=event, phase=self.phase)
            self._forget_news()

    def _owe(
        self, row: Row, event: Event, cause: str, ended_step: Step | None, duration_ms: float
    ) -> None:
        """Note what must be written of a transition: first itself, then what it brings about."""
        world, record = self._world, self.record
        reason = record.reason or cause
        announcement = PublishedEvent(
            DeployEvent.of(
                record,
                ts=now(),
                source=row.phase,
                event=event,
                cause=cause,
                duration_ms=duration_ms,
                step=ended_step,
            )
        )
        self._unwritten.append(announcement)
        self._owed.append(partial(self._journal, record, announcement))
        for effect in row.effects[:-1]:
            if effect is Effect.FALL_BACK_TO_SINGLE:
                self._owed.append(partial(world.fall_back_to_single, reason))
            elif effect is Effect.AUDIT_ROLLBACK:
                self._owed.append(partial(world.audit, "rollback", "done", record, reason))
            elif effect is Effect.AUDIT_SWITCH_FAILED:
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


async def _wait_for_operator() -> StepOutcome:
    await anyio.sleep_forever()
    raise AssertionError  # pragma: no cover  # cancelled by the news that it waits for
