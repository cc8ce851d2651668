from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_supervisor.canary.stats.bets import (
    RISK_RATIOS,
    Bet,
    Mixture,
    arm_bets,
    margin_bets,
    nearest_stable_rate,
    rate_bets,
    share_started,
)
from atlas_supervisor.canary.stats.counts import (
    MAX_RATE,
    MIN_RATE,
    Arm,
    Baseline,
    Prior,
)
from atlas_supervisor.canary.stats.latency_evidence import WEIGHTS, LatencyBets, place
from atlas_supervisor.canary.stats.round_evidence import ERROR_WEIGHTS, RoundEvidence
from atlas_supervisor.model.histogram import Histogram
from atlas_worker.contract import LATENCY_BUCKETS, bucket_milliseconds, latency_bucket
from tests.unit.supervisor.canary.stats.support import (
    Value,
    Window,
    errors,
    new_round,
    promotion,
    update,
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
TESTS: list[Value] = [errors, promotion]


def expectations(
    bets: Iterable[Bet], share: float, canary: float, stable: float
) -> Iterator[float]:
    """Yield the expectation of each bet's factor of one call, at these true rates."""
    for cf, cw, sf, sw in bets:
        in_canary = canary * math.exp(cf) + (1 - canary) * math.exp(cw)
        in_stable = stable * math.exp(sf) + (1 - stable) * math.exp(sw)
        yield share * in_canary + (1 - share) * in_stable


# The guarantee: no factor has an expectation above 1 under the null hypothesis.


@settings(deadline=None)
@given(RATES, SHARES, TRUTHS)
def test_a_rollback_bet_is_fair_for_any_common_rate(
    rate: float, share: float, truth: float
) -> None:
    bets = [*rate_bets(share, rate), *arm_bets(share)]

    assert list(expectations(bets, share, truth, truth)) == pytest.approx([1] * 12, rel=1e-9)


@settings(deadline=None)
@given(RATES, SHARES, TRUTHS, TRUTHS)
def test_a_rollback_bet_can_only_lose_while_the_canary_fails_less(
    rate: float, share: float, one: float, other: float
) -> None:
    canary, stable = sorted((one, other))
    bets = [*rate_bets(share, rate), *arm_bets(share)]

    assert max(expectations(bets, share, canary, stable)) <= 1 + 1e-9


@settings(deadline=None)
@given(RATES, SHARES, MARGINS, TRUTHS, TRUTHS)
def test_a_promotion_bet_can_only_lose_where_the_canary_is_worse_by_the_margin_or_more(
    rate: float, share: float, margin: float, truth: float, more: float
) -> None:
    stable = truth * (1 - margin)
    canary = stable + margin + more * (1 - margin - stable)
    bets = margin_bets(share, rate, margin)

    assert max(expectations(bets, share, canary, stable)) <= 1 + 1e-6
    at_the_margin = next(expectations(bets, share, stable + margin, stable))
    assert at_the_margin == pytest.approx(1, rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 2000), min_size=200, max_size=300),
    SHARES,
    st.sampled_from((0.0, 0.1, 0.5)),
    st.integers(2, 2000),
)
def test_a_latency_bet_can_only_lose_while_the_canary_is_slower_by_no_more_than_the_margin(
    past: list[int], share: float, margin: float, truth: int
) -> None:
    """Stable's calls take one of two times, and the canary's up to the margin longer."""
    placement = place(Histogram((each, 1) for each in past), margin)
    assert placement is not None
    bets = LatencyBets.fixed(share, placement)
    expected = [0.0] * len(WEIGHTS)
    for bucket in (truth, truth // 2):
        edge = bucket_milliseconds(bucket) * 1.0099
        slower = min(latency_bucket(edge * (1 + margin)), LATENCY_BUCKETS - 1)
        for latency, chance, canary in ((slower, share, True), (bucket, 1 - share, False)):
            calls = placement.levels([(latency, 1)], canary=canary)
            none = [0] * len(calls)
            factors = bets.log_factors(calls if canary else none, none if canary else calls)
            expected = [
                sum_ + chance / 2 * math.exp(log)
                for sum_, log in zip(expected, factors, strict=True)
            ]

    assert max(expected) <= 1 + 1e-9


@settings(deadline=None)
@given(RATES, SHARES, MARGINS)
def test_a_call_without_an_outcome_is_bounded_by_its_worst_outcome(
    rate: float, share: float, margin: float
) -> None:
    for bet in [*rate_bets(share, rate), *arm_bets(share)]:
        assert bet.canary_worked <= bet.canary_failed
        assert bet.stable_failed <= bet.stable_worked
    for bet in margin_bets(share, rate, margin):
        assert bet.canary_failed <= bet.canary_worked
        assert bet.stable_worked <= bet.stable_failed


def whole_promotion(evidence: RoundEvidence) -> float:
    """Return the product that `log_promotion` is a lower bound of."""
    assert evidence.log_promotion <= evidence.promotion.log_e
    return evidence.promotion.log_e


@pytest.mark.parametrize(("test", "worse"), [(errors, 0.0), (whole_promotion, MARGIN)])
@settings(deadline=None, max_examples=40)
@given(history=HISTORIES, share=SHARES, truth=TRUTHS)
def test_after_any_past_the_next_factor_has_expectation_at_most_one(
    test: Value, worse: float, history: list[Window], share: float, truth: float
) -> None:
    before = new_round()
    for window in history:
        update(before, window)
    kept, stable = before.to_dict(), truth * (1 - worse)
    one, other = Arm(1, 1), Arm(1, 0)

    grown = 0.0
    for chance, window in (
        (share * (stable + worse), Window(share, one, Arm())),
        (share * (1 - stable - worse), Window(share, other, Arm())),
        ((1 - share) * stable, Window(share, Arm(), one)),
        ((1 - share) * (1 - stable), Window(share, Arm(), other)),
    ):
        after = RoundEvidence.from_dict(kept)
        update(after, window)
        grown += chance * math.exp(test(after) - test(before))

    assert grown <= 1 + 1e-6


def test_the_bets_share_alpha_and_never_exceed_it() -> None:
    parts = [share_started(calls) for calls in (0, 1, 100, 10_000, 10**7, 10**12)]

    assert parts == sorted(parts)
    assert parts[0] == pytest.approx(0.85)
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

    nearest = nearest_stable_rate(rate, rate, margin, share)

    assert max(0, rate - margin) <= nearest <= min(rate, 1 - margin)
    for neighbour in (nearest * 0.999, nearest + 0.001 * (min(rate, 1 - margin) - nearest)):
        if 0 < neighbour < 1 - margin:
            assert distance(nearest) <= distance(neighbour) + 1e-12


# Cases computed by hand.


def test_a_window_multiplies_by_the_documented_formula() -> None:
    # m = 0.02, p = 0.5, r = 3: stable 0.01, canary 0.03, together 0.02.
    bet = rate_bets(0.5, 0.02)[list(RISK_RATIOS).index(3.0)]
    arm = arm_bets(0.5)[list(RISK_RATIOS).index(3.0)]

    assert [math.exp(log) for log in bet] == pytest.approx(
        [0.03 / 0.02, 0.97 / 0.98, 0.01 / 0.02, 0.99 / 0.98]
    )
    assert [math.exp(log) for log in arm] == pytest.approx([0.75 / 0.5, 1, 0.25 / 0.5, 1])


def test_with_even_share_and_rate_the_nearest_pair_is_symmetric() -> None:
    assert nearest_stable_rate(0.5, 0.5, 0.2, 0.5) == pytest.approx(0.4)


def test_a_window_is_judged_by_the_pooled_rate_before_it() -> None:
    evidence, window = new_round(), Window(0.1, Arm(20, 6), Arm(180, 9))
    update(evidence, window)

    bets = [*rate_bets(0.1, 0.02), *arm_bets(0.1)]
    factors = [math.exp(a * 6 + b * 14 + c * 9 + d * 171) for a, b, c, d in bets]
    both = zip([*RISK_RATIOS.values()] * 2, factors, strict=True)
    mean = sum(part / 2 * factor for part, factor in both)
    assert math.exp(evidence.errors.log_e) == pytest.approx(0.85 * mean + 0.15)
    assert evidence.rate == pytest.approx((0.04 + 15) / 202)


# Robustness.


@pytest.mark.parametrize("failed", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.1, 1e-6, 1 - 1e-6, 1e-13, 1 - 1e-13])
def test_ten_million_calls_leave_a_finite_number(failed: float, share: float) -> None:
    evidence = new_round()
    for _ in range(10):
        canary, stable = Arm(10**5, int(failed * 10**5)), Arm(9 * 10**5, int(failed * 9 * 10**5))
        update(evidence, Window(share, canary, stable))

    for test in TESTS:
        assert math.isfinite(test(evidence))
    json.dumps(evidence.to_dict(), allow_nan=False)


@pytest.mark.parametrize("share", [0.0, 1.0, 1e-13])
def test_a_window_without_random_assignment_is_not_evidence(share: float) -> None:
    evidence = new_round()
    update(evidence, Window(share, Arm(100, 90), Arm(100, 1)))

    assert [errors(evidence), promotion(evidence)] == pytest.approx([0, 0])
    assert evidence.rate > 0.4  # but its calls are learned from


def test_stable_calls_without_canary_calls_are_not_evidence_for_a_promotion() -> None:
    evidence = new_round()
    update(evidence, Window(0.2, Arm(40, 0), Arm(160, 2)))
    before = promotion(evidence)

    update(evidence, Window(0.2, Arm(), Arm(500, 100)))

    assert promotion(evidence) == before


@settings(deadline=None, max_examples=40)
@given(history=HISTORIES, then=HISTORIES)
def test_restored_evidence_continues_unchanged(history: list[Window], then: list[Window]) -> None:
    whole = new_round()
    for window in history:
        update(whole, window)
    kept = RoundEvidence.from_dict(json.loads(json.dumps(whole.to_dict())))
    for window in then:
        update(whole, window)
        update(kept, window)

    assert kept.to_dict() == whole.to_dict()
    assert errors(kept) == errors(whole)


def test_the_money_of_other_bets_is_spread_over_the_present_ones() -> None:
    earlier, restored = Mixture([0.5, 0.5], 0.9), Mixture(ERROR_WEIGHTS, 0.9)
    earlier.multiply([2.0, -1.0])
    restored.restore(earlier.to_dict())

    assert restored.log_e == pytest.approx(earlier.log_e)
    assert restored.logs[0] == restored.logs[6] < restored.logs[1]


@settings(deadline=None)
@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_the_pooled_rate_is_never_zero_or_one(calls: int, failed: int) -> None:
    assert MIN_RATE <= Baseline(Prior(), max(calls, failed), failed).rate <= MAX_RATE


@pytest.mark.parametrize(
    "make",
    [
        lambda: RoundEvidence(0, 0.1),
        lambda: RoundEvidence(1, 0.1),
        lambda: RoundEvidence(0.02, -0.1),
        lambda: Prior(0, 2),
        lambda: Prior(0.02, 0),
        lambda: Arm(1, 2),
        lambda: Arm(1, -1),
    ],
)
def test_invalid_parameters_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"margin|prior|arm"):
        make()
