"""The ramp: a pure state machine of one feature's share.

An operator's action, a step's time or a verdict goes in; the feature's next state comes out, or
None if nothing changes. An action that asks for the present state changes nothing. Beside it is the
fallback, a rule over all features.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.decision import Conclusion, Decision
from atlas_supervisor.canary.stats.explain import needed, percent, too_few_keys
from atlas_supervisor.model.verdict import Verdict

NO_STEPS = "set CANARY_RAMP, for instance to 0.05,0.25,1, then atlasctl reload"

_COUNTED_AWAY_SECONDS = 60.0
"""The most of the time without a daemon that counts for a step's time."""


class Stage(StrEnum):
    """The stage of a feature's canary."""

    STEADY = "steady"
    """At the share of the settings or of an operator."""
    RAMPING = "ramping"
    PAUSED = "paused"
    """Ramping, but stays on its step until it is resumed. Evidence goes on."""
    PROMOTED = "promoted"
    """All calls go to the canary."""
    ROLLED_BACK = "rolled_back"
    """No call goes to the canary, until an operator starts it again."""


class Action(StrEnum):
    """An operator's action on a ramp."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    ADVANCE = "advance"
    PROMOTE = "promote"
    ROLLBACK = "rollback"


class RampError(Exception):
    """The action is not possible now; `hint` says what is."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Feature(BaseModel, frozen=True, extra="ignore"):
    """A feature's canary as it is saved. Times are Unix seconds."""

    name: str
    stage: Stage = Stage.STEADY
    percentage: float
    """The share while steady, 0 to 1."""
    own_percentage: bool = False
    """Whether an operator has set it; else it follows the settings."""
    step: int = 0
    step_since: float = 0.0
    reason: str = ""
    """Why it was promoted or rolled back."""
    ramp: int = 0
    """The ramp that its evidence belongs to: the number of its first epoch."""
    epoch: int = 0

    @property
    def ramps(self) -> bool:
        """Whether it is on a step of a ramp."""
        return self.stage in (Stage.RAMPING, Stage.PAUSED)

    def share(self, steps: tuple[float, ...]) -> float:
        """Return the canary's share in this stage; `steps` are the shares of a ramp."""
        if self.stage is Stage.STEADY:
            return self.percentage
        if self.ramps:
            return steps[min(self.step, len(steps) - 1)] if steps else self.percentage
        return 1.0 if self.stage is Stage.PROMOTED else 0.0


@dataclass(frozen=True)
class Rules:
    """The settings of ramps."""

    steps: tuple[float, ...]
    step_seconds: float
    least_calls: int
    """Canary calls needed on each step."""

    @property
    def last(self) -> int:
        """The last step below a share of 1; after it comes the promotion."""
        below = [step for step in self.steps if step < 1]
        return len(below) - 1

    def last_share(self, feature: Feature) -> float | None:
        """Return the last share below 1 of a feature's ramp; None if it is in none."""
        return self.steps[self.last] if feature.ramps and self.last >= 0 else None


@dataclass(frozen=True)
class Change:
    """The next state of a feature."""

    feature: Feature
    why: str
    fresh: bool = False
    """Whether its evidence starts anew."""


def act(feature: Feature, action: Action, rules: Rules, now: float, who: str) -> Change | None:
    """Return the effect of an operator's action. Raises RampError."""
    if action is Action.START:
        return None if feature.ramps else _start(feature, rules, now, who)
    if action is Action.PROMOTE:
        return _to(feature, Stage.PROMOTED, f"promoted by {who}")
    if action is Action.ROLLBACK:
        return _to(feature, Stage.ROLLED_BACK, f"rolled back by {who}")
    if not feature.ramps:
        raise RampError(
            f"{feature.name} is {feature.stage.replace('_', ' ')}: no ramp is in progress",
            "start one first",
        )
    if action is Action.PAUSE:
        return _to(feature, Stage.PAUSED, f"paused by {who}")
    if action is Action.RESUME:
        return _to(feature, Stage.RAMPING, f"resumed by {who}")
    if feature.step >= rules.last:
        raise RampError(
            f"{feature.name} is on the last step of its ramp",
            "promote gives it all calls without waiting for evidence",
        )
    return _advance(feature, now, f"advanced by {who}")


def judge_ramp(
    feature: Feature, conclusion: Conclusion | None, calls_on_step: int, rules: Rules, now: float
) -> Change | None:
    """Return the effect of the evidence and of the step's time."""
    if feature.stage in (Stage.PROMOTED, Stage.ROLLED_BACK):
        return None
    if conclusion and conclusion.verdict is Verdict.FAIL:
        return _to(feature, Stage.ROLLED_BACK, conclusion.reason)
    if feature.stage is not Stage.RAMPING or now - feature.step_since < rules.step_seconds:
        return None
    if feature.step < rules.last and calls_on_step >= rules.least_calls:
        return _advance(feature, now, "step time elapsed, no evidence against the canary")
    if feature.step >= rules.last and conclusion and conclusion.verdict is Verdict.PASS:
        return _to(feature, Stage.PROMOTED, conclusion.reason)
    return None


def waits_for(
    feature: Feature, decision: Decision, calls_on_step: int, rules: Rules, now: float
) -> str | None:
    """Return the condition of the next step as a sentence; None if there is no next step."""
    if feature.stage is Stage.PAUSED:
        return "paused until an operator resumes it"
    if feature.stage is not Stage.RAMPING:
        return None
    waits = []
    if (left := rules.step_seconds - (now - feature.step_since)) > 0:
        waits.append(f"{left:.0f} s more on this step")
    if feature.step < rules.last:
        if (missing := rules.least_calls - calls_on_step) > 0:
            waits.append(f"{missing} more canary calls")
        share = percent(rules.steps[feature.step + 1])
        return f"{' and '.join(waits) or 'the next check'}, then the share is {share}"
    if decision.verdict is not Verdict.PASS:
        outlook = decision.outlook
        about = "" if outlook.needs is None else f", about {needed(outlook)}".removesuffix(",")
        waits.append(f"evidence that it is no worse{about}")
        if outlook.shortage is not None:
            return f"{' and '.join(waits)}, but {too_few_keys(outlook.shortage)}"
    return f"{' and '.join(waits) or 'the next check'}, then it is promoted"


def resumed(feature: Feature, saved_at: float | None, now: float) -> Feature:
    """Return a feature that was saved by an earlier daemon, with its time on the step until then.

    Both clocks may have been set since. So the time without a daemon counts up to a limit.
    """
    last = feature.step_since if saved_at is None else max(saved_at, feature.step_since)
    away = min(max(now - last, 0.0), _COUNTED_AWAY_SECONDS)
    return feature.model_copy(update={"step_since": now - away - (last - feature.step_since)})


def set_percentage(feature: Feature, percentage: float, who: str) -> Change | None:
    """Return the feature at an operator's share; a ramp in progress ends."""
    if feature.stage is Stage.STEADY and feature.percentage == percentage:
        if feature.own_percentage:
            return None
        return Change(feature.model_copy(update={"own_percentage": True}), f"set by {who}")
    update = {"stage": Stage.STEADY, "percentage": percentage, "own_percentage": True, "reason": ""}
    return Change(feature.model_copy(update=update), f"set to {percent(percentage)} by {who}")


def reset(feature: Feature, percentage: float, who: str) -> Change:
    """Return the feature at the share of the settings; its evidence starts anew."""
    fresh = Feature(name=feature.name, percentage=percentage, epoch=feature.epoch)
    return Change(fresh, f"reset by {who}", fresh=True)


def step_anew(feature: Feature, now: float, why: str, *, fresh: bool = False) -> Change:
    """Return the feature as it is, with the time on its step beginning anew."""
    return Change(feature.model_copy(update={"step_since": now}), why, fresh=fresh)


def _start(feature: Feature, rules: Rules, now: float, who: str) -> Change:
    if rules.last < 0:
        raise RampError(
            "there are no steps to ramp through",
            NO_STEPS,
        )
    update = {"stage": Stage.RAMPING, "step": 0, "step_since": now, "reason": ""}
    return Change(feature.model_copy(update=update), f"ramp started by {who}", fresh=True)


def _advance(feature: Feature, now: float, why: str) -> Change:
    return Change(feature.model_copy(update={"step": feature.step + 1, "step_since": now}), why)


def _to(feature: Feature, stage: Stage, why: str) -> Change | None:
    if feature.stage is stage:
        return None
    reason = {"reason": why} if stage in (Stage.PROMOTED, Stage.ROLLED_BACK) else {}
    return Change(feature.model_copy(update={"stage": stage, **reason}), why)


@dataclass(frozen=True)
class Fallback:
    """Turns all canaries off when more than `threshold` of their calls failed.

    It looks at the canary arm alone, all features together, once `minimum` calls are known. So it
    also works where there is no comparison, but it gives no error probability.
    """

    threshold: float = 0.15
    minimum: int = 20

    def reason(self, canary: Arm, stable: Arm) -> str | None:
        """Return the reason to turn canaries off, by both arms' calls of the last hour, or None."""
        rate = canary.rate
        if rate is None or canary.calls < self.minimum or rate <= self.threshold:
            return None
        failed = (
            f"{percent(rate)} of {canary.calls} canary calls failed, "
            f"more than {percent(self.threshold)}"
        )
        if stable.rate is None:
            return f"{failed}; no stable calls"
        failed += f"; stable: {percent(stable.rate)} of {stable.calls}"
        if stable.rate > self.threshold:
            failed += "; both arms fail, so the canary may not be the cause"
        return failed
