from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_supervisor.canary.stats import promotion_evidence, rollback_evidence
from atlas_supervisor.canary.stats.counts import (
    MAX_RATE,
    MIN_RATE,
    Arm,
    Baseline,
    Prior,
    Rates,
    Window,
)
from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.canary.stats.latency_evidence import LatencyEvidence, Slow
from atlas_supervisor.canary.stats.promotion_evidence import PromotionEvidence, nearest_stable_rate
from atlas_supervisor.canary.stats.rollback_evidence import (
    RISK_RATIOS,
    RollbackEvidence,
    share_started,
)

MARGIN = 0.02
SHARES = st.floats(0.001, 0.999)
RATES = st.floats(MIN_RATE, MAX_RATE)
TRUTHS = st.floats(0, 1)
MARGINS = st.floats(0.001, 0.5)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    def arm() -> Arm:
        calls = draw(st.integers(0, 200))
        return Arm(calls, draw(st.integers(0, calls)))

    return Window(draw(SHARES), arm(), arm())


HISTORIES = st.lists(windows(), max_size=8)
MAKERS: list[Callable[[], Any]] = [
    lambda: RollbackEvidence(0.01),
    lambda: PromotionEvidence(MARGIN, 0.05),
]


def one_call(share: float, canary: float, stable: float) -> Iterator[tuple[float, Window]]:
    """Yield all possible results of one call with their probabilities."""
    yield share * canary, Window(share, Arm(1, 1), Arm())
    yield share * (1 - canary), Window(share, Arm(1, 0), Arm())
    yield (1 - share) * stable, Window(share, Arm(), Arm(1, 1))
    yield (1 - share) * (1 - stable), Window(share, Arm(), Arm(1, 0))


def expectation(
    log_factor: Callable[[Window], float], share: float, canary: float, stable: float
) -> float:
    return sum(
        chance * math.exp(log_factor(window))
        for chance, window in one_call(share, canary, stable)
        if chance
    )


# The guarantee: no factor has an expectation above 1 under the null hypothesis.


@settings(deadline=None)
@given(st.sampled_from(RISK_RATIOS), RATES, SHARES, TRUTHS)
def test_a_rollback_bet_is_fair_for_any_common_rate(
    ratio: float, rate: float, share: float, truth: float
) -> None:
    expected = expectation(
        lambda w: rollback_evidence.log_factor(w, ratio, rate), share, truth, truth
    )

    assert expected == pytest.approx(1, rel=1e-9)


@settings(deadline=None)
@given(st.sampled_from(RISK_RATIOS), RATES, SHARES, TRUTHS, TRUTHS)
def test_a_rollback_bet_can_only_lose_while_the_canary_fails_less(
    ratio: float, rate: float, share: float, one: float, other: float
) -> None:
    canary, stable = sorted((one, other))
    expected = expectation(
        lambda w: rollback_evidence.log_factor(w, ratio, rate), share, canary, stable
    )

    assert expected <= 1 + 1e-9


@settings(deadline=None)
@given(RATES, SHARES, MARGINS, TRUTHS)
def test_a_promotion_bet_is_fair_where_the_canary_is_worse_by_the_margin(
    rate: float, share: float, margin: float, truth: float
) -> None:
    stable = truth * (1 - margin)
    expected = expectation(
        lambda w: promotion_evidence.log_factor(w, rate, margin), share, stable + margin, stable
    )

    assert expected == pytest.approx(1, rel=1e-6)


@settings(deadline=None)
@given(RATES, SHARES, MARGINS, TRUTHS, TRUTHS)
def test_a_promotion_bet_can_only_lose_where_the_canary_is_worse_by_more(
    rate: float, share: float, margin: float, truth: float, more: float
) -> None:
    stable = truth * (1 - margin)
    canary = stable + margin + more * (1 - margin - stable)
    expected = expectation(
        lambda w: promotion_evidence.log_factor(w, rate, margin), share, canary, stable
    )

    assert expected <= 1 + 1e-6


@pytest.mark.parametrize(("make", "worse"), list(zip(MAKERS, (0.0, MARGIN), strict=True)))
@settings(deadline=None, max_examples=40)
@given(history=HISTORIES, share=SHARES, truth=TRUTHS)
def test_after_any_past_the_next_factor_has_expectation_one(
    make: Callable[[], Any], worse: float, history: list[Window], share: float, truth: float
) -> None:
    before = make()
    for window in history:
        before.update(window)
    kept, stable = before.to_dict(), truth * (1 - worse)

    grown = 0.0
    for chance, window in one_call(share, stable + worse, stable):
        after = type(before).from_dict(kept)
        after.update(window)
        grown += chance * math.exp(after.log_e - before.log_e)

    assert grown == pytest.approx(1, rel=1e-6)


def test_the_bets_share_alpha_and_never_exceed_it() -> None:
    parts = [share_started(calls) for calls in (0, 1, 100, 10_000, 10**7, 10**300)]

    assert parts == sorted(parts)
    assert parts[0] == pytest.approx(0.9)
    assert parts[-1] < 1


@settings(deadline=None)
@given(RATES, MARGINS, SHARES)
def test_the_nearest_stable_rate_minimises_the_divergence(
    rate: float, margin: float, share: float
) -> None:
    def distance(stable: float) -> float:
        return sum(
            part * (rate * math.log(rate / other) + (1 - rate) * math.log((1 - rate) / (1 - other)))
            for part, other in ((share, stable + margin), (1 - share, stable))
        )

    nearest = nearest_stable_rate(rate, margin, share)

    assert max(0, rate - margin) <= nearest <= min(rate, 1 - margin)
    for neighbour in (nearest * 0.999, nearest + 0.001 * (min(rate, 1 - margin) - nearest)):
        if 0 < neighbour < 1 - margin:
            assert distance(nearest) <= distance(neighbour) + 1e-12


# A case computed by hand.


def test_a_window_multiplies_by_the_documented_formula() -> None:
    # m = 0.02, p = 0.5, r = 3: stable 0.01, canary 0.03, together 0.02.
    window = Window(0.5, Arm(2, 1), Arm(3, 0))

    factor = math.exp(rollback_evidence.log_factor(window, 3.0, 0.02))

    assert factor == pytest.approx((0.03 / 0.02) * (0.97 / 0.98) * (0.99 / 0.98) ** 3)


def test_with_even_share_and_rate_the_nearest_pair_is_symmetric() -> None:
    assert nearest_stable_rate(0.5, 0.2, 0.5) == pytest.approx(0.4)


def test_a_window_is_judged_by_the_pooled_rate_before_it() -> None:
    evidence, window = RollbackEvidence(0.01), Window(0.1, Arm(20, 6), Arm(180, 9))
    evidence.update(window)

    factors = [math.exp(rollback_evidence.log_factor(window, ratio, 0.02)) for ratio in RISK_RATIOS]
    assert evidence.e_value == pytest.approx(0.9 * sum(factors) / len(factors) + 0.1)
    assert evidence.rate == pytest.approx((0.04 + 15) / 202)


def test_latency_evidence_is_the_mean_over_its_thresholds() -> None:
    evidence = LatencyEvidence(0.01)
    assert evidence.fix_thresholds(Histogram((bucket, 1) for bucket in range(500, 800)))
    evidence.update(Window(0.5, Arm(50), Arm(50)), [Slow(40, 20), Slow(20, 2), Slow(0, 0)])

    each = [test.e_value for test in evidence._tests]
    assert each[0] > 10 > each[2]
    assert evidence.e_value == pytest.approx(sum(each) / 3)


# Robustness.


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("errors", [0.0, 0.5, 1.0])
def test_ten_million_calls_leave_a_finite_number(make: Callable[[], Any], errors: float) -> None:
    evidence = make()
    for _ in range(10):
        evidence.update(
            Window(0.1, Arm(10**5, int(errors * 10**5)), Arm(9 * 10**5, int(errors * 9 * 10**5)))
        )

    assert math.isfinite(evidence.log_e)
    assert math.isfinite(evidence.e_value)
    json.dumps(evidence.to_dict(), allow_nan=False)


def test_an_e_value_beyond_the_range_of_floats_is_reached() -> None:
    evidence = RollbackEvidence(0.01)
    for _ in range(10):
        evidence.update(Window(0.5, Arm(10**6, 10**6), Arm(10**6, 0)))

    assert evidence.reached
    assert evidence.log_e > 1000
    assert math.isfinite(evidence.e_value)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_window_without_random_assignment_is_not_evidence(
    make: Callable[[], Any], share: float
) -> None:
    evidence = make()
    evidence.update(Window(share, Arm(100, 90), Arm(100, 1)))

    assert evidence.e_value == pytest.approx(1)
    assert evidence.rate > 0.4  # but its calls are learned from


@pytest.mark.parametrize("make", MAKERS)
def test_an_empty_window_is_not_evidence(make: Callable[[], Any]) -> None:
    evidence = make()
    before = evidence.to_dict()
    evidence.update(Window(0.1, Arm(), Arm()))

    assert evidence.to_dict() == before


def test_reached_evidence_stays_reached() -> None:
    evidence = RollbackEvidence(0.01)
    evidence.update(Window(0.5, Arm(50, 25), Arm(50, 0)))
    assert evidence.reached

    evidence.update(Window(0.5, Arm(50_000, 0), Arm(50_000, 25_000)))

    assert evidence.e_value < 100
    assert evidence.reached
    assert RollbackEvidence.from_dict(evidence.to_dict()).reached


@pytest.mark.parametrize("make", MAKERS)
@settings(deadline=None, max_examples=40)
@given(history=HISTORIES, then=HISTORIES)
def test_restored_evidence_continues_unchanged(
    make: Callable[[], Any], history: list[Window], then: list[Window]
) -> None:
    whole = make()
    for window in history:
        whole.update(window)
    kept = type(whole).from_dict(json.loads(json.dumps(whole.to_dict())))
    for window in then:
        whole.update(window)
        kept.update(window)

    assert kept.to_dict() == whole.to_dict()
    assert kept.log_e == whole.log_e


def test_evidence_saved_with_other_bets_is_refused() -> None:
    kept = RollbackEvidence(0.01).to_dict()

    with pytest.raises(ValueError, match="another version"):
        RollbackEvidence.from_dict({**kept, "logs": kept["logs"][1:]})


@settings(deadline=None)
@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_the_pooled_rate_is_never_zero_or_one(calls: int, errors: int) -> None:
    past = Baseline(Prior(), max(calls, errors), errors)

    assert MIN_RATE <= past.rate <= MAX_RATE


def test_a_new_baseline_changes_the_rate_and_not_the_evidence() -> None:
    evidence = RollbackEvidence(0.01)
    evidence.update(Window(0.5, Arm(50, 5), Arm(50, 0)))
    before = evidence.log_e

    evidence.reset_baseline(Prior(0.5, 10))

    assert evidence.log_e == before
    assert evidence.rate == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("needs", "low", "high"),
    [
        (RollbackEvidence(0.01, Prior(0.014, 1e6)).calls_needed(Rates(0.1, 0.05, 0.01)), 120, 220),
        (RollbackEvidence(0.01, Prior(0.024, 1e6)).calls_needed(Rates(0.1, 0.15, 0.01)), 20, 45),
        (
            PromotionEvidence(0.02, 0.05, Prior(0.01, 1e6)).calls_needed(Rates(0.1, 0.01, 0.01)),
            150,
            400,
        ),
    ],
)
def test_the_forecast_is_near_the_calls_needed(needs: float, low: int, high: int) -> None:
    assert low < needs < high


def test_there_is_no_forecast_of_a_verdict_that_will_not_come() -> None:
    assert RollbackEvidence(0.01).calls_needed(Rates(0.1, 0.01, 0.01)) is None
    worse = PromotionEvidence(0.02, 0.05, Prior(0.013, 1e6)).calls_needed(Rates(0.1, 0.04, 0.01))
    assert worse is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: RollbackEvidence(0),
        lambda: RollbackEvidence(1),
        lambda: PromotionEvidence(0, 0.05),
        lambda: PromotionEvidence(1, 0.05),
        lambda: PromotionEvidence(0.02, 2),
        lambda: Prior(0, 2),
        lambda: Prior(0.02, 0),
        lambda: Arm(1, 2),
        lambda: Arm(1, -1),
        lambda: Window(1.1, Arm(), Arm()),
        lambda: Window(math.nan, Arm(), Arm()),
    ],
)
def test_invalid_parameters_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"alpha|margin|prior|arm|share"):
        make()
