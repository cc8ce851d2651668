"""The evidence against a version by its predecessor's record: its promises, by simulation."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.requests import RequestCounts, RequestTotals
from atlas_supervisor.requests.old_record import (
    MIN_BAD,
    MIN_RECORD,
    RecordEvidence,
    Tally,
    upper_bound,
)
from atlas_worker.contract import latency_bucket
from tests.unit.supervisor.requests.support import ALPHA, NOTHING, hour, record, reverted_at


@pytest.mark.parametrize(
    ("old", "within"), [((0, 0), 200), ((250, 0), 100), ((10_000, 50), 60), ((10**6, 5_000), 60)]
)
def test_a_fifth_of_failing_requests_is_found_in_seconds(old: tuple[int, int], within: int) -> None:
    found = sorted(
        reverted_at(record(hour(*old)), 0.2, 2_000, seed) or math.inf for seed in range(9)
    )
    assert found[4] <= within, found


def test_five_percent_are_found_where_the_old_version_had_half_a_percent() -> None:
    known = record(hour(10_000, 50))
    assert all(reverted_at(known, 0.05, 3_000, seed) for seed in range(9))


def test_of_a_hundred_equally_good_versions_none_is_reverted() -> None:
    known = record(hour(2_000, 10))
    assert [reverted_at(known, 0.005, 1_500, seed) for seed in range(100)] == [None] * 100


def test_at_the_margin_alpha_holds_at_any_look() -> None:
    # The worst that counts as no worse; with a large alpha, so that few runs show a broken promise.
    alpha, runs = 0.25, 100
    known = record(hour(2_000, 10), alpha=alpha)
    reverted = sum(
        reverted_at(known, known.allowed, 600, seed, alpha=alpha) is not None
        for seed in range(runs)
    )
    assert reverted <= alpha * runs


def test_a_regression_that_comes_late_is_found_soon_after() -> None:
    found = reverted_at(record(hour(10_000, 50)), 0.2, 12_000, 1, good=10_000)
    assert found is not None
    assert found <= 10_600


@settings(deadline=None)
@given(st.integers(1, 20_000), st.floats(0, 1), st.floats(0.001, 0.5))
def test_the_bound_is_exceeded_with_the_promised_probability(
    requests: int, share: float, alpha: float
) -> None:
    bad = int(share * (requests - 1))
    bound = upper_bound(bad, requests, alpha)
    assert bad / requests < bound <= 1
    if requests > 200:
        return
    exact = sum(
        math.comb(requests, k) * bound**k * (1 - bound) ** (requests - k) for k in range(bad + 1)
    )
    assert exact == pytest.approx(alpha, rel=1e-3)


def test_the_worse_hour_counts_and_one_with_few_requests_does_not() -> None:
    worse, better, few = hour(5_000, 100), hour(5_000, 5), hour(MIN_RECORD - 1, 50)
    assert record(better, worse) == record(worse)
    assert record(better, few) == record(better)
    assert record(better).known


def test_a_fresh_installation_takes_few_failures_for_granted() -> None:
    nothing = record(RequestTotals(), RequestTotals())
    assert (nothing.requests, nothing.error_rate, nothing.known) == (0, None, False)
    assert 0.05 < nothing.allowed < 0.1
    assert "too few to go by" in nothing.in_words
    # What little there is counts all the same.
    assert record(hour(20, 10), hour(20, 10)).allowed > 0.3
    assert record(hour(50, 50), hour(60, 60)).allowed == 1


def test_requests_without_an_outcome_and_those_whose_clients_left_count_as_good() -> None:
    evidence = RecordEvidence(record(hour(10_000, 50)), ALPHA, [NOTHING])
    fast_failures = Tally.of(
        RequestTotals(RequestCounts(begun=1_000, classes=(0, 0, 0, 0, 20), left=100)), None
    )
    assert fast_failures == Tally(1_000, 120, 20, 0)
    assert evidence.odds(fast_failures) < evidence.needed
    assert evidence.odds(Tally(20, 20, 20, 0)) > evidence.needed


def test_a_client_that_fails_a_few_times_is_no_evidence() -> None:
    evidence = RecordEvidence(record(hour(10_000, 0)), ALPHA, [NOTHING])
    assert evidence.odds(Tally(19, 19, 19, 0)) == 1
    assert evidence.odds(Tally(400, 400, MIN_BAD - 1, 0)) == 1


def test_requests_from_before_the_switch_do_not_count() -> None:
    known = record(hour(10_000, 50))
    testers = Tally(500, 490, 400, 0)
    fresh, later = (RecordEvidence(known, ALPHA, [start]) for start in (NOTHING, testers))
    now = Tally(600, 600, 410, 0)
    assert later.since_switch(now) == (110, 10)  # those open at the switch included
    assert later.odds(now) == fresh.odds(Tally(110, 110, 10, 0))


def test_a_saved_record_and_its_starts_are_the_whole_state() -> None:
    evidence = RecordEvidence(record(hour(3_000, 15)), ALPHA, [NOTHING])
    assert not evidence.add_start(Tally(100, 100, 1, 0), 5)  # too early
    assert evidence.add_start(Tally(200, 200, 1, 0), 10)
    assert not evidence.add_start(Tally(200, 200, 1, 0), 100)  # nothing is new
    again = RecordEvidence.restored(json.loads(json.dumps(evidence.saved())))
    now = Tally(300, 300, 30, 0)
    assert again.odds(now) == evidence.odds(now) > 1
    assert again.in_words(now, 12) == evidence.in_words(now, 12)


def test_a_version_is_slower_if_many_requests_take_three_times_the_old_p95() -> None:
    known = record(hour(5_000, 0, latency_ms=200))
    assert known.slow_ms == pytest.approx(600, rel=0.02)
    assert record(hour(5_000, 0)).slow_ms == 250  # a fast version may become a little slower
    assert record(hour(50, 0)).slow_ms is None
    evidence = RecordEvidence(known, ALPHA, [NOTHING, NOTHING])
    assert 0.25 < known.allowed_slow < 0.26
    assert evidence.slow_odds(Tally(400, 400, 0, 100)) < evidence.needed_slow
    slower = Tally(400, 400, 0, 200)
    assert evidence.slow_odds(slower) > evidence.needed_slow
    assert "200 of 400 requests took longer than" in evidence.slower_in_words(slower)
    cold = RecordEvidence(known, ALPHA, [NOTHING])
    assert cold.slow_odds(slower) == 1  # its first seconds do not count


def test_latency_above_the_bound_is_counted_by_bucket() -> None:
    totals = RequestTotals(
        RequestCounts(begun=3), Histogram([(latency_bucket(each), 1) for each in (10, 249, 260)])
    )
    assert Tally.of(totals, 250).slow == 1
