"""The deploy as one table: every phase, what can happen in it, and what follows. Pure.

This file is the whole of what a deploy can do. A phase is its activity: the runner starts the
activity of the phase that a row leads to, and its end is the next event. To add a phase is to add
its rows, its activity (`effects.Effects`) and its words (`ACTIVITIES`). The diagram in
`docs/deploy-machine.md` is drawn from the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from atlas_supervisor.model.deploy import Result, StepDetail, StepName
from atlas_supervisor.model.release import VersionChange


class Phase(StrEnum):
    """Where a deploy is."""

    PREFLIGHT = "preflight"
    LAUNCH = "launch"
    SMOKE = "smoke"
    HEALTH = "health"
    AWAITING_SWITCH = "awaiting_switch"
    RAMP = "ramp"
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
    SPLIT_REQUESTED = "split_requested"
    STEP_PASSED = "step_passed"
    PAUSE_REQUESTED = "pause_requested"
    RESUME_REQUESTED = "resume_requested"
    ADVANCE_REQUESTED = "advance_requested"
    SWITCH_REQUESTED = "switch_requested"
    ABORT_REQUESTED = "abort_requested"
    ROLLBACK_REQUESTED = "rollback_requested"
    SUPERSEDED = "superseded"
    SUPERVISOR_STOPPED = "supervisor_stopped"


class Consequence(StrEnum):
    """What a transition demands besides its target's activity, once it is in the journal."""

    ROLLBACK_UNNEEDED_AUDITED = "it is audited that no rollback was needed"
    ROLLBACK_AUDITED = "a rollback is audited"
    ROLLBACK_FAILURE_AUDITED = "a failed rollback is audited"
    SINGLE_MODE = "the mode falls back to single"
    SWITCH_FAILURE_AUDITED = "a failed switch is audited"
    HELD = "it is audited that the version keeps the traffic, and noted with the version"


class When(StrEnum):
    """A condition on the deploy's plan, where one event can lead two ways."""

    ALWAYS = ""
    DRY_RUN = "dry run"
    LIVE = "not a dry run"
    AUTO = "switches by itself"
    AUTO_RAMP = "ramps by itself"
    MANUAL = "waits for the operator"
    RAMP = "a ramp is ahead"
    NO_RAMP = "no ramp is ahead"
    REQUESTED = "requested"
    RECYCLE = "recycle"
    REVERSIBLE = "may be reverted"
    IRREVERSIBLE = "irreversible"


@dataclass(frozen=True)
class Plan:
    """What was requested; it does not change while the deploy runs."""

    dry_run: bool = False
    auto_switch: bool = True
    rollback: bool = False
    """It launches an earlier version again, because that is not warm."""
    recycle: bool = False
    """It launches the active version again, beside a worker that is beyond a limit. It ends by
    itself, never disables deploys, and keeps no old worker: that one is no other version."""
    fast: bool = False
    """It does so without smoke tests and health gate."""
    irreversible: bool = False
    """Once the version has all the traffic, only a request takes it away."""
    remark: str = ""
    """What the record is to say of it."""
    ramp: tuple[float, ...] = ()
    """The shares of the ramp that is ahead, the last one 1; empty if there is none (any more)."""

    def meets(self, condition: When) -> bool:
        """Return whether a row with this condition applies."""
        return {
            When.ALWAYS: True,
            When.DRY_RUN: self.dry_run,
            When.LIVE: not self.dry_run,
            When.AUTO: not self.dry_run and self.auto_switch and not self.ramp,
            When.AUTO_RAMP: not self.dry_run and self.auto_switch and bool(self.ramp),
            When.MANUAL: not self.dry_run and not self.auto_switch,
            When.REQUESTED: not self.recycle,
            When.RECYCLE: self.recycle,
            When.REVERSIBLE: not self.irreversible,
            When.IRREVERSIBLE: self.irreversible,
            When.RAMP: bool(self.ramp),
            When.NO_RAMP: not self.ramp,
        }[condition]


@dataclass(frozen=True)
class Row:
    """In `phase`, `event` leads to `target`, whose activity starts; `result` is then known."""

    phase: Phase
    event: Event
    target: Phase
    result: Result | None = None
    when: When = When.ALWAYS
    demands: tuple[Consequence, ...] = ()


_NO_DETAIL = StepDetail()


@dataclass(frozen=True)
class StepOutcome:
    """How an activity ended: the event that it leads to, and what its step records."""

    event: Event
    message: str
    detail: StepDetail = _NO_DETAIL
    versions: VersionChange | None = None
    """How a flip changed the versions; to be written with the transition."""
    share: float | None = None
    """The share of the traffic that staging was given by hand."""

    @classmethod
    def passed(cls, message: str, detail: StepDetail = _NO_DETAIL) -> Self:
        """Return that the activity succeeded."""
        return cls(Event.PASSED, message, detail)

    @classmethod
    def failed(cls, message: str, detail: StepDetail = _NO_DETAIL) -> Self:
        """Return that it failed."""
        return cls(Event.FAILED, message, detail)

    @classmethod
    def staging_died(cls, message: str) -> Self:
        """Return that it failed because the staging instance ended."""
        return cls(Event.STAGING_DIED, message)

    @property
    def has_passed(self) -> bool:
        """Whether the activity succeeded."""
        return self.event is Event.PASSED


class NotPossibleError(Exception):
    """The event has no row in this phase."""


_P, _E, _R = Phase, Event, Result
_REJECTED = (Consequence.ROLLBACK_UNNEEDED_AUDITED, Consequence.SINGLE_MODE)
_REVERTED_BY_GUARD = (Consequence.SINGLE_MODE,)
_REVERTED_IN_RAMP = (Consequence.ROLLBACK_AUDITED, Consequence.SINGLE_MODE)
_ROLLED_BACK = (Consequence.ROLLBACK_AUDITED,)
_NOT_ROLLED_BACK = (Consequence.ROLLBACK_FAILURE_AUDITED, Consequence.SWITCH_FAILURE_AUDITED)
_NOT_SWITCHED = (Consequence.SWITCH_FAILURE_AUDITED,)
_HELD = (Consequence.HELD,)
HELD_WHY = "not reverted, since release.toml says that it is irreversible"
"""Ends the reason of a deploy whose version would have been reverted and was not."""


def _gate(phase: Phase) -> tuple[Row, ...]:
    """Return the rows of every gate with a live staging instance: how it can go wrong."""
    return (
        Row(phase, _E.FAILED, _P.UNSTAGE, _R.FAILED, When.LIVE, _REJECTED),
        Row(phase, _E.FAILED, _P.UNSTAGE, _R.FAILED, When.DRY_RUN),
        Row(phase, _E.STAGING_DIED, _P.UNSTAGE, _R.FAILED, When.LIVE, _REJECTED),
        Row(phase, _E.STAGING_DIED, _P.UNSTAGE, _R.FAILED, When.DRY_RUN),
        Row(phase, _E.ABORT_REQUESTED, _P.UNSTAGE, _R.ABORTED),
        Row(phase, _E.SUPERVISOR_STOPPED, _P.ENDED, _R.ABORTED),
    )


TABLE: tuple[Row, ...] = (
    Row(_P.PREFLIGHT, _E.PASSED, _P.LAUNCH),
    Row(_P.PREFLIGHT, _E.FAILED, _P.ENDED, _R.FAILED),
    Row(_P.PREFLIGHT, _E.ABORT_REQUESTED, _P.ENDED, _R.ABORTED),
    Row(_P.PREFLIGHT, _E.SUPERVISOR_STOPPED, _P.ENDED, _R.ABORTED),
    Row(_P.LAUNCH, _E.PASSED, _P.SMOKE),
    *_gate(_P.LAUNCH),
    Row(_P.SMOKE, _E.PASSED, _P.HEALTH),
    *_gate(_P.SMOKE),
    Row(_P.HEALTH, _E.PASSED, _P.SWITCH, when=When.AUTO),
    Row(_P.HEALTH, _E.PASSED, _P.RAMP, when=When.AUTO_RAMP),
    Row(_P.HEALTH, _E.PASSED, _P.AWAITING_SWITCH, _R.AWAITING_SWITCH, When.MANUAL),
    Row(_P.HEALTH, _E.PASSED, _P.UNSTAGE, _R.DRY_RUN_PASSED, When.DRY_RUN),
    *_gate(_P.HEALTH),
    Row(_P.AWAITING_SWITCH, _E.SPLIT_REQUESTED, _P.AWAITING_SWITCH),
    Row(_P.AWAITING_SWITCH, _E.SWITCH_REQUESTED, _P.SWITCH, when=When.NO_RAMP),
    Row(_P.AWAITING_SWITCH, _E.SWITCH_REQUESTED, _P.RAMP, when=When.RAMP),
    Row(_P.AWAITING_SWITCH, _E.ABORT_REQUESTED, _P.UNSTAGE, _R.ABORTED),
    Row(_P.AWAITING_SWITCH, _E.STAGING_DIED, _P.UNSTAGE, _R.FAILED, demands=_REJECTED),
    # It goes on waiting over a restart of the daemon: its release passes the gates once more.
    Row(_P.AWAITING_SWITCH, _E.SUPERVISOR_STOPPED, _P.LAUNCH),
    # A change of the ramp leads into it again: so it is in the journal before it is carried out.
    Row(_P.RAMP, _E.STEP_PASSED, _P.RAMP),
    Row(_P.RAMP, _E.PAUSE_REQUESTED, _P.RAMP),
    Row(_P.RAMP, _E.RESUME_REQUESTED, _P.RAMP),
    Row(_P.RAMP, _E.ADVANCE_REQUESTED, _P.RAMP),
    Row(_P.RAMP, _E.SPLIT_REQUESTED, _P.RAMP),
    Row(_P.RAMP, _E.PASSED, _P.SWITCH),
    Row(_P.RAMP, _E.SWITCH_REQUESTED, _P.SWITCH),
    Row(_P.RAMP, _E.FAILED, _P.UNSTAGE, _R.ROLLED_BACK, demands=_REVERTED_IN_RAMP),
    Row(_P.RAMP, _E.STAGING_DIED, _P.UNSTAGE, _R.ROLLED_BACK, demands=_REVERTED_IN_RAMP),
    Row(_P.RAMP, _E.ABORT_REQUESTED, _P.UNSTAGE, _R.ABORTED),
    Row(_P.RAMP, _E.SUPERVISOR_STOPPED, _P.ENDED, _R.ABORTED),
    Row(_P.SWITCH, _E.PASSED, _P.GUARD, _R.SWITCHED, When.REQUESTED),
    Row(_P.SWITCH, _E.PASSED, _P.DRAIN, _R.SWITCHED, When.RECYCLE),
    Row(
        _P.SWITCH, _E.FAILED, _P.AWAITING_SWITCH, _R.AWAITING_SWITCH, When.REQUESTED, _NOT_SWITCHED
    ),
    Row(_P.SWITCH, _E.FAILED, _P.UNSTAGE, _R.FAILED, When.RECYCLE, _NOT_SWITCHED),
    Row(_P.SWITCH, _E.STAGING_DIED, _P.UNSTAGE, _R.FAILED, demands=_NOT_SWITCHED),
    Row(_P.SWITCH, _E.SUPERVISOR_STOPPED, _P.ENDED, _R.ABORTED),
    Row(_P.GUARD, _E.PASSED, _P.WARM),
    # Only these rows revert without a request. An irreversible version keeps the traffic instead;
    # if it died, it is started again like any active one. A share before the switch is no reason:
    # the old version serves beside it all the while, so it can take that back.
    Row(_P.GUARD, _E.FAILED, _P.REVERT, None, When.REVERSIBLE, _REVERTED_BY_GUARD),
    Row(_P.GUARD, _E.FAILED, _P.WARM, None, When.IRREVERSIBLE, _HELD),
    Row(_P.GUARD, _E.ACTIVE_DIED, _P.REVERT, None, When.REVERSIBLE, _REVERTED_BY_GUARD),
    Row(_P.GUARD, _E.ACTIVE_DIED, _P.WARM, None, When.IRREVERSIBLE, _HELD),
    Row(_P.GUARD, _E.ROLLBACK_REQUESTED, _P.REVERT),
    Row(_P.GUARD, _E.SUPERSEDED, _P.DRAIN),
    Row(_P.GUARD, _E.SUPERVISOR_STOPPED, _P.ENDED),
    Row(_P.WARM, _E.PASSED, _P.DRAIN),
    Row(_P.WARM, _E.ACTIVE_DIED, _P.REVERT, when=When.REVERSIBLE),
    Row(_P.WARM, _E.ACTIVE_DIED, _P.WARM, None, When.IRREVERSIBLE, _HELD),
    # The old worker of a recycle is no version to go back to.
    Row(_P.WARM, _E.ROLLBACK_REQUESTED, _P.REVERT, when=When.REQUESTED),
    Row(_P.WARM, _E.SUPERSEDED, _P.DRAIN),
    Row(_P.WARM, _E.SUPERVISOR_STOPPED, _P.ENDED),
    # Phases that only clean up can't change the result, and always lead to the end.
    Row(_P.WARM, _E.FAILED, _P.DRAIN),
    # Until the drain begins, the old version can take over (`UNTIL_BEGUN`).
    Row(_P.DRAIN, _E.ACTIVE_DIED, _P.REVERT, when=When.REVERSIBLE),
    Row(_P.DRAIN, _E.ROLLBACK_REQUESTED, _P.REVERT, when=When.REQUESTED),
    Row(_P.DRAIN, _E.PASSED, _P.ENDED),
    Row(_P.DRAIN, _E.FAILED, _P.ENDED),
    Row(_P.DRAIN, _E.SUPERVISOR_STOPPED, _P.ENDED),
    Row(_P.REVERT, _E.PASSED, _P.DRAIN_REVERTED, _R.ROLLED_BACK, demands=_ROLLED_BACK),
    # The old version could not take over: the new one keeps the traffic.
    Row(_P.REVERT, _E.FAILED, _P.WARM, _R.SWITCHED, demands=_NOT_ROLLED_BACK),
    Row(_P.REVERT, _E.SUPERVISOR_STOPPED, _P.ENDED),
    Row(_P.DRAIN_REVERTED, _E.PASSED, _P.ENDED),
    Row(_P.DRAIN_REVERTED, _E.FAILED, _P.ENDED),
    Row(_P.DRAIN_REVERTED, _E.SUPERVISOR_STOPPED, _P.ENDED),
    Row(_P.UNSTAGE, _E.PASSED, _P.ENDED),
    Row(_P.UNSTAGE, _E.FAILED, _P.ENDED),
    Row(_P.UNSTAGE, _E.SUPERVISOR_STOPPED, _P.ENDED),
)

FIRST_PHASE = Phase.PREFLIGHT
TARGETS = sorted({row.target for row in TABLE})
"""Every phase that a transition leads to."""

ACTIVITIES = {
    Phase.PREFLIGHT: "check the release, the smoke file and the ports; free the staging slot",
    Phase.LAUNCH: "start the release on staging and wait until it is ready",
    Phase.SMOKE: "run the smoke tests against staging",
    Phase.HEALTH: "run the health gate against staging",
    Phase.AWAITING_SWITCH: "give staging its part of the traffic, and wait for the operator",
    Phase.RAMP: "give staging this step's share of the traffic, and watch it until the next step",
    Phase.SWITCH: "send all traffic to staging, durably",
    Phase.GUARD: "watch the new version for the guard time",
    Phase.WARM: "keep the old version alive for the rest of its warm time",
    Phase.DRAIN: "drain and end the old version",
    Phase.REVERT: "send all traffic back to the old version, durably",
    Phase.DRAIN_REVERTED: "drain and end the new version",
    Phase.UNSTAGE: "take staging's part of the traffic away, and end its instance",
}
"""What the activity of each phase does, in words."""

IN_PROGRESS = frozenset(
    {
        Phase.PREFLIGHT,
        Phase.LAUNCH,
        Phase.SMOKE,
        Phase.HEALTH,
        Phase.AWAITING_SWITCH,
        Phase.RAMP,
        Phase.SWITCH,
        Phase.UNSTAGE,
        Phase.REVERT,
    }
)
"""Phases in which the deploy is in progress: a second one is refused."""

SHARES = frozenset({Phase.AWAITING_SWITCH, Phase.RAMP})
"""Phases in which staging may have a part of the traffic; they go on after a kill or a reload."""

FLIPS = frozenset({Phase.SWITCH, Phase.REVERT})
"""Phases whose activity moves all traffic to the other slot: short, and never interrupted."""

KEPT_DURING_FLIP = {
    Phase.SWITCH: frozenset({Event.STAGING_DIED, Event.SUPERVISOR_STOPPED}),
    Phase.REVERT: frozenset({Event.ACTIVE_DIED, Event.SUPERVISOR_STOPPED}),
}
"""What is accepted during a flip, and waits for the phase that follows.

Roles are those before the flip: both deaths are of the deployed version. If it is active in the
phase that follows, `staging_died` is `active_died` there.
"""

UNTIL_BEGUN = {Phase.DRAIN: frozenset({Event.ACTIVE_DIED, Event.ROLLBACK_REQUESTED})}
"""Rows that apply only as long as the activity of their phase has not begun."""

STEP_OF = {
    Phase.PREFLIGHT: StepName.PREFLIGHT,
    Phase.LAUNCH: StepName.LAUNCH,
    Phase.SMOKE: StepName.SMOKE,
    Phase.HEALTH: StepName.HEALTH,
    Phase.RAMP: StepName.SWITCH,
    Phase.SWITCH: StepName.SWITCH,
    Phase.GUARD: StepName.GUARD,
    Phase.DRAIN: StepName.DRAIN,
    Phase.DRAIN_REVERTED: StepName.DRAIN,
}
"""Phases whose activity is a step of the record; of a ramp only if no switch follows."""


def step(plan: Plan, phase: Phase, event: Event) -> Row:
    """Return the transition that follows. Raises NotPossibleError."""
    for row in TABLE:
        if row.phase is phase and row.event is event and plan.meets(row.when):
            return row
    raise NotPossibleError(f"{event} is not possible in {phase}")


def possible(plan: Plan, phase: Phase, event: Event) -> bool:
    """Return whether the event has a row in this phase."""
    return any(row.phase is phase and row.event is event and plan.meets(row.when) for row in TABLE)


def demands_of(plan: Plan, row: Row, cause: Event | None) -> tuple[Consequence, ...]:
    """Return the records that a transition demands; `cause` is the event that led to the revert.

    A rollback that was requested is audited by its request, with its actor. One that launched its
    version again, and whose version did not pass, has failed. No recycle disables deploys.
    """
    demands = row.demands
    if plan.recycle:
        demands = tuple(each for each in demands if each is not Consequence.SINGLE_MODE)
    if plan.rollback:
        failed = {Consequence.ROLLBACK_UNNEEDED_AUDITED: Consequence.ROLLBACK_FAILURE_AUDITED}
        demands = tuple(failed.get(each, each) for each in demands)
    if cause is not Event.ROLLBACK_REQUESTED:
        return demands
    by_request = {Consequence.ROLLBACK_AUDITED, Consequence.ROLLBACK_FAILURE_AUDITED}
    return tuple(each for each in demands if each not in by_request)


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


def succeeded(phase: Phase, event: Event) -> bool:
    """Return whether the step of a phase that ends by the event has succeeded."""
    cut_short = event is Event.SUPERVISOR_STOPPED and phase in AFTER_SWITCH
    return cut_short or event in {Event.PASSED, Event.SUPERSEDED}


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
"""Phases that only clean up: their failure is shown in their step and is not the reason."""


def explains(phase: Phase, event: Event) -> bool:
    """Return whether the cause of the event, in this phase, becomes the deploy's reason."""
    if event is Event.SUPERVISOR_STOPPED:
        return phase not in AFTER_SWITCH | _TIDYING
    return event in _EXPLAINED and not (event is Event.FAILED and phase in _TIDYING)
