from __future__ import annotations

import json
import random
import re

import pytest

from atlas_supervisor.canary.stats.counts import Arm, Window
from atlas_supervisor.canary.stats.decision import Decision, EvidenceKind, RampEvidence
from atlas_supervisor.canary.stats.explain import odds, percent
from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.model.verdict import Verdict
from atlas_worker.contract import latency_bucket
from tests.unit.supervisor.canary.stats.support import Moment, draw, seeded


def latencies(rng: random.Random, calls: int, times: float = 1.0) -> Histogram:
    return Histogram(
        (latency_bucket(times * 50 * rng.lognormvariate(0, 0.5)), 1) for _ in range(calls)
    )


def tell(
    judge: RampEvidence, rng: random.Random, truth: Moment, windows: int, times: float = 1.0
) -> int:
    """Feed windows until there is a verdict; return the canary calls that it took."""
    for _ in range(windows):
        window = draw(rng, 40, truth)
        canary = latencies(rng, window.canary.calls, times)
        judge.update(window, judge.slow(canary, latencies(rng, window.stable.calls)))
        if judge.verdict().verdict is not Verdict.INCONCLUSIVE:
            break
    return judge.totals.canary.calls


def test_a_canary_that_fails_more_is_rolled_back_with_a_reason_for_a_person() -> None:
    judge = RampEvidence("vision", alpha=0.01)
    for _ in range(3):
        judge.update(Window(0.5, Arm(100, 20), Arm(100, 1)))

    judgement = judge.verdict()

    assert (judgement.verdict, judgement.kind) == (Verdict.FAIL, EvidenceKind.ERRORS)
    assert judgement.reason == (
        "vision: the canary fails 20.0 % of calls, stable 1.0 %, over 300 canary calls; "
        "odds against chance are over 130 to 1"
    )
    assert judgement.needs is None


def test_a_canary_that_is_slower_is_rolled_back_by_its_latency() -> None:
    rng, judge = seeded(1), RampEvidence("web")
    assert judge.fix_thresholds(latencies(rng, 2_000))
    tell(judge, rng, Moment(0.1, 0.01, 0.01), 200, times=2.0)

    judgement = judge.verdict()

    assert (judgement.verdict, judgement.kind) == (Verdict.FAIL, EvidenceKind.LATENCY)
    assert "of canary calls take over" in judgement.reason
    assert judge.totals.canary.calls < 200


def test_a_canary_that_is_slower_by_less_than_a_person_would_notice_is_left_alone() -> None:
    rng, judge = seeded(2), RampEvidence("web", promote_alpha=1e-9)
    assert judge.fix_thresholds(latencies(rng, 2_000))
    tell(judge, rng, Moment(0.1, 0.01, 0.01), 300, times=1.05)

    assert judge.verdict().kind is EvidenceKind.WAITING


def test_a_canary_that_is_no_worse_is_promoted_with_the_margin_beside_it() -> None:
    rng, judge = seeded(3), RampEvidence("vision")
    tell(judge, rng, Moment(0.1, 0.01, 0.01), 1_000)

    judgement = judge.verdict()

    assert (judgement.verdict, judgement.kind) == (Verdict.PASS, EvidenceKind.PROMOTION)
    assert "higher by 2 percentage points or more is ruled out at odds of over 20 to 1" in (
        judgement.reason
    )


def test_after_a_promotion_is_due_a_canary_that_turns_bad_is_still_rolled_back() -> None:
    rng, judge = seeded(4), RampEvidence("vision")
    tell(judge, rng, Moment(0.1, 0.01, 0.01), 1_000)
    for _ in range(200):
        judge.update(draw(rng, 40, Moment(0.1, 0.3, 0.01)))

    assert judge.verdict().verdict is Verdict.FAIL


def test_once_it_said_roll_back_it_says_so_for_ever() -> None:
    rng, judge = seeded(5), RampEvidence("vision")
    tell(judge, rng, Moment(0.1, 0.3, 0.01), 300)
    for _ in range(50):
        judge.update(draw(rng, 5_000, Moment(0.1, 0.01, 0.01)))

    assert judge.verdict().verdict is Verdict.FAIL


def test_without_canary_calls_it_holds() -> None:
    judge = RampEvidence("vision")
    for _ in range(5):
        judge.update(Window(0.01, Arm(), Arm(20, 1)))

    judgement = judge.verdict()

    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert judgement.needs is None
    assert judgement.reason == "vision: there are no canary calls to judge by yet; it holds"


def undecided() -> Decision:
    judge = RampEvidence("vision", features=3)
    judge.update(Window(0.1, Arm(50, 1), Arm(450, 9)))
    return judge.verdict()


def test_an_undecided_canary_says_about_how_many_more_calls_it_takes() -> None:
    judgement = undecided()

    assert judgement.kind is EvidenceKind.WAITING
    assert judgement.needs is not None
    assert 100 < judgement.needs < 2_000
    assert judgement.reason == (
        "vision: the canary fails 2.0 % of calls, stable 2.0 %, over 50 canary calls; not enough "
        f"to tell, about {judgement.needs:,} more canary calls are needed"
    )


def test_it_does_not_pretend_to_know_how_many_more_it_takes() -> None:
    judge = RampEvidence("vision")
    judge.update(Window(0.1, Arm(5, 1), Arm(45, 1)))

    judgement = judge.verdict()

    assert judgement.needs is None
    assert "can't be told yet" in judgement.reason


def test_while_the_arms_do_not_get_their_shares_nothing_is_promoted() -> None:
    rng, judge = seeded(6), RampEvidence("vision")
    for _ in range(200):
        window = draw(rng, 40, Moment(0.2, 0.01, 0.01))
        judge.update(Window(0.1, window.canary, window.stable))
        judge.assigned.add(0.1, window.canary.calls, canary=True)
        judge.assigned.add(0.1, window.stable.calls, canary=False)

    judgement = judge.verdict()

    assert judge.promotion.reached
    assert (judgement.verdict, judgement.kind) == (Verdict.INCONCLUSIVE, EvidenceKind.RATIO)
    assert re.search(r"given \d\d\.\d % of the calls and not 10\.0 %.*it holds", judgement.reason)


def test_while_one_arm_swallows_a_few_of_its_calls_nothing_is_promoted() -> None:
    rng, judge = seeded(6), RampEvidence("vision")
    for _ in range(600):
        window = draw(rng, 40, Moment(0.1, 0.01, 0.01))
        judge.update(window)
        judge.assigned.add(0.1, window.canary.calls, canary=True)
        judge.assigned.add(0.1, window.stable.calls, canary=False)
    judge.assigned.add(0.1, 10, canary=True)
    judge.unreported.add(0.1, 10, canary=True)

    judgement = judge.verdict()

    assert judge.promotion.reached
    assert judge.ratios().assigned.fits
    assert (judgement.verdict, judgement.kind) == (Verdict.INCONCLUSIVE, EvidenceKind.RATIO)
    assert "the canary arm reports fewer of its decisions" in judgement.reason


def test_stable_is_shown_as_it_was_while_the_canary_had_its_calls() -> None:
    judge = RampEvidence("vision")
    judge.update(Window(0.01, Arm(100, 1), Arm(9_900, 99)))
    judge.update(Window(0.5, Arm(5_000, 500), Arm(5_000, 500)))

    numbers = judge.verdict().numbers

    assert numbers["stable_error_rate"] == pytest.approx(numbers["canary_error_rate"])


def test_alpha_is_shared_out_over_features_and_between_errors_and_latency() -> None:
    judge = RampEvidence("vision", alpha=0.01, features=4)

    assert judge.errors.alpha + judge.latency.alpha == pytest.approx(0.01 / 4)


def test_too_few_stable_calls_place_no_thresholds() -> None:
    judge = RampEvidence("vision")

    assert not judge.fix_thresholds(latencies(seeded(1), 199))
    assert judge.thresholds == ()
    judge.update(Window(0.1, Arm(5, 1), Arm(45, 1)), judge.slow(Histogram(), Histogram()))


def test_counts_by_other_thresholds_are_refused_before_anything_is_counted() -> None:
    judge = RampEvidence("vision")
    judge.fix_thresholds(latencies(seeded(1), 500))
    before = judge.to_dict()

    with pytest.raises(ValueError, match="thresholds"):
        judge.update(Window(0.1, Arm(5, 1), Arm(45, 1)))

    assert judge.to_dict() == before


def test_thresholds_fixed_anew_leave_the_evidence() -> None:
    rng, judge = seeded(7), RampEvidence("web")
    judge.fix_thresholds(latencies(rng, 500))
    tell(judge, rng, Moment(0.1, 0.01, 0.01), 5, times=2.0)
    before = judge.latency.log_e

    judge.fix_thresholds(latencies(rng, 500, times=3.0))

    assert judge.latency.log_e == before
    assert judge.latency.seen == [(Arm(), Arm())] * 3


def test_a_judge_that_was_kept_goes_on_as_if_nothing_had_happened() -> None:
    rng, judge = seeded(8), RampEvidence("web", alpha=0.02, margin=0.03, features=2)
    judge.fix_thresholds(latencies(rng, 500))
    tell(judge, rng, Moment(0.1, 0.02, 0.01), 20)
    tell(judge, rng, Moment(0.25, 0.02, 0.01), 5)
    kept = RampEvidence.from_dict(json.loads(json.dumps(judge.to_dict(), allow_nan=False)))
    window = Window(0.25, Arm(20, 3), Arm(60, 1))
    slow = judge.slow(latencies(rng, 20), latencies(rng, 60))
    for each in (judge, kept):
        each.update(window, slow)

    assert kept.to_dict() == judge.to_dict()
    assert kept.verdict() == judge.verdict()


def test_the_numbers_of_a_judgement_are_as_json_has_them() -> None:
    json.dumps(undecided().numbers, allow_nan=False)


def test_a_judge_of_no_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RampEvidence("vision", features=0)


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0, "0.0 %"), (0.048, "4.8 %"), (0.00042, "0.04 %"), (1e-9, "under 0.0001 %"), (1, "100.0 %")],
)
def test_rates_are_said_as_people_say_them(rate: float, words: str) -> None:
    assert percent(rate) == words


@pytest.mark.parametrize(
    ("e_value", "words"),
    [(1 / 0.01, "over 100 to 1"), (1 / 0.0075, "over 130 to 1"), (4_567, "over 4,500 to 1")],
)
def test_odds_are_rounded_down(e_value: float, words: str) -> None:
    assert odds(e_value) == words


def test_odds_beyond_a_million_are_called_that() -> None:
    assert odds(1e12) == "over a million to 1"
