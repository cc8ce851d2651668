from __future__ import annotations

import pytest

from atlas_supervisor.canary.stats.decision import needed_in_ramp
from atlas_supervisor.canary.stats.plan import promoted, steps_of

SHORT, LONG = (0.05, 0.25, 1.0), (0.05, 0.25, 0.5, 0.75, 0.9, 1.0)


def of(keys: int, ramp: tuple[float, ...], rate: float) -> float:
    below = [share for share in ramp if share < 1]
    return promoted(keys, below, rate, margin=0.02, needed=needed_in_ramp(0.05))


def test_three_hundred_keys_promote_no_good_canary_on_a_short_ramp_and_every_one_on_a_long() -> (
    None
):
    assert of(300, SHORT, 0.0) == 0
    assert of(300, LONG, 0.0) == 1
    assert 0.2 < of(300, LONG, 0.01) < 0.5
    assert of(1_000_000, SHORT, 0.01) == 1


def test_a_step_draws_the_keys_that_are_still_stable_with_the_chance_that_they_had() -> None:
    steps = [*steps_of((0.05, 0.24, 0.24))]

    assert [step.chance for step in steps] == [0.05, pytest.approx((0.24 - 0.05) / 0.95)]
    assert [step.is_last for step in steps] == [False, True]
