from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.intervals import (
    Interval,
    difference,
    quantile,
    stratified_difference,
    wilson,
)
from atlas_supervisor.model.histogram import Histogram
from atlas_worker.contract import latency_bucket
from tests.unit.supervisor.canary.stats.support import binomial, seeded


@st.composite
def arms(draw: st.DrawFn) -> Arm:
    calls = draw(st.integers(1, 10**7))
    return Arm(calls, draw(st.integers(0, calls)))


def test_wilsons_interval_matches_newcombes_table() -> None:
    """Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3."""
    found = wilson(Arm(263, 81))

    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(
    ("canary", "stable", "low", "high"),
    [
        (Arm(70, 56), Arm(80, 48), 0.0524, 0.3339),
        (Arm(10, 9), Arm(10, 3), 0.1705, 0.8090),
        (Arm(10, 0), Arm(20, 0), -0.1611, 0.2775),
        (Arm(10, 10), Arm(10, 0), 0.6075, 1.0000),
    ],
)
def test_the_difference_matches_newcombes_table(
    canary: Arm, stable: Arm, low: float, high: float
) -> None:
    """Newcombe (1998), Statistics in Medicine 17, 873-890, table II, method 10."""
    found = difference(canary, stable)

    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@settings(deadline=None)
@given(arms(), arms())
def test_an_interval_contains_its_estimate_and_stays_in_range(one: Arm, other: Arm) -> None:
    rate, by = wilson(one), difference(one, other)

    assert rate is not None
    assert by is not None
    assert 0 <= rate.low <= rate.estimate <= rate.high <= 1
    assert -1 <= by.low <= by.estimate <= by.high <= 1


@settings(deadline=None)
@given(arms(), arms())
def test_swapped_arms_give_the_opposite_difference(one: Arm, other: Arm) -> None:
    there, back = difference(one, other), difference(other, one)

    assert there is not None
    assert back is not None
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_there_is_no_interval_without_calls() -> None:
    assert wilson(Arm()) is None
    assert difference(Arm(), Arm(5)) is None
    assert stratified_difference([]) is None
    assert stratified_difference([(Arm(5), Arm()), (Arm(), Arm(5))]) is None


def test_an_interval_without_errors_has_a_width() -> None:
    found = stratified_difference([(Arm(10), Arm(90)), (Arm(50), Arm(50))])

    assert found is not None
    assert found.low < 0 == found.estimate < found.high


def test_an_epoch_that_lacks_an_arm_changes_nothing() -> None:
    epoch = (Arm(100, 3), Arm(900, 10))

    assert stratified_difference([epoch, (Arm(), Arm(50, 50))]) == difference(*epoch)


def test_epochs_with_other_rates_and_shares_do_not_bias_the_difference() -> None:
    """Simpson's paradox: equal in each step, three times as bad when pooled."""
    steps = [(Arm(100, 1), Arm(9_900, 99)), (Arm(5_000, 500), Arm(5_000, 500))]

    apart = stratified_difference(steps)
    together = difference(Arm(5_100, 501), Arm(14_900, 599))

    assert apart is not None
    assert together is not None
    assert apart.estimate == pytest.approx(0)
    assert apart.low < 0 < apart.high
    assert together.low > 0.04


@pytest.mark.parametrize("true", [0.0, 0.03])
def test_the_stratified_interval_has_its_nominal_coverage(true: float) -> None:
    rng, epochs = seeded(7), [(0.05, 400, 0.005), (0.25, 400, 0.02), (0.5, 400, 0.1)]

    def found() -> Interval:
        strata = []
        for share, calls, rate in epochs:
            canary = binomial(rng, calls, share)
            failed = binomial(rng, canary, rate + true)
            stable = Arm(calls - canary, binomial(rng, calls - canary, rate))
            strata.append((Arm(canary, failed), stable))
        interval = stratified_difference(strata)
        assert interval is not None
        return interval

    held = sum(interval.low <= true <= interval.high for interval in (found() for _ in range(800)))

    assert 0.92 * 800 < held <= 0.995 * 800


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_an_invalid_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson(Arm(10, 1), confidence)


def test_a_quantile_has_an_interval_unless_there_are_too_few_calls() -> None:
    latency = Histogram((300 + each, 1) for each in range(100))

    found = quantile(latency, 0.5)

    assert found is not None
    # Conover (1999), section 3.2: the ranks are 40 and 61 for n = 100 and 95 %.
    assert (found.low, found.high) == tuple(latency.quantiles(0.4, 0.61))
    assert found.low < found.estimate < found.high
    assert quantile(latency, 0.99) is None
    assert quantile(Histogram(), 0.5) is None


def test_the_interval_of_a_quantile_covers_it() -> None:
    rng = seeded(7)
    covered = 0
    for _ in range(300):
        latency = Histogram((latency_bucket(rng.expovariate(1 / 50)), 1) for _ in range(200))
        found = quantile(latency, 0.95)
        assert found is not None
        covered += found.low * 0.99 <= 50 * math.log(20) <= found.high * 1.01
    assert covered >= 0.92 * 300
