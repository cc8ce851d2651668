"""The guarantees, by simulation: short here, long in `./scripts/bench canary-statistics`.

The seeds are fixed. The bounds are such that right code passes with any seed, but for one in a
million, and what counts wrongly fails.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import pytest

from atlas_supervisor.canary.stats.counts import Prior
from atlas_supervisor.canary.stats.round_evidence import RoundEvidence
from atlas_supervisor.model.histogram import Histogram
from atlas_worker.contract import latency_bucket
from tests.unit.supervisor.canary.stats.support import (
    ALIKE,
    Call,
    Feed,
    Moment,
    Story,
    Window,
    as_they_end,
    calls_until_found,
    draw,
    errors,
    errs,
    in_order,
    latency,
    most_by_chance,
    new_round,
    odds_reached,
    promotion,
    ramp,
    seeded,
    unequal_calls,
    update,
    worse,
)

ALPHA = 0.05
RUNS = 40


@pytest.mark.parametrize("story", list(ALIKE.values()), ids=list(ALIKE))
def test_a_canary_that_is_no_worse_is_rarely_rolled_back(story: Story) -> None:
    rng = seeded(1)
    wrong = sum(errs(rng, (errors, ALPHA), story, 100, 50) for _ in range(RUNS))

    assert wrong <= most_by_chance(RUNS, ALPHA)


@pytest.mark.parametrize("shape", [lambda story: story, ramp], ids=["one share", "ramp"])
def test_a_canary_that_is_worse_by_the_margin_is_rarely_promoted(
    shape: Callable[[Story], Story],
) -> None:
    rng, story = seeded(2), shape(worse(0.03, 0.01))
    wrong = sum(errs(rng, (promotion, ALPHA), story, 100, 50) for _ in range(RUNS))

    assert wrong <= most_by_chance(RUNS, ALPHA)


def wrong_by_speed(windows: Callable[[list[Call], float, int], Iterator[Window]]) -> int:
    rng, wrong = seeded(3), 0
    for _ in range(RUNS):
        evidence, calls, found = new_round(), list(unequal_calls(rng, 1_000, 0.2, 0.3)), False
        for window in windows(calls, 0.3, 20):
            update(evidence, window)
            found = found or odds_reached(evidence, errors, ALPHA)
        wrong += found
    return wrong


def test_a_canary_that_is_only_slower_is_rarely_rolled_back_for_errors() -> None:
    assert wrong_by_speed(in_order) <= most_by_chance(RUNS, ALPHA)


def test_counting_calls_at_completion_would_roll_back_a_slower_canary() -> None:
    assert wrong_by_speed(as_they_end) > most_by_chance(RUNS, ALPHA)


@pytest.mark.parametrize(
    ("canary", "prior", "at_most"),
    [
        (0.15, None, 70),
        (0.05, None, 350),
        (0.15, Prior(0.024, 1e6), 60),
        (0.05, Prior(0.014, 1e6), 300),
    ],
)
def test_a_worse_canary_is_found_soon(canary: float, prior: Prior | None, at_most: int) -> None:
    rng, truth = seeded(4), Moment(0.1, canary, 0.01)
    found = statistics.median(calls_until_found(rng, truth, prior) for _ in range(40))

    assert found <= at_most


def test_a_canary_that_turns_bad_after_100_000_good_calls_is_found_soon() -> None:
    rng, evidence = seeded(5), new_round()
    for _ in range(1_000):
        update(evidence, draw(rng, 100, Moment(0.1, 0.01, 0.01)))
    kept, truth = evidence.to_dict(), Moment(0.1, 0.05, 0.01)
    found = [calls_until_found(rng, truth, after=RoundEvidence.from_dict(kept)) for _ in range(15)]

    assert statistics.median(found) < 700  # without restarts it takes over 900


def test_an_equal_canary_is_promoted_and_not_rolled_back() -> None:
    rng, story = seeded(6), worse(0.01, 0.01)

    assert sum(errs(rng, (promotion, 0.05), story, 200, 50) for _ in range(20)) >= 18


def test_a_canary_as_fast_as_stable_is_rarely_rolled_back_for_latency() -> None:
    """Thresholds are placed by few calls, and both arms become slower for a while."""
    rng, wrong = seeded(9), 0

    def latencies(calls: int, times: float = 1.0) -> Histogram:
        drawn = (times * rng.lognormvariate(3, 0.5) for _ in range(calls))
        return Histogram((latency_bucket(each), 1) for each in drawn)

    for _ in range(RUNS):
        evidence, feed, found = new_round(past=latencies(200)), Feed(), False
        for number in range(40):
            counts = draw(rng, 40, Moment(0.2, 0, 0))
            times = 2.0 if 15 < number < 25 else 1.0
            canary = latencies(counts.canary.calls, times)
            stable = latencies(counts.stable.calls, times)
            evidence.close(feed.window(counts, canary, stable))
            found = found or odds_reached(evidence, latency, ALPHA)
        wrong += found

    assert wrong <= most_by_chance(RUNS, ALPHA)
