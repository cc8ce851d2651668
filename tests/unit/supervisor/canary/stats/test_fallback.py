from __future__ import annotations

import pytest

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.fallback import Fallback


@pytest.mark.parametrize(
    ("canary", "latch"),
    [
        (Arm(), False),
        (Arm(19, 19), False),  # too few are known
        (Arm(20, 3), False),  # just at the threshold
        (Arm(20, 4), True),
        (Arm(1000, 150), False),
        (Arm(1000, 151), True),
    ],
)
def test_it_latches_over_the_threshold_once_enough_is_known(canary: Arm, latch: bool) -> None:
    assert Fallback(0.15, 20).decide(canary, Arm(100)).latch is latch


def test_it_shows_both_arms() -> None:
    decision = Fallback().decide(Arm(100, 20), Arm(900, 9))

    assert decision.reason == (
        "20.0 % of 100 canary calls failed, more than 15.0 %; of 900 stable calls 1.0 %"
    )


def test_when_both_arms_fail_it_says_that_the_canary_may_not_be_to_blame() -> None:
    decision = Fallback().decide(Arm(100, 20), Arm(900, 300))

    assert decision.latch
    assert decision.reason.endswith("both arms fail, so the canary may not be to blame")


def test_it_says_that_it_waits_for_more() -> None:
    decision = Fallback().decide(Arm(4, 4), Arm())

    assert decision.reason == "4 of the 20 canary calls that it takes are known"


def test_it_says_that_nothing_is_known_of_stable() -> None:
    assert "no stable calls are known" in Fallback().decide(Arm(20, 20), Arm()).reason


def test_with_no_minimum_nothing_known_latches_nothing() -> None:
    assert not Fallback(0.15, 0).decide(Arm(), Arm()).latch
