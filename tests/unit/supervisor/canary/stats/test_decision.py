from __future__ import annotations

import json
import random
import re

import pytest

from atlas_supervisor.canary.stats.counts import Arm, Window
from atlas_supervisor.canary.stats.decision import Decision, EvidenceKind, Fallback, RampEvidence
from atlas_supervisor.canary.stats.explain import odds, percent
from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.model.verdict import Verdict
from atlas_worker.contract import latency_bucket
from tests.unit.supervisor.canary.stats.support import Moment, draw, seeded


def latencies(rng: random.Random, calls: int, times: float = 1.0) -> Histogram:
    return Histogram(
        (latency_bucket(times * 50 * rng.lognormvariate(0, 0.5)), 1) for _ in range(calls)
    )


def feed(
    evidence: RampEvidence, rng: random.Random, truth: Moment, windows: int, times: float = 1.0
) -> int:
    """Feed windows until there is a verdict; return the canary calls that it took."""
    for _ in range(windows):
        window = draw(rng, 40, truth)
        canary = latencies(rng, window.canary.calls, times)
        evidence.update(window, evidence.slow(canary, latencies(rng, window.stable.calls)))
        if evidence.decision().verdict is not Verdict.INCONCLUSIVE:
            break
    return evidence.totals.canary.calls


def test_a_canary_that_fails_more_is_rolled_back_with_a_reason() -> None:
    evidence = RampEvidence("vision", alpha=0.01)
    for _ in range(3):
        evidence.update(Window(0.5, Arm(100, 20), Arm(100, 1)))

    decision = evidence.decision()

    assert (decision.verdict, decision.kind) == (Verdict.FAIL, EvidenceKind.ERRORS)
    assert decision.reason == (
        "vision: canary error rate 20.0 %, stable 1.0 %, over 300 canary calls; "
        "odds against chance are over 130 to 1"
    )
    assert decision.needs is None


def test_a_canary_that_is_slower_is_rolled_back_by_its_latency() -> None:
    rng, evidence = seeded(1), RampEvidence("web")
    assert evidence.fix_thresholds(latencies(rng, 2_000))
    feed(evidence, rng, Moment(0.1, 0.01, 0.01), 200, times=2.0)

    decision = evidence.decision()

    assert (decision.verdict, decision.kind) == (Verdict.FAIL, EvidenceKind.LATENCY)
    assert re.search(r"of stable calls take over [\d.]+ ms", decision.reason)
    assert evidence.totals.canary.calls < 200


def test_a_canary_that_is_slower_by_less_than_the_slack_is_not_rolled_back() -> None:
    rng, evidence = seeded(2), RampEvidence("web", promote_alpha=1e-9)
    assert evidence.fix_thresholds(latencies(rng, 2_000))
    feed(evidence, rng, Moment(0.1, 0.01, 0.01), 300, times=1.05)

    assert evidence.decision().kind is EvidenceKind.WAITING


def test_a_canary_that_is_no_worse_is_promoted_with_the_margin_in_the_reason() -> None:
    rng, evidence = seeded(3), RampEvidence("vision")
    feed(evidence, rng, Moment(0.1, 0.01, 0.01), 1_000)

    decision = evidence.decision()

    assert (decision.verdict, decision.kind) == (Verdict.PASS, EvidenceKind.PROMOTION)
    assert decision.reason.endswith(
        "a rate higher by 2 percentage points or more is ruled out at odds of over 20 to 1"
    )


def test_a_canary_that_turns_bad_after_promotion_is_reached_is_rolled_back() -> None:
    rng, evidence = seeded(4), RampEvidence("vision")
    feed(evidence, rng, Moment(0.1, 0.01, 0.01), 1_000)
    for _ in range(200):
        evidence.update(draw(rng, 40, Moment(0.1, 0.3, 0.01)))

    assert evidence.decision().verdict is Verdict.FAIL


def test_a_rollback_verdict_is_final() -> None:
    rng, evidence = seeded(5), RampEvidence("vision")
    feed(evidence, rng, Moment(0.1, 0.3, 0.01), 300)
    for _ in range(50):
        evidence.update(draw(rng, 5_000, Moment(0.1, 0.01, 0.01)))

    assert evidence.decision().verdict is Verdict.FAIL


def test_without_canary_calls_the_verdict_is_inconclusive() -> None:
    evidence = RampEvidence("vision")
    for _ in range(5):
        evidence.update(Window(0.01, Arm(), Arm(20, 1)))

    decision = evidence.decision()

    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.needs is None
    assert decision.reason == "vision: no canary calls yet, share unchanged"


def undecided() -> Decision:
    evidence = RampEvidence("vision", features=3)
    evidence.update(Window(0.1, Arm(50, 1), Arm(450, 9)))
    return evidence.decision()


def test_an_inconclusive_verdict_forecasts_the_calls_needed() -> None:
    decision = undecided()

    assert decision.kind is EvidenceKind.WAITING
    assert decision.needs is not None
    assert 100 < decision.needs < 2_000
    assert decision.reason == (
        "vision: canary error rate 2.0 %, stable 2.0 %, over 50 canary calls; not enough data, "
        f"about {decision.needs:,} more canary calls are needed"
    )


def test_there_is_no_forecast_from_few_calls() -> None:
    evidence = RampEvidence("vision")
    evidence.update(Window(0.1, Arm(5, 1), Arm(45, 1)))

    decision = evidence.decision()

    assert decision.needs is None
    assert "too early to forecast" in decision.reason


def test_a_sample_ratio_mismatch_withholds_the_promotion() -> None:
    rng, evidence = seeded(6), RampEvidence("vision")
    for _ in range(200):
        window = draw(rng, 40, Moment(0.2, 0.01, 0.01))
        evidence.update(Window(0.1, window.canary, window.stable))
        evidence.assigned.add(0.1, window.canary.calls, canary=True)
        evidence.assigned.add(0.1, window.stable.calls, canary=False)

    decision = evidence.decision()

    assert evidence.promotion.reached
    assert (decision.verdict, decision.kind) == (Verdict.INCONCLUSIVE, EvidenceKind.RATIO)
    assert re.search(
        r"got \d\d\.\d % of the calls instead of 10\.0 %.*no promotion meanwhile", decision.reason
    )


def test_a_mismatch_of_unreported_calls_withholds_the_promotion() -> None:
    rng, evidence = seeded(6), RampEvidence("vision")
    for _ in range(600):
        window = draw(rng, 40, Moment(0.1, 0.01, 0.01))
        evidence.update(window)
        evidence.assigned.add(0.1, window.canary.calls, canary=True)
        evidence.assigned.add(0.1, window.stable.calls, canary=False)
    evidence.assigned.add(0.1, 10, canary=True)
    evidence.unreported.add(0.1, 10, canary=True)

    decision = evidence.decision()

    assert evidence.promotion.reached
    assert evidence.ratios().assigned.fits
    assert (decision.verdict, decision.kind) == (Verdict.INCONCLUSIVE, EvidenceKind.RATIO)
    assert "the canary arm reports fewer of its decisions" in decision.reason


def test_stables_rate_is_weighted_by_the_canarys_calls_of_each_share() -> None:
    evidence = RampEvidence("vision")
    evidence.update(Window(0.01, Arm(100, 1), Arm(9_900, 99)))
    evidence.update(Window(0.5, Arm(5_000, 500), Arm(5_000, 500)))

    numbers = evidence.decision().numbers

    assert numbers["stable_error_rate"] == pytest.approx(numbers["canary_error_rate"])


def test_alpha_is_split_over_features_and_between_errors_and_latency() -> None:
    evidence = RampEvidence("vision", alpha=0.01, features=4)

    assert evidence.errors.alpha + evidence.latency.alpha == pytest.approx(0.01 / 4)


def test_too_few_stable_calls_place_no_thresholds() -> None:
    evidence = RampEvidence("vision")

    assert not evidence.fix_thresholds(latencies(seeded(1), 199))
    assert evidence.thresholds == ()
    evidence.update(Window(0.1, Arm(5, 1), Arm(45, 1)), evidence.slow(Histogram(), Histogram()))


def test_slow_counts_that_do_not_match_the_thresholds_are_refused_without_effect() -> None:
    evidence = RampEvidence("vision")
    evidence.fix_thresholds(latencies(seeded(1), 500))
    before = evidence.to_dict()

    with pytest.raises(ValueError, match="thresholds"):
        evidence.update(Window(0.1, Arm(5, 1), Arm(45, 1)))

    assert evidence.to_dict() == before


def test_new_thresholds_keep_the_evidence() -> None:
    rng, evidence = seeded(7), RampEvidence("web")
    evidence.fix_thresholds(latencies(rng, 500))
    feed(evidence, rng, Moment(0.1, 0.01, 0.01), 5, times=2.0)
    before = evidence.latency.log_e

    evidence.fix_thresholds(latencies(rng, 500, times=3.0))

    assert evidence.latency.log_e == before
    assert evidence.latency.seen == [(Arm(), Arm())] * 3


def test_restored_ramp_evidence_continues_unchanged() -> None:
    rng, evidence = seeded(8), RampEvidence("web", alpha=0.02, margin=0.03, features=2)
    evidence.fix_thresholds(latencies(rng, 500))
    feed(evidence, rng, Moment(0.1, 0.02, 0.01), 20)
    feed(evidence, rng, Moment(0.25, 0.02, 0.01), 5)
    restored = RampEvidence.from_dict(json.loads(json.dumps(evidence.to_dict(), allow_nan=False)))
    window = Window(0.25, Arm(20, 3), Arm(60, 1))
    slow = evidence.slow(latencies(rng, 20), latencies(rng, 60))
    for each in (evidence, restored):
        each.update(window, slow)

    assert restored.to_dict() == evidence.to_dict()
    assert restored.decision() == evidence.decision()


def test_the_numbers_of_a_decision_are_json_values() -> None:
    json.dumps(undecided().numbers, allow_nan=False)


def test_ramp_evidence_for_no_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RampEvidence("vision", features=0)


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0, "0.0 %"), (0.048, "4.8 %"), (0.00042, "0.04 %"), (1e-9, "under 0.0001 %"), (1, "100.0 %")],
)
def test_rates_are_rounded_for_readers(rate: float, words: str) -> None:
    assert percent(rate) == words


@pytest.mark.parametrize(
    ("e_value", "words"),
    [(1 / 0.01, "over 100 to 1"), (1 / 0.0075, "over 130 to 1"), (4_567, "over 4,500 to 1")],
)
def test_odds_are_rounded_down(e_value: float, words: str) -> None:
    assert odds(e_value) == words


def test_odds_above_a_million_have_no_digits() -> None:
    assert odds(1e12) == "over a million to 1"


@pytest.mark.parametrize(
    ("canary", "latch"),
    [
        (Arm(), False),
        (Arm(19, 19), False),  # below the minimum
        (Arm(20, 3), False),  # at the threshold
        (Arm(20, 4), True),
        (Arm(1000, 150), False),
        (Arm(1000, 151), True),
    ],
)
def test_fallback_latches_above_the_threshold_once_the_minimum_is_reached(
    canary: Arm, latch: bool
) -> None:
    assert (Fallback(0.15, 20).reason(canary, Arm(100)) is not None) is latch


def test_fallback_reason_has_both_arms() -> None:
    assert Fallback().reason(Arm(100, 20), Arm(900, 9)) == (
        "20.0 % of 100 canary calls failed, more than 15.0 %; stable: 1.0 % of 900"
    )


def test_fallback_reason_names_the_case_that_both_arms_fail() -> None:
    reason = Fallback().reason(Arm(100, 20), Arm(900, 300))

    assert reason is not None
    assert reason.endswith("both arms fail, so the canary may not be the cause")


def test_fallback_reason_without_stable_calls() -> None:
    reason = Fallback().reason(Arm(20, 20), Arm())

    assert reason is not None
    assert "no stable calls" in reason


def test_fallback_without_a_minimum_does_not_latch_without_calls() -> None:
    assert Fallback(0.15, 0).reason(Arm(), Arm()) is None
