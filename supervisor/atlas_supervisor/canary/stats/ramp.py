"""What share of calls a feature's canary has, and what changes that: a small pure machine.

An operator asks for something, or evidence comes in; the answer is the feature's next state. All
of it is idempotent: asked for what is so already, nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from atlas_supervisor.canary.stats.decision import Decision
from atlas_supervisor.canary.stats.explain import percent
from atlas_supervisor.model.verdict import Verdict


class Stage(StrEnum):
    """Where a feature's canary is."""

    STEADY = "steady"
    """At a share that the settings or an operator gave it."""
    RAMPING = "ramping"
    PAUSED = "paused"
    """It ramps, and stays on its step until it is resumed. Evidence goes on."""
    PROMOTED = "promoted"
    """All calls go to the canary."""
    ROLLED_BACK = "rolled_back"
    """No call goes to the canary, until an operator says otherwise."""


class Action(StrEnum):
    """What can be asked of a ramp."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    ADVANCE = "advance"
    PROMOTE = "promote"
    ROLLBACK = "rollback"


class RampError(Exception):
    """The action makes no sense as things are; the text says why, `hint` what can be done."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Feature(BaseModel):
    """A feature's canary as it is written down. Times are seconds since the epoch (wall clock)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    stage: Stage = Stage.STEADY
    percentage: float
    """The share when it is steady, 0 to 1."""
    own_percentage: bool = False
    """Whether an operator has set it; else it follows the settings."""
    step: int = 0
    step_since: float = 0.0
    reason: str = ""
    """Why it is promoted or rolled back, in words."""
    ramp: int = 0
    """The ramp that its evidence belongs to: the number of the first epoch in it."""
    epoch: int = 0

    def share(self, steps: tuple[float, ...]) -> float:
        """Return the share that its stage gives it, `steps` being those of a ramp."""
        if self.stage is Stage.STEADY:
            return self.percentage
        if self.stage in (Stage.RAMPING, Stage.PAUSED):
            return steps[min(self.step, len(steps) - 1)] if steps else self.percentage
        return 1.0 if self.stage is Stage.PROMOTED else 0.0


@dataclass(frozen=True)
class Rules:
    """What the settings say about ramps."""

    steps: tuple[float, ...]
    step_seconds: float
    least_calls: int
    """Canary calls that a step must have seen."""

    @property
    def last(self) -> int:
        """The last step below a share of 1; what follows is the promotion."""
        below = [step for step in self.steps if step < 1]
        return len(below) - 1


@dataclass(frozen=True)
class Next:
    """What follows for a feature, if anything does: its state, and why."""

    feature: Feature
    why: str
    fresh: bool = False
    """Whether its evidence begins anew."""


def act(feature: Feature, action: Action, rules: Rules, now: float, who: str) -> Next | None:
    """Return what an operator's action leads to; None if it is so already. Raises RampError."""
    under_way = feature.stage in (Stage.RAMPING, Stage.PAUSED)
    if action is Action.START:
        return None if under_way else _started(feature, rules, now, who)
    if action is Action.PROMOTE:
        return _to(feature, Stage.PROMOTED, f"promoted by {who}")
    if action is Action.ROLLBACK:
        return _to(feature, Stage.ROLLED_BACK, f"rolled back by {who}")
    if not under_way:
        raise RampError(
            f"{feature.name} is {feature.stage.replace('_', ' ')}: no ramp is under way",
            "start one first",
        )
    if action is Action.PAUSE:
        return _to(feature, Stage.PAUSED, f"paused by {who}")
    if action is Action.RESUME:
        return _to(feature, Stage.RAMPING, f"resumed by {who}")
    if feature.step >= rules.last:
        raise RampError(
            f"{feature.name} is on the last step of its ramp",
            "promote gives it all calls, whatever the evidence says",
        )
    return _advanced(feature, now, f"advanced by {who}")


def judge_ramp(
    feature: Feature, judgement: Decision, calls_on_step: int, rules: Rules, now: float
) -> Next | None:
    """Return what the evidence leads to; None if all stays as it is."""
    if feature.stage in (Stage.PROMOTED, Stage.ROLLED_BACK):
        return None
    if judgement.verdict is Verdict.FAIL:
        return _to(feature, Stage.ROLLED_BACK, judgement.reason)
    if feature.stage is Stage.RAMPING and now - feature.step_since >= rules.step_seconds:
        return _after_its_time(feature, judgement, calls_on_step, rules, now)
    return None


def _after_its_time(
    feature: Feature, judgement: Decision, calls_on_step: int, rules: Rules, now: float
) -> Next | None:
    if feature.step < rules.last:
        if calls_on_step < rules.least_calls:
            return None
        return _advanced(feature, now, "the step's time is over and nothing speaks against it")
    if judgement.verdict is Verdict.PASS:
        return _to(feature, Stage.PROMOTED, judgement.reason)
    return None


def waits_for(
    feature: Feature, judgement: Decision, calls_on_step: int, rules: Rules, now: float
) -> str | None:
    """Return what a feature waits for, in words; None if it waits for nothing."""
    if feature.stage is Stage.PAUSED:
        return "it is paused: an operator resumes it"
    if feature.stage is not Stage.RAMPING:
        return None
    waits = []
    if (left := rules.step_seconds - (now - feature.step_since)) > 0:
        waits.append(f"{left:.0f} s more on this step")
    if feature.step < rules.last:
        if (missing := rules.least_calls - calls_on_step) > 0:
            waits.append(f"{missing} more canary calls")
        following = percent(rules.steps[feature.step + 1])
        return f"{' and '.join(waits) or 'the next look'}, then the share is {following}"
    if judgement.verdict is not Verdict.PASS:
        about = "" if judgement.needs is None else f", about {judgement.needs} more canary calls"
        waits.append(f"evidence that it is no worse{about}")
    return f"{' and '.join(waits) or 'the next look'}, then it is promoted"


def set_percentage(feature: Feature, percentage: float, who: str) -> Next | None:
    """Return the feature at a share of its own; its ramp is over."""
    if feature.stage is Stage.STEADY and feature.percentage == percentage:
        if feature.own_percentage:
            return None
        return Next(feature.model_copy(update={"own_percentage": True}), f"set by {who}")
    changed = {"stage": Stage.STEADY, "percentage": percentage, "own_percentage": True}
    after = feature.model_copy(update={**changed, "reason": ""})
    return Next(after, f"set to {percent(percentage)} by {who}")


def reset(feature: Feature, percentage: float, who: str) -> Next:
    """Return the feature as the settings have it, with evidence that begins anew."""
    fresh = Feature(name=feature.name, percentage=percentage, epoch=feature.epoch)
    return Next(fresh, f"reset by {who}", fresh=True)


def _started(feature: Feature, rules: Rules, now: float, who: str) -> Next:
    if rules.last < 0:
        raise RampError(
            "there are no steps to ramp through",
            "set CANARY_RAMP, for instance to 0.05,0.25,1, and restart the daemon",
        )
    changed = {"stage": Stage.RAMPING, "step": 0, "step_since": now, "reason": ""}
    return Next(feature.model_copy(update=changed), f"ramp started by {who}", fresh=True)


def _advanced(feature: Feature, now: float, why: str) -> Next:
    return Next(feature.model_copy(update={"step": feature.step + 1, "step_since": now}), why)


def _to(feature: Feature, stage: Stage, why: str) -> Next | None:
    if feature.stage is stage:
        return None
    said = {"reason": why} if stage in (Stage.PROMOTED, Stage.ROLLED_BACK) else {}
    return Next(feature.model_copy(update={"stage": stage, **said}), why)
