from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_supervisor.canary.stats.counts import Draws
from atlas_supervisor.canary.stats.sample_ratio import check_ratio
from tests.unit.supervisor.canary.stats.support import binomial, most_by_chance, seeded


def test_no_assignments_fit() -> None:
    check = check_ratio(Draws({0.1: (0, 0)}))

    assert check.fits
    assert (check.expected, check.observed) == (None, None)


def test_assignments_by_the_share_fit() -> None:
    assert check_ratio(Draws({0.1: (103, 897), 0.5: (490, 510)})).fits


@pytest.mark.parametrize(
    ("share", "canary", "stable"), [(0.1, 30, 70), (0.1, 1_300, 8_700), (0.5, 505_000, 495_000)]
)
def test_assignments_off_the_share_do_not_fit(share: float, canary: int, stable: int) -> None:
    check = check_ratio(Draws({share: (canary, stable)}))

    assert not check.fits
    assert check.expected == pytest.approx(share)
    assert check.observed == pytest.approx(canary / (canary + stable))


def test_an_arm_that_reports_less_shows_among_the_unreported() -> None:
    assert not check_ratio(Draws({0.1: (20, 0)})).fits


@settings(deadline=None)
@given(st.floats(0.001, 0.999), st.integers(0, 10**7), st.integers(0, 10**7))
def test_any_counts_give_a_finite_e_value(share: float, canary: int, stable: int) -> None:
    check = check_ratio(Draws({share: (canary, stable)}))

    assert math.isfinite(check.e_value)
    assert check.e_value >= 0


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.integers(0, 100), st.integers(0, 100))
def test_the_next_assignment_has_an_expected_factor_of_one(
    share: float, canary: int, stable: int
) -> None:
    now, with_canary, with_stable = (
        check_ratio(Draws({share: (canary + one, stable + other)})).e_value
        for one, other in ((0, 0), (1, 0), (0, 1))
    )

    assert share * with_canary + (1 - share) * with_stable == pytest.approx(now, rel=1e-6)


def test_false_alarms_stay_below_alpha_under_continuous_checks() -> None:
    rng, wrong = seeded(8), 0
    for _ in range(100):
        canary = stable = 0
        for _ in range(50):
            more = binomial(rng, 40, 0.1)
            canary, stable = canary + more, stable + 40 - more
            if not check_ratio(Draws({0.1: (canary, stable)}), alpha=0.05).fits:
                wrong += 1
                break

    assert wrong <= most_by_chance(100, 0.05)


def test_draws_add_up_by_share_and_can_be_restored() -> None:
    draws = Draws()
    for share, count, canary in ((0.1, 3, True), (0.1, 30, False), (0.5, 7, True), (1, 9, True)):
        draws.add(share, count, canary=canary)
    draws.add(0.1, 2, canary=True)

    assert draws.by_share == {0.1: (5, 30), 0.5: (7, 0)}
    assert Draws.from_list(draws.to_list()) == draws
