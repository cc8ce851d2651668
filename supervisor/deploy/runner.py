"""Runs one deploy through the table: writes each transition down, then performs its effects.

Every phase has one activity. It ends with a finding, which is an event; or another event comes
from outside (an abort, a death, the next deploy) and the activity is cancelled. What follows is
the table's decision alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import anyio
import structlog

from supervisor.clock import Stopwatch, now
from supervisor.deploy.machine import (
    IN_PROGRESS,
    STEP_OF,
    Effect,
    Event,
    Phase,
    Plan,
    Row,
    possible,
    step,
)
from supervisor.deploy.world import Finding, World
from supervisor.errors import AtlasError
from supervisor.model.deploy import DeployRecord, Step
from supervisor.model.release import Release

log = structlog.get_logger(__name__)

_UNINTERRUPTED = frozenset({Phase.SWITCH, Phase.REVERT})
"""Phases whose activity is short and runs to its end once it has begun."""

_UNSETTLED = _UNINTERRUPTED | {Phase.UNSTAGE}
"""Phases that end in an answer by themselves and soon."""

_EXPLAINED = frozenset(
    {
        Event.FAILED,
        Event.STAGING_DIED,
        Event.ACTIVE_DIED,
        Event.ABORT_REQUESTED,
        Event.ROLLBACK_REQUESTED,
    }
)
"""Events whose cause becomes the deploy's reason."""

_AFTER_SWITCH = frozenset({Phase.GUARD, Phase.WARM, Phase.DRAIN, Phase.DRAIN_REVERTED})


class _JournalEntry(NamedTuple):
    record: DeployRecord
    source: Phase
    event: Event
    cause: str
    step: Step | None


class DeployRun:
    """One deploy, from its first transition to its last."""

    def __init__(
        self, record: DeployRecord, plan: Plan, release: Release, world: World, phase: Phase
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
        self._unwritten: list[_JournalEntry] = []

    @property
    def in_progress(self) -> bool:
        """Whether it holds the place, so that no other deploy may begin."""
        return self.phase in IN_PROGRESS

    def accepts(self, event: Event) -> bool:
        """Tell whether the event has a row in this phase, and no other is being handled."""
        return self._news is None and possible(self.plan, self.phase, event)

    def offer(self, event: Event, cause: str) -> bool:
        """Let something happen to the deploy; return whether it was taken."""
        if not self.accepts(event):
            return False
        self._news = (event, cause)
        if self.settled.is_set():
            self.settled = anyio.Event()  # whoever asks from now on waits for what follows
        self.switch_failure = None
        self._news_came.set()
        return True

    async def drive(self, effect: Effect) -> None:
        """Perform the effect and whatever follows from it, until the deploy has ended."""
        following: Effect | None = effect
        while following is not None:
            watch = Stopwatch()
            event, finding = await self._outcome(following)
            following = await self._advance(event, finding, watch.milliseconds)

    async def _outcome(self, effect: Effect) -> tuple[Event, Finding]:
        """Return what ended the phase: its activity, or news from outside."""
        findings: list[Finding] = []

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
            if finding.staging_died:
                return Event.STAGING_DIED, finding
            return (Event.PASSED if finding.ok else Event.FAILED), finding
        assert self._news is not None  # noqa: S101  # nothing else ends the group without an error
        event, cause = self._news
        self._forget_news()
        harmless = event is Event.SUPERSEDED or (
            event is Event.SUPERVISOR_STOPPED and self.phase in _AFTER_SWITCH
        )
        return event, Finding(ok=harmless, message=cause)

    def _forget_news(self) -> None:
        self._news = None
        self._news_came = anyio.Event()

    async def _guarded(self, effect: Effect) -> Finding:
        """Run the activity; a failing disk, or a bug of ours, is a failure of the phase."""
        if effect is Effect.FLIP and self._unwritten:
            return Finding(ok=False, message="the intent to switch could not be written down")
        try:
            return await self._activity(effect)()
        except AtlasError as error:
            return Finding(ok=False, message=str(error))
        except Exception as error:
            log.exception("deploy_activity_failed", phase=self.phase)
            return Finding(ok=False, message=f"internal error: {type(error).__name__}: {error}")

    def _activity(self, effect: Effect) -> Callable[[], Awaitable[Finding]]:
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
            Effect.DRAIN_OLD: world.drain_staging,
            Effect.DRAIN_NEW: world.drain_staging,
            Effect.STOP_STAGING: world.stop_staging,
        }[effect]

    async def _advance(self, event: Event, finding: Finding, duration_ms: float) -> Effect | None:
        """Make the transition: journal, then side effects; return the next activity."""
        source, row = self.phase, step(self.plan, self.phase, event)
        ended_step = self._ended_step(finding, duration_ms)
        self.record = self._updated(row, event, finding, ended_step)
        self.phase = row.target
        self._settle_news()
        log.info(
            "deploy_transition",
            source=source,
            happening=event,
            target=row.target,
            why=finding.message,
        )
        self._unwritten.append(
            _JournalEntry(self.record, source, event, finding.message, ended_step)
        )
        await self._write_journal()
        *side_effects, activity = row.effects or (None,)
        for effect in side_effects:
            await self._side_effect(effect, finding.message)
        # Whoever has asked for something meanwhile waits for what follows from that.
        if self.record.result is not None and row.target not in _UNSETTLED and not self._news:
            self.settled.set()
        if row.target is Phase.ENDED:
            self.ended.set()
        return activity

    def _ended_step(self, finding: Finding, duration_ms: float) -> Step | None:
        name = STEP_OF.get(self.phase)
        if name is None:
            return None
        detail = {"message": finding.message, **finding.detail}
        return Step(name=name, ok=finding.ok, duration_ms=duration_ms, detail=detail)

    def _updated(
        self, row: Row, event: Event, finding: Finding, ended_step: Step | None
    ) -> DeployRecord:
        """Return the record as it is after the transition."""
        record, changes = self.record, dict[str, object]()
        active_port, staging_port = self._world.ports()
        explains = event in _EXPLAINED or (
            event is Event.SUPERVISOR_STOPPED and row.phase not in _AFTER_SWITCH
        )
        if explains:
            changes["reason"] = f"{row.phase.value}: {finding.message}"
        elif row.phase is Phase.SWITCH:
            changes["reason"] = None  # an earlier attempt may have failed
        if row.target is Phase.ENDED:
            changes["ended_ts"] = now()
        if row.result is not None:
            changes["result"] = row.result
        if row.phase is Phase.SWITCH or row.phase is Phase.REVERT:
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
        elif not possible(self.plan, self.phase, event):
            log.info("deploy_event_too_late", happening=event, phase=self.phase)
            self._forget_news()

    async def _write_journal(self) -> None:
        """Write what is not written yet, in order; a disk that fails is tried again later."""
        while self._unwritten:
            entry = self._unwritten[0]
            try:
                await self._world.journal(
                    entry.record,
                    source=entry.source,
                    event=entry.event,
                    cause=entry.cause,
                    step=entry.step,
                )
            except AtlasError as error:
                log.error("journal_failed", why=str(error))
                return
            self._unwritten.pop(0)

    async def _side_effect(self, effect: Effect | None, why: str) -> None:
        reason = self.record.reason or why
        try:
            if effect is Effect.FALL_BACK_TO_SINGLE:
                await self._world.fall_back_to_single(reason)
            elif effect is Effect.AUDIT_ROLLBACK:
                await self._world.audit("rollback", "done", self.record, reason)
            elif effect is Effect.AUDIT_SWITCH_FAILED:
                self.switch_failure = why
                await self._world.audit("switch", "failed", self.record, reason)
        except (AtlasError, OSError) as error:
            log.error("deploy_side_effect_failed", effect=effect, why=str(error))


async def _wait_for_operator() -> Finding:
    await anyio.sleep_forever()
    raise AssertionError  # pragma: no cover  # cancelled by the news that it waits for
