"""The promises, through real windows, judge and ramp.

This is a sample of `./scripts/bench canary-adversaries`.

The seeds are fixed. Each of these adversaries breaks a simpler way of counting: by completion, by
a key's first end, by calls instead of keys, or by what has been reported.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from atlas_supervisor.canary.stats.ramp import Stage, waits_for
from tests.unit.supervisor.canary.fakes import (
    NO_WORSE,
    ONE_STEP,
    Begun,
    Call,
    Hanging,
    Returning,
    ReturningKeys,
    Story,
    played,
    service,
)
from tests.unit.supervisor.canary.stats.support import seeded

SHARP = (
    "good canary calls take longer",
    "recorded: canary fails sooner",
    "recorded: canary is five times slower",
    "overlapping keys",
    "overlapping keys that fail last",
    "heavy keys",
    "canary outcomes are lost",
    "promoted without outcomes",
)


@pytest.mark.parametrize("name", SHARP)
def test_a_canary_that_is_no_worse_is_rarely_judged_wrongly(name: str) -> None:
    adversary = NO_WORSE[name]

    assert (
        sum(played(adversary, seed, 100).feature.stage is adversary.wrong for seed in range(3)) <= 1
    )


class Bad(Hanging):
    """One canary call in five fails; one call in two hundred hangs."""

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        rate = 0.2 if canary else 0.01
        return Call(0.05, self.rng.random() < rate, hangs=self.rng.random() < 0.005)


def test_a_bad_canary_is_found_in_seconds_while_calls_hang() -> None:
    found = service(Bad(seeded(1)))
    assert found.play() is Stage.ROLLED_BACK

    assert found.second < 30  # the first hanging call times out after 60


class HangingCanary(Story):
    """Every canary call hangs."""

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        return Call(0.05, failed=False, hangs=canary and second > 20)


def test_a_canary_that_hangs_is_found_by_its_open_calls() -> None:
    found = service(HangingCanary(seeded(1)))
    assert found.play() is Stage.ROLLED_BACK

    assert found.second < 45
    percents = re.findall(r"([\d.]+) % of", found.changes[-1])
    assert float(percents[0]) > 10 * float(percents[1])


class TurnsBad(ReturningKeys):
    """The same three hundred users all the time; the canary fails 12 % more from step two on."""

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        rate = 0.13 if canary and second > 30 else 0.01
        return Call(0.05, self.rng.random() < rate)


def test_a_canary_of_returning_keys_leaves_its_first_step_and_is_found() -> None:
    steps = {"canary_ramp": (0.05, 0.25, 0.5, 1.0)}
    found = service(TurnsBad(seeded(2)), **steps)
    assert found.play() is Stage.ROLLED_BACK

    assert found.feature.step >= 1


class GoodKeys(ReturningKeys):
    """Three hundred users come back, and neither arm fails."""

    def outcome(self, begun: Begun, second: float, *, canary: bool) -> Call:
        return Call(0.05, failed=False)


def test_a_status_forecasts_no_calls_once_every_key_has_counted() -> None:
    found = service(GoodKeys(seeded(3)), **ONE_STEP, canary_promote_alpha=1e-9)
    found.play()
    decision = found.evidence.decision("vision")

    assert decision.needs is None
    assert "keys count anew at the next step, or within 24 h" in decision.reason


def test_keys_count_anew_each_day() -> None:
    found = service(GoodKeys(seeded(3)), **ONE_STEP, canary_promote_alpha=1e-9)
    found.play()
    before = found.evidence.decision("vision").numbers["canary"]["calls"]
    found.now += 2 * 86_400
    found.story.seconds = found.second + 60
    found.play()

    assert found.evidence.decision("vision").numbers["canary"]["calls"] > 1.8 * before


LONG = {"canary_ramp": (0.05, 0.25, 0.5, 0.75, 0.9, 1.0), "canary_alpha": 0.01}
SHORT = {"canary_ramp": (0.05, 0.25, 1.0), "canary_alpha": 0.01}
DAY = 86_400.0


def returning(**changes: object) -> Returning:
    """Return three hundred users who come back, for four days."""
    story = Returning(seeded(4))
    story.seconds = 4 * DAY
    vars(story).update(changes)
    return story


def test_returning_users_promote_a_good_canary_whose_steps_take_a_day_each() -> None:
    story = returning(stable_rate=0.0, seconds=6 * DAY)
    found = service(story, **LONG, canary_step_seconds=DAY)

    assert found.play() is Stage.PROMOTED
    assert found.second > 4 * DAY


def test_users_of_whom_some_always_fail_are_not_promoted_by_waiting() -> None:
    found = [
        service(returning(rng=seeded(seed), stable_rate=0.0, always=0.02), **SHORT)
        for seed in range(4)
    ]

    assert Stage.PROMOTED not in [each.play() for each in found]


def test_a_status_of_returning_users_never_waits_for_calls_that_can_not_come() -> None:
    found = service(returning(stable_rate=0.0), **SHORT)
    texts = []
    while found.second < 3 * DAY:
        found.step()
        found.story.interfere(found)
        decision = found.evidence.decision("vision", found.rules.last_share(found.feature))
        calls = found.evidence.step_calls(found.feature.epoch)
        waits = waits_for(found.feature, decision, calls, found.rules, found.unix)
        texts.append((found.second, decision.needs, f"{waits}; {decision.reason}"))

    assert all("new keys" in text for _, needs, text in texts if needs is not None)
    late = [each for each in texts if each[0] > 2 * DAY]
    assert all(needs is None for _, needs, _ in late)
    assert all(" keys are too few for a verdict at 25.0 %" in text for _, _, text in late)
    assert "or a share of" in late[0][2]


def test_a_ramp_that_a_longer_one_continues_promotes_returning_users() -> None:
    found = service(returning(stable_rate=0.0), **SHORT)
    found.story.seconds = DAY
    assert found.play() is Stage.RAMPING

    found.rules = replace(found.rules, steps=(0.05, 0.25, 0.5, 0.75, 1.0))
    found.settings = found.settings.model_copy(update={"canary_ramp": found.rules.steps})
    found.story.seconds = 3 * DAY
    assert found.play() is Stage.PROMOTED
    assert found.feature.step == 3
