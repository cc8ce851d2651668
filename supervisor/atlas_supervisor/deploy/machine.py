"""The deploy as one table: every phase, what can happen in it, and what follows. Pure.

This file is the whole of what a deploy can do. The runner performs the effects and feeds what
happens back in as events; the diagram in `docs/deploy-machine.md` is drawn from the same rows.

Which of the things that happen to a deploy are the reason why it came out as it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from atlas_supervisor.model.deploy import Result, StepName


class Phase(StrEnum):
    """Where a deploy is."""

    PREFLIGHT = "preflight"
    LAUNCH = "launch"
    SMOKE = "smoke"
    HEALTH = "health"
    AWAITING_SWITCH = "awaiting_switch"
    SWITCH = "switch"
    GUARD = "guard"
    WARM = "warm"
    DRAIN = "drain"
    REVERT = "revert"
    DRAIN_REVERTED = "drain_reverted"
    UNSTAGE = "unstage"
    ENDED = "ended"


class Event(StrEnum):
    """What can happen to a deploy."""

    PASSED = "passed"
    FAILED = "failed"
    STAGING_DIED = "staging_died"
    ACTIVE_DIED = "active_died"
    SWITCH_REQUESTED = "switch_requested"
    ABORT_REQUESTED = "abort_requested"
    ROLLBACK_REQUESTED = "rollback_requested"
    SUPERSEDED = "superseded"
    SUPERVISOR_STOPPED = "supervisor_stopped"


class Effect(StrEnum):
    """What the runner is to do. The last effect of a transition is the new phase's activity."""

    CHECK_PREFLIGHT = "check preflight"
    LAUNCH_STAGING = "launch staging"
    RUN_SMOKE_TESTS = "run smoke tests"
    PROBE_HEALTH = "probe health"
    WAIT_FOR_OPERATOR = "wait for the operator"
    FLIP = "flip to staging"
    WATCH = "watch the new version"
    KEEP_WARM = "keep the old version warm"
    DRAIN_OLD = "drain the old version"
    FLIP_BACK = "flip back"
    DRAIN_NEW = "drain the new version"
    STOP_STAGING = "stop staging"
    FALL_BACK_TO_SINGLE = "fall back to single"
    AUDIT_ROLLBACK = "audit a rollback"
    AUDIT_SWITCH_FAILED = "audit a failed switch"


class When(StrEnum):
    """A condition on the deploy's plan, where the same event can lead two ways."""

    ALWAYS = ""
    DRY_RUN = "dry run"
    LIVE = "not a dry run"
    AUTO = "switches by itself"
    MANUAL = "waits for the operator"


@dataclass(frozen=True)
class Plan:
    """What was asked for; it does not change while the deploy runs."""

    dry_run: bool = False
    auto_switch: bool = True
    rollback: bool = False
    """It deploys the version before the active one, because that is no longer warm."""

    def meets(self, condition: When) -> bool:
        """Tell whether a row with this condition applies."""
        return {
            When.ALWAYS: True,
            When.DRY_RUN: self.dry_run,
            When.LIVE: not self.dry_run,
            When.AUTO: not self.dry_run and self.auto_switch,
            When.MANUAL: not self.dry_run and not self.auto_switch,
        }[condition]


@dataclass(frozen=True)
class Row:
    """In `phase`, `event` leads to `target`: perform `effects`; `result` is known from now on."""

    phase: Phase
    event: Event
    target: Phase
    effects: tuple[Effect, ...] = ()
    result: Result | None = None
    when: When = When.ALWAYS


class NotPossibleError(Exception):
    """The event has no row in this phase."""


_P, _E, _F, _R = Phase, Event, Effect, Result
_REJECT = (_F.AUDIT_ROLLBACK, _F.FALL_BACK_TO_SINGLE, _F.STOP_STAGING)


def _gate(phase: Phase) -> tuple[Row, ...]:
    """Return what every gate with a live staging instance shares: how it can go wrong."""
    return (
        Row(phase, _E.FAILED, _P.UNSTAGE, _REJECT, _R.FAILED, When.LIVE),
        Row(phase, _E.FAILED, _P.UNSTAGE, (_F.STOP_STAGING,), _R.FAILED, When.DRY_RUN),
        Row(phase, _E.STAGING_DIED, _P.UNSTAGE, _REJECT, _R.FAILED, When.LIVE),
        Row(phase, _E.STAGING_DIED, _P.UNSTAGE, (_F.STOP_STAGING,), _R.FAILED, When.DRY_RUN),
        Row(phase, _E.ABORT_REQUESTED, _P.UNSTAGE, (_F.STOP_STAGING,), _R.ABORTED),
        Row(phase, _E.SUPERVISOR_STOPPED, _P.ENDED, (), _R.ABORTED),
    )


TABLE: tuple[Row, ...] = (
    Row(_P.PREFLIGHT, _E.PASSED, _P.LAUNCH, (_F.LAUNCH_STAGING,)),
    Row(_P.PREFLIGHT, _E.FAILED, _P.ENDED, (), _R.FAILED),
    Row(_P.PREFLIGHT, _E.ABORT_REQUESTED, _P.ENDED, (), _R.ABORTED),
    Row(_P.PREFLIGHT, _E.SUPERVISOR_STOPPED, _P.ENDED, (), _R.ABORTED),
    Row(_P.LAUNCH, _E.PASSED, _P.SMOKE, (_F.RUN_SMOKE_TESTS,)),
    *_gate(_P.LAUNCH),
    Row(_P.SMOKE, _E.PASSED, _P.HEALTH, (_F.PROBE_HEALTH,)),
    *_gate(_P.SMOKE),
    Row(_P.HEALTH, _E.PASSED, _P.SWITCH, (_F.FLIP,), when=When.AUTO),
    Row(
        _P.HEALTH,
        _E.PASSED,
        _P.AWAITING_SWITCH,
        (_F.WAIT_FOR_OPERATOR,),
        _R.AWAITING_SWITCH,
        When.MANUAL,
    ),
    Row(_P.HEALTH, _E.PASSED, _P.UNSTAGE, (_F.STOP_STAGING,), _R.DRY_RUN_PASSED, When.DRY_RUN),
    *_gate(_P.HEALTH),
    Row(_P.AWAITING_SWITCH, _E.SWITCH_REQUESTED, _P.SWITCH, (_F.FLIP,)),
    Row(_P.AWAITING_SWITCH, _E.ABORT_REQUESTED, _P.UNSTAGE, (_F.STOP_STAGING,), _R.ABORTED),
    Row(_P.AWAITING_SWITCH, _E.STAGING_DIED, _P.UNSTAGE, _REJECT, _R.FAILED),
    # It goes on waiting over a restart of the daemon: its release passes the gates once more.
    Row(_P.AWAITING_SWITCH, _E.SUPERVISOR_STOPPED, _P.LAUNCH, (_F.LAUNCH_STAGING,)),
    Row(_P.SWITCH, _E.PASSED, _P.GUARD, (_F.WATCH,), _R.SWITCHED),
    Row(
        _P.SWITCH,
        _E.FAILED,
        _P.AWAITING_SWITCH,
        (_F.AUDIT_SWITCH_FAILED, _F.WAIT_FOR_OPERATOR),
        _R.AWAITING_SWITCH,
    ),
    Row(
        _P.SWITCH,
        _E.STAGING_DIED,
        _P.UNSTAGE,
        (_F.AUDIT_SWITCH_FAILED, _F.STOP_STAGING),
        _R.FAILED,
    ),
    Row(_P.SWITCH, _E.SUPERVISOR_STOPPED, _P.ENDED, (), _R.ABORTED),
    Row(_P.GUARD, _E.PASSED, _P.WARM, (_F.KEEP_WARM,)),
    Row(
        _P.GUARD,
        _E.FAILED,
        _P.REVERT,
        (_F.AUDIT_ROLLBACK, _F.FALL_BACK_TO_SINGLE, _F.FLIP_BACK),
    ),
    Row(
        _P.GUARD,
        _E.ACTIVE_DIED,
        _P.REVERT,
        (_F.AUDIT_ROLLBACK, _F.FALL_BACK_TO_SINGLE, _F.FLIP_BACK),
    ),
    # Whoever asks for it is audited with the request.
    Row(_P.GUARD, _E.ROLLBACK_REQUESTED, _P.REVERT, (_F.FLIP_BACK,)),
    Row(_P.GUARD, _E.SUPERSEDED, _P.DRAIN, (_F.DRAIN_OLD,)),
    Row(_P.GUARD, _E.SUPERVISOR_STOPPED, _P.ENDED),
    Row(_P.WARM, _E.PASSED, _P.DRAIN, (_F.DRAIN_OLD,)),
    Row(_P.WARM, _E.ACTIVE_DIED, _P.REVERT, (_F.AUDIT_ROLLBACK, _F.FLIP_BACK)),
    Row(_P.WARM, _E.ROLLBACK_REQUESTED, _P.REVERT, (_F.FLIP_BACK,)),
    Row(_P.WARM, _E.SUPERSEDED, _P.DRAIN, (_F.DRAIN_OLD,)),
    Row(_P.WARM, _E.SUPERVISOR_STOPPED, _P.ENDED),
    # What only tidies up can't change the outcome, and always leads to the end.
    Row(_P.WARM, _E.FAILED, _P.DRAIN, (_F.DRAIN_OLD,)),
    Row(_P.DRAIN, _E.PASSED, _P.ENDED),
    Row(_P.DRAIN, _E.FAILED, _P.ENDED),
    Row(_P.DRAIN, _E.SUPERVISOR_STOPPED, _P.ENDED),
    Row(_P.REVERT, _E.PASSED, _P.DRAIN_REVERTED, (_F.DRAIN_NEW,), _R.ROLLED_BACK),
    # The old version could not take over: the new one keeps the traffic.
    Row(_P.REVERT, _E.FAILED, _P.WARM, (_F.AUDIT_SWITCH_FAILED, _F.KEEP_WARM), _R.SWITCHED),
    Row(_P.REVERT, _E.SUPERVISOR_STOPPED, _P.ENDED),
    Row(_P.DRAIN_REVERTED, _E.PASSED, _P.ENDED),
    Row(_P.DRAIN_REVERTED, _E.FAILED, _P.ENDED),
    Row(_P.DRAIN_REVERTED, _E.SUPERVISOR_STOPPED, _P.ENDED),
    Row(_P.UNSTAGE, _E.PASSED, _P.ENDED),
    Row(_P.UNSTAGE, _E.FAILED, _P.ENDED),
    Row(_P.UNSTAGE, _E.SUPERVISOR_STOPPED, _P.ENDED),
)

FIRST_PHASE = Phase.PREFLIGHT
FIRST_EFFECT = Effect.CHECK_PREFLIGHT

IN_PROGRESS = frozenset(
    {
        Phase.PREFLIGHT,
        Phase.LAUNCH,
        Phase.SMOKE,
        Phase.HEALTH,
        Phase.AWAITING_SWITCH,
        Phase.SWITCH,
        Phase.UNSTAGE,
        Phase.REVERT,
    }
)
"""Phases in which the deploy holds the place: a second one is refused."""

STEP_OF = {
    Phase.PREFLIGHT: StepName.PREFLIGHT,
    Phase.LAUNCH: StepName.LAUNCH,
    Phase.SMOKE: StepName.SMOKE,
    Phase.HEALTH: StepName.HEALTH,
    Phase.SWITCH: StepName.SWITCH,
    Phase.GUARD: StepName.GUARD,
    Phase.DRAIN: StepName.DRAIN,
    Phase.DRAIN_REVERTED: StepName.DRAIN,
}
"""Phases whose activity is a step of the record."""


def step(plan: Plan, phase: Phase, event: Event) -> Row:
    """Return the transition that follows. Raises NotPossibleError."""
    for row in TABLE:
        if row.phase is phase and row.event is event and plan.meets(row.when):
            return row
    raise NotPossibleError(f"{event} is not possible in {phase}")


def possible(plan: Plan, phase: Phase, event: Event) -> bool:
    """Tell whether the event has a row in this phase."""
    return any(row.phase is phase and row.event is event and plan.meets(row.when) for row in TABLE)


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {FIRST_PHASE}"]
    for row in TABLE:
        label = row.event.value + (f" [{row.when}]" if row.when else "")
        if row.result:
            label += f" / {row.result}"
        lines.append(f"    {row.phase} --> {row.target}: {label}")
    lines.append(f"    {Phase.ENDED} --> [*]")
    return "\n".join(lines) + "\n"


AFTER_SWITCH = frozenset({Phase.GUARD, Phase.WARM, Phase.DRAIN, Phase.DRAIN_REVERTED})
"""Phases that the supervisor's stop may cut short without any harm."""

_EXPLAINED = frozenset(
    {
        Event.FAILED,
        Event.STAGING_DIED,
        Event.ACTIVE_DIED,
        Event.ABORT_REQUESTED,
        Event.ROLLBACK_REQUESTED,
    }
)

_TIDYING = frozenset({Phase.WARM, Phase.DRAIN, Phase.DRAIN_REVERTED, Phase.UNSTAGE})
"""Phases whose failure is shown in their step, and does not change why it came out as it did."""


def explains(phase: Phase, event: Event) -> bool:
    """Tell whether the cause of the event, in this phase, becomes the deploy's reason."""
    if event is Event.SUPERVISOR_STOPPED:
        return phase not in AFTER_SWITCH | _TIDYING
    return event in _EXPLAINED and not (event is Event.FAILED and phase in _TIDYING)
