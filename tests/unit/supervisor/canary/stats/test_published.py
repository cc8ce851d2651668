"""Our e-values beside those of confseq 0.0.11 and the published formulas of safestats.

The numbers were computed once by `confseq.betting.betting_mart` and by
`confseq.boundaries.beta_binomial_log_mixture`. safestats is R: its formulas are written out here.
"""

from __future__ import annotations

import math

import pytest

from atlas_supervisor.canary.stats.bets import (
    RISK_RATIOS,
    Mixture,
    Outcomes,
    arm_bets,
    log_factors,
    nearest_stable_rate,
    rate_bets,
)
from atlas_supervisor.canary.stats.counts import Arm, Draws
from atlas_supervisor.canary.stats.intervals import wilson
from atlas_supervisor.canary.stats.sample_ratio import check_ratio

ARMS = [0, 0, 1, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1]
"""The arms of failed calls, 1 for the canary, at a share of 0.2."""

BETTING_MART = {2.0: 51.524055910298884, 3.0: 165.3416245203838, 5.0: 182.4315422256309}
"""Its capital on the mean of ARMS being 0.2, with the bet that each risk ratio means."""

MIXTURES = {
    (30, 70): (1.214720448068313, 0.21671824828905528, 0.002434485351841431),
    (260, 740): (7.98303746425907, 5.032237900041309, 0.1052168165333569),
    (5200, 20800): (-3.9752302100525583, -1.6483397289021013, -0.11555676357966149),
}
"""Its logarithm of the mixture for canary and stable calls at a share of 0.2, by concentration."""


def test_bets_on_the_arm_of_a_failed_call_are_those_of_confseq() -> None:
    canary = sum(ARMS)
    calls = Outcomes(canary, 0, len(ARMS) - canary, 0)

    logs = dict(zip(RISK_RATIOS, log_factors(arm_bets(0.2), calls), strict=True))
    capital = {ratio: math.exp(logs[ratio]) for ratio in BETTING_MART}

    assert capital == pytest.approx(BETTING_MART, rel=1e-9)


@pytest.mark.parametrize("calls", list(MIXTURES))
def test_the_sample_ratio_check_is_the_mixture_of_confseq(calls: tuple[int, int]) -> None:
    expected = sum(math.exp(log) for log in MIXTURES[calls]) / 3

    assert check_ratio(Draws({0.2: calls})).e_value == pytest.approx(expected, rel=1e-9)


def two_proportions(ya: int, na: int, yb: int, nb: int, rates: tuple[float, float]) -> float:
    """Return the e-value of safestats' `calculateETwoProportions` for a block, point alternative.

    Turner, Ly and Grünwald (2021), equation 2: the likelihood of the alternative over that of the
    mean of its rates, weighted by the sizes of the groups.
    """
    a, b = rates
    null = (na * a + nb * b) / (na + nb)
    alternative = a**ya * (1 - a) ** (na - ya) * b**yb * (1 - b) ** (nb - yb)
    return alternative / (null ** (ya + yb) * (1 - null) ** (na + nb - ya - yb))


@pytest.mark.parametrize("rate", [0.01, 0.05])
@pytest.mark.parametrize(
    ("ya", "na", "yb", "nb"), [(3, 20, 2, 80), (0, 10, 1, 40), (7, 50, 9, 200)]
)
def test_bets_on_rates_are_those_of_safestats_for_two_proportions(
    ya: int, na: int, yb: int, nb: int, rate: float
) -> None:
    share = na / (na + nb)
    logs = log_factors(rate_bets(share, rate), Outcomes(ya, na - ya, yb, nb - yb))
    for ratio, log in zip(RISK_RATIOS, logs, strict=True):
        stable = rate / (share * ratio + 1 - share)
        expected = two_proportions(ya, na, yb, nb, (min(ratio * stable, 0.999), stable))
        assert math.exp(log) == pytest.approx(expected, rel=1e-9)


def test_the_nearest_pair_of_rates_is_that_of_safestats_for_a_difference() -> None:
    """Its projection on a line of a given difference, by a search on a fine grid."""
    share, rate, margin = 0.2, 0.05, 0.02

    def divergence(stable: float) -> float:
        pairs = ((share, stable + margin), (1 - share, stable))
        return sum(
            part * (rate * math.log(rate / q) + (1 - rate) * math.log((1 - rate) / (1 - q)))
            for part, q in pairs
        )

    low, high = 0.03, 0.05
    for _ in range(200):  # golden sections
        one, other = high - 0.618034 * (high - low), low + 0.618034 * (high - low)
        low, high = (low, other) if divergence(one) < divergence(other) else (one, high)
    nearest = nearest_stable_rate(rate, rate, margin, share)

    assert nearest == pytest.approx(low, abs=1e-7)  # as far as differences of logarithms go
    assert divergence(nearest) <= divergence(low) + 1e-15


def test_a_mixture_is_the_mean_of_its_bets() -> None:
    mixture = Mixture([0.25, 0.75], started=0.9)
    mixture.multiply([math.log(2), math.log(0.5)])
    mixture.start(0.95)
    mixture.multiply([math.log(4), math.log(3)])
    expected = (0.225 * 2 + 0.0125) * 4 + (0.675 * 0.5 + 0.0375) * 3 + 0.05

    assert math.exp(mixture.log_e) == pytest.approx(expected, rel=1e-12)


def test_wilsons_interval_is_that_of_its_formula() -> None:
    calls, failed, z = 263, 81, 1.959963984540054
    rate, square = failed / calls, z * z
    middle = (rate + square / (2 * calls)) / (1 + square / calls)
    half = z * math.sqrt(rate * (1 - rate) / calls + square / (4 * calls**2)) / (1 + square / calls)
    found = wilson(Arm(calls, failed))

    assert found is not None
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), rel=1e-9)
