from __future__ import annotations

import json
import math
import random
import re

import pytest

from atlas_supervisor.canary.stats.bets import holm
from atlas_supervisor.canary.stats.counts import Arm, CallWindow, Ended, OpenCalls, Prior
from atlas_supervisor.canary.stats.decision import (
    ERRORS_PART,
    Decision,
    EvidenceKind,
    RampEvidence,
)
from atlas_supervisor.canary.stats.explain import odds, percent
from atlas_supervisor.canary.stats.forecast import Keys
from atlas_supervisor.canary.stats.ramp import Fallback
from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.verdict import Verdict
from atlas_worker.contract import latency_bucket
from atlas_worker.contract.ring import Outcome
from tests.unit.supervisor.canary.stats.support import Feed, Moment, Window, draw, seeded


def latencies(rng: random.Random, calls: int, times: float = 1.0) -> Histogram:
    return Histogram(
        (latency_bucket(times * 50 * rng.lognormvariate(0, 0.5)), 1) for _ in range(calls)
    )


class Ramp:
    """The evidence of one ramp, with windows to feed it; `fail` as the daemon calls it."""

    def __init__(self, parts: int = 1, **settings: object) -> None:
        self.evidence = RampEvidence("vision", **settings)  # type: ignore[arg-type]  # any of them
        self.parts = parts
        self.windows = Feed()

    def close(self, *args: object) -> None:
        self.evidence.close(self.windows.window(*args))  # type: ignore[arg-type]  # any of them
        self._check()

    def judge(self, window: CallWindow, now: int) -> None:
        self.evidence.judge([window], now)
        self._check()

    def _check(self) -> None:
        if self.evidence.largest >= math.log(self.parts / self.evidence.alpha):
            self.evidence.fail()

    def decision(self, keys: Keys | None = None) -> Decision:
        return self.evidence.decision(self.parts, keys)

    def feed(self, rng: random.Random, truth: Moment, windows: int, times: float = 1.0) -> int:
        """Feed windows until there is a verdict; return the canary calls that it took."""
        for _ in range(windows):
            window = draw(rng, 40, truth)
            canary = latencies(rng, window.canary.calls, times)
            self.close(window, canary, latencies(rng, window.stable.calls))
            if self.decision().verdict is not Verdict.INCONCLUSIVE:
                break
        return self.evidence.totals.canary.calls


def test_a_canary_that_fails_more_is_rolled_back_with_a_reason() -> None:
    ramp = Ramp()
    for _ in range(3):
        ramp.close(Window(0.5, Arm(100, 20), Arm(100, 1)))

    decision = ramp.decision()

    assert (decision.verdict, decision.kind) == (Verdict.FAIL, EvidenceKind.ERRORS)
    assert decision.reason == (
        "vision: canary error rate 20.0 %, stable 1.0 %, over 300 canary calls; "
        "odds against chance are over 100 to 1"
    )
    assert decision.needs is None


def test_a_canary_that_is_slower_is_rolled_back_by_its_latency() -> None:
    rng = seeded(1)
    ramp = Ramp(past=latencies(rng, 2_000))
    calls = ramp.feed(rng, Moment(0.1, 0.01, 0.01), 200, times=2.0)

    decision = ramp.decision()

    assert (decision.verdict, decision.kind) == (Verdict.FAIL, EvidenceKind.LATENCY)
    assert re.search(
        r"of canary calls take over [\d.]+ ms and [\d.]+ % of stable calls over [\d.]+ ms",
        decision.reason,
    )
    assert calls < 200


def test_a_canary_that_is_slower_by_less_than_the_margin_is_not_rolled_back() -> None:
    rng = seeded(2)
    ramp = Ramp(past=latencies(rng, 2_000), promote_alpha=1e-9)
    ramp.feed(rng, Moment(0.1, 0.01, 0.01), 300, times=1.09)

    assert ramp.decision().kind is EvidenceKind.WAITING


def test_a_canary_that_is_no_worse_is_promoted_with_the_margin_in_the_reason() -> None:
    rng, ramp = seeded(3), Ramp()
    ramp.feed(rng, Moment(0.1, 0.01, 0.01), 1_000)

    decision = ramp.decision()

    assert (decision.verdict, decision.kind) == (Verdict.PASS, EvidenceKind.PROMOTION)
    assert decision.reason.endswith(
        "a rate higher by 2 percentage points or more is ruled out at odds of over 20 to 1"
    )


def test_a_canary_that_turns_bad_after_promotion_is_reached_is_rolled_back() -> None:
    rng, ramp = seeded(4), Ramp()
    ramp.feed(rng, Moment(0.1, 0.01, 0.01), 1_000)
    for _ in range(200):
        ramp.close(draw(rng, 40, Moment(0.1, 0.3, 0.01)))

    assert ramp.decision().verdict is Verdict.FAIL


def test_a_promotion_goes_by_the_present_evidence() -> None:
    rng, ramp = seeded(4), Ramp(alpha=1e-30)
    ramp.feed(rng, Moment(0.1, 0.01, 0.01), 1_000)
    assert ramp.decision().verdict is Verdict.PASS
    for _ in range(20):
        ramp.close(draw(rng, 40, Moment(0.1, 0.05, 0.01)))

    assert ramp.decision().verdict is Verdict.INCONCLUSIVE


def test_a_rollback_verdict_is_final() -> None:
    rng, ramp = seeded(5), Ramp()
    ramp.feed(rng, Moment(0.1, 0.3, 0.01), 300)
    for _ in range(50):
        ramp.close(draw(rng, 5_000, Moment(0.1, 0.01, 0.01)))

    assert ramp.decision().verdict is Verdict.FAIL


def test_a_rollback_for_errors_needs_a_canary_call_that_failed() -> None:
    ramp = Ramp(prior=Prior(0.3, 1e5))
    for _ in range(5):
        ramp.close(Window(0.5, Arm(), Arm(100, 0)))
    ramp.close(Window(0.5, Arm(5, 0), Arm(5, 0)))

    assert ramp.evidence.first.errors.log_e > math.log(400)
    assert ramp.decision().verdict is Verdict.INCONCLUSIVE


def test_a_rollback_for_errors_waits_for_the_least_number_of_canary_calls() -> None:
    ramp = Ramp(least_calls=20)
    ramp.close(Window(0.1, Arm(19, 19), Arm(100, 0)))
    assert ramp.decision().verdict is Verdict.INCONCLUSIVE
    ramp.close(Window(0.1, Arm(1, 1), Arm(10, 0)))
    assert ramp.decision().verdict is Verdict.FAIL


def open_window(ramp: Ramp, *, canary: int, stable: int, counts: Window) -> CallWindow:
    window = ramp.windows.window(counts)
    window.open = {
        OpenCalls(900, canary=True, asked=False): canary,
        OpenCalls(900, canary=False, asked=False): stable,
    }
    return window


def test_a_verdict_does_not_wait_for_calls_that_can_not_change_it() -> None:
    ramp = Ramp()
    window = open_window(ramp, canary=3, stable=2, counts=Window(0.5, Arm(100, 20), Arm(100, 1)))
    ramp.judge(window, 901)
    before = ramp.evidence.largest

    assert ramp.decision().verdict is Verdict.FAIL
    window.canary.add(Ended(Outcome.OK, 300, 3))  # the worst outcomes
    window.stable.add(Ended(Outcome.ERROR, 300, 2))
    window.open.clear()
    window.changed = True
    ramp.evidence.close(window)
    assert ramp.evidence.first.errors.log_e >= before - 1e-9


def test_open_calls_count_for_the_other_side_until_they_end() -> None:
    ramp = Ramp()
    counts = Window(0.5, Arm(100, 8), Arm(100, 1))
    ramp.judge(open_window(ramp, canary=0, stable=30, counts=counts), 901)

    assert ramp.decision().verdict is Verdict.INCONCLUSIVE
    assert ramp.decision().numbers["canary"] == {"calls": 100, "errors": 8}


def test_an_unreported_canary_call_counts_as_failed_for_a_promotion() -> None:
    rng, promoted = seeded(6), []
    for lost in (0.0, 0.05):
        ramp = Ramp()
        for _ in range(200):
            counts = draw(rng, 40, Moment(0.2, 0.0, 0.01))
            window = ramp.windows.window(counts)
            window.unreported[True] = round(lost * counts.canary.calls + rng.random() - 0.5)
            ramp.evidence.close(window)
        promoted.append(ramp.evidence.promotes)

    assert promoted == [True, False]


def test_without_canary_calls_the_verdict_is_inconclusive() -> None:
    ramp = Ramp()
    for _ in range(5):
        ramp.close(Window(0.01, Arm(), Arm(20, 1)))

    decision = ramp.decision()

    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.needs is None
    assert decision.reason == "vision: no canary calls yet, share unchanged"


def undecided(keys: Keys | None = None) -> Decision:
    ramp = Ramp(parts=3)
    ramp.close(Window(0.1, Arm(50, 1), Arm(450, 9)))
    return ramp.decision(keys)


def test_an_inconclusive_verdict_forecasts_the_calls_needed() -> None:
    decision = undecided()

    assert decision.kind is EvidenceKind.WAITING
    assert decision.needs is not None
    assert 100 < decision.needs < 2_000
    assert decision.reason == (
        "vision: canary error rate 2.0 %, stable 2.0 %, over 50 canary calls; not enough data, "
        f"about {decision.needs:,} more canary calls are needed"
    )


def test_with_keys_the_forecast_is_of_first_calls_and_absent_while_all_keys_have_counted() -> None:
    known = Keys(
        used=True,
        calling=500,
        called_today=500,
        share=0.1,
        last_share=0.1,
        by_interval={(0.0, 0.1): 50, (0.1, 1.0): 450},
        all_known=True,
        anew_seconds=4000,
    )
    decision, dry = undecided(Keys(used=True)), undecided(known)

    assert decision.reason.endswith(
        f"about {decision.needs:,} more first canary calls of a key are needed"
    )
    assert dry.needs is None
    assert dry.outlook.shortage is not None
    assert dry.reason.endswith(
        "every key that calls has counted; keys count anew at the next step, or within 2 h; "
        "500 keys are too few for a verdict at 10.0 %: it takes about "
        f"{dry.outlook.shortage.more:,} more keys"
    )


def test_there_is_no_forecast_from_few_calls() -> None:
    ramp = Ramp()
    ramp.close(Window(0.1, Arm(5, 1), Arm(45, 1)))

    decision = ramp.decision()

    assert decision.needs is None
    assert "too early to forecast" in decision.reason


def test_a_sample_ratio_mismatch_withholds_the_promotion() -> None:
    rng, ramp = seeded(6), Ramp()
    for _ in range(200):
        window = draw(rng, 40, Moment(0.2, 0.01, 0.01))
        ramp.close(Window(0.1, window.canary, window.stable))
        ramp.evidence.windows.assigned.add(0.1, window.canary.calls, canary=True)
        ramp.evidence.windows.assigned.add(0.1, window.stable.calls, canary=False)

    decision = ramp.decision()

    assert ramp.evidence.promotes
    assert (decision.verdict, decision.kind) == (Verdict.INCONCLUSIVE, EvidenceKind.RATIO)
    assert re.search(
        r"got \d\d\.\d % of the calls instead of 10\.0 %.*no promotion meanwhile", decision.reason
    )


def test_a_mismatch_of_unreported_calls_withholds_the_promotion() -> None:
    rng, ramp = seeded(6), Ramp()
    for _ in range(600):
        window = draw(rng, 40, Moment(0.1, 0.01, 0.01))
        ramp.close(window)
        ramp.evidence.windows.assigned.add(0.1, window.canary.calls, canary=True)
        ramp.evidence.windows.assigned.add(0.1, window.stable.calls, canary=False)
    ramp.evidence.windows.assigned.add(0.1, 10, canary=True)
    ramp.evidence.windows.unreported.add(0.1, 10, canary=True)

    decision = ramp.decision()

    assert ramp.evidence.promotes
    assert ramp.evidence.ratios().assigned.fits
    assert (decision.verdict, decision.kind) == (Verdict.INCONCLUSIVE, EvidenceKind.RATIO)
    assert "the canary arm reports fewer of its decisions" in decision.reason


def test_stables_rate_is_weighted_by_the_canarys_calls_of_each_share() -> None:
    ramp = Ramp()
    ramp.close(Window(0.01, Arm(100, 1), Arm(9_900, 99)))
    ramp.close(Window(0.5, Arm(5_000, 500), Arm(5_000, 500)))

    numbers = ramp.decision().numbers

    assert numbers["stable_error_rate"] == pytest.approx(numbers["canary_error_rate"])


def test_a_feature_that_is_rolled_back_leaves_its_part_of_alpha_to_the_others() -> None:
    logs = {name: math.log(e_value) for name, e_value in (("a", 301), ("b", 199), ("c", 99))}

    assert holm(logs, 0.01) == (frozenset("a"), 2)
    assert holm({**logs, "b": math.log(201)}, 0.01) == (frozenset("ab"), 1)
    assert holm({**logs, "b": math.log(201), "c": math.log(101)}, 0.01) == (frozenset("abc"), 1)
    assert holm({**logs, "a": math.log(299)}, 0.01) == (frozenset(), 3)


def test_rounds_have_parts_of_alpha_that_add_up_to_less_than_one() -> None:
    ramp = Ramp()
    undivided = 100 / ERRORS_PART
    parts = [undivided / ramp.decision().numbers["evidence"]["errors"]["needed"]]
    for number in range(2, 60):
        ramp.evidence.start_round(number)
        parts.append(undivided / ramp.decision().numbers["evidence"]["errors"]["needed"])

    assert 0.99 < sum(parts) < 1
    assert parts[0] == pytest.approx(0.9)


def test_windows_of_a_later_round_are_evidence_of_their_own() -> None:
    ramp = Ramp()
    ramp.close(Window(0.5, Arm(100, 1), Arm(100, 1)))
    before = ramp.evidence.first.to_dict()
    ramp.evidence.start_round(2)
    for _ in range(3):
        ramp.close(Window(0.5, Arm(100, 20), Arm(100, 1)), None, None, 2)

    assert ramp.decision().verdict is Verdict.FAIL
    assert ramp.evidence.first.to_dict() == before


def test_restored_ramp_evidence_continues_unchanged() -> None:
    rng = seeded(8)
    ramp = Ramp(alpha=0.02, margin=0.03, latency_margin=0.2, past=latencies(rng, 500))
    ramp.feed(rng, Moment(0.1, 0.02, 0.01), 20)
    ramp.feed(rng, Moment(0.25, 0.02, 0.01), 5)
    ramp.evidence.start_round(2)
    saved = json.dumps(ramp.evidence.to_dict(), allow_nan=False)
    restored = RampEvidence.from_dict(json.loads(saved))
    canary, stable = latencies(rng, 20), latencies(rng, 60)
    for evidence in (ramp.evidence, restored):
        for number in (1, 2):
            counts = Window(0.25, Arm(20, 3), Arm(60, 1))
            evidence.close(Feed().window(counts, canary, stable, number))

    assert restored.to_dict() == ramp.evidence.to_dict()
    assert restored.decision() == ramp.evidence.decision()


def test_evidence_of_a_version_before_rounds_goes_on() -> None:
    logs = [0.5, 1.0, 2.0, 2.5, 1.0, -3.0, -9.0]
    test = {
        "alpha": 0.0025,
        "past": {"prior": {"mean": 0.02, "weight": 2.0}, "calls": 1000, "errors": 30},
        "canary_calls": 100,
        "started": 0.94,
        "logs": logs,
        "highest": 2.9,
    }
    saved = {
        "feature": "vision",
        "errors": test,
        "latency": {"alpha": 0.0008, "tests": [test] * 3, "highest": 2.0},
        "promotion": {"alpha": 0.05, "margin": 0.02, "log": 1.25, "highest": 3.1},
        "totals": [[0.1, 100, 5, 900, 25]],
    }
    evidence = RampEvidence("vision")
    evidence.carry_over(saved)
    money = sum(math.exp(log) for log in logs) + 0.06

    assert math.exp(evidence.first.errors.log_e) == pytest.approx(money)
    assert math.exp(evidence.first.latency.log_e) == pytest.approx(money)
    assert evidence.first.log_promotion == pytest.approx(1.25)
    assert evidence.failed is None
    assert evidence.totals.canary == Arm(100, 5)
    evidence.carry_over({**saved, "errors": {**test, "highest": 9.0}})
    assert evidence.decision().verdict is Verdict.FAIL


def test_the_numbers_of_a_decision_are_json_values() -> None:
    json.dumps(undecided().numbers, allow_nan=False)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_an_alpha_that_is_no_probability_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha is between 0 and 1"):
        RampEvidence("vision", alpha=alpha)


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
