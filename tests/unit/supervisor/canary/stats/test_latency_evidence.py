"""The placement of the latency quantiles, and calls that are slower by no more than the margin."""

from __future__ import annotations

import json
import math
import re

import pytest

from atlas_supervisor.canary.stats.counts import Arm, OpenCalls
from atlas_supervisor.canary.stats.explain import is_slower
from atlas_supervisor.canary.stats.latency_evidence import (
    CUTS,
    LEAST_CALLS,
    PLACE_CALLS,
    Placement,
    place,
)
from atlas_supervisor.canary.stats.round_evidence import Terms
from atlas_supervisor.model.histogram import Histogram
from atlas_worker.contract import latency_bucket
from tests.unit.supervisor.canary.stats.support import (
    Feed,
    Window,
    latency,
    latency_windows,
    most_by_chance,
    new_round,
    odds_reached,
    seeded,
)


def placed(milliseconds: float, margin: float = 0.1, calls: int = LEAST_CALLS) -> Placement | None:
    return place(Histogram([(latency_bucket(milliseconds), calls)]), margin)


@pytest.mark.parametrize("usual", [0.04, 0.5, 3.0, 8.0])
def test_a_call_that_is_slower_by_up_to_a_millisecond_has_no_higher_level(usual: float) -> None:
    placement = placed(usual)
    assert placement is not None

    level = placement.level(latency_bucket(usual), canary=False)
    assert placement.level(latency_bucket(usual + 1), canary=True) <= level
    assert placement.level(latency_bucket(1.15 * (usual + 1.1)), canary=True) > level


@pytest.mark.parametrize("usual", [12.0, 80.0])
def test_without_a_margin_two_percent_more_than_some_milliseconds_are_a_higher_level(
    usual: float,
) -> None:
    placement = placed(usual, margin=0.0)
    assert placement is not None

    level = placement.level(latency_bucket(usual), canary=False)
    assert placement.level(latency_bucket(usual), canary=True) == level
    assert placement.level(latency_bucket(1.02 * usual), canary=True) > level


@pytest.mark.parametrize("margin", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("usual", [20.0, 80.0, 5000.0])
def test_a_call_that_is_slower_by_up_to_the_margin_has_no_higher_level(
    usual: float, margin: float
) -> None:
    placement = placed(usual, margin)
    assert placement is not None

    level = placement.level(latency_bucket(usual), canary=False)
    assert placement.level(latency_bucket(usual * (1 + margin)), canary=True) <= level
    assert placement.level(latency_bucket(1.06 * usual * (1 + margin) + 0.1), canary=True) > level


def test_levels_are_between_the_quantiles_of_stables_past() -> None:
    placement = place(Histogram((bucket, 1) for bucket in range(200, 1200)), 0.0)
    assert placement is not None

    below = [cut - 200 for cut in placement.cuts]
    assert below == [round(quantile * 1000) for quantile in CUTS]
    assert list(placement.scores) == sorted(placement.scores)


def test_without_enough_stable_calls_nothing_is_placed() -> None:
    assert placed(10, calls=LEAST_CALLS - 1) is None


def test_quantiles_are_placed_anew_when_latencies_have_changed_in_both_arms() -> None:
    rng, evidence = seeded(1), new_round()
    for window in latency_windows(rng, 60, calls=100, share=0.1):
        evidence.close(window)
    before = evidence.placement
    assert before is not None
    for window in latency_windows(rng, 60, calls=100, share=0.1, times=5.0, first=60):
        evidence.close(window)
    after = evidence.placement
    assert after is not None
    assert after.first > before.first
    assert after.cuts[6] - before.cuts[6] == pytest.approx(math.log(5) / math.log(1.02), abs=6)

    seen, number = 0, 120
    while not odds_reached(evidence, latency, 0.01):
        for window in latency_windows(
            rng, 1, calls=100, share=0.1, times=5.0, canary_times=1.5, first=number
        ):
            evidence.close(window)
            seen += window.canary.calls
        number += 1
    assert seen < 400  # by the quantiles of before, every call is slow


def test_the_evidence_stays_when_quantiles_are_placed_anew() -> None:
    rng, evidence = seeded(2), new_round()
    for window in latency_windows(rng, PLACE_CALLS // 100 + 30, calls=100, share=0.1):
        before, placement = evidence.latency.log_e, evidence.placement
        evidence.close(window)
        if placement is not None and evidence.placement != placement:
            break
    else:
        pytest.fail("no quantiles were placed anew")

    assert abs(evidence.latency.log_e - before) < 1


@pytest.mark.parametrize("slower", [1.03, 1.05, 1.09])
def test_a_canary_that_is_slower_by_less_than_the_margin_is_rarely_rolled_back(
    slower: float,
) -> None:
    rng, wrong, runs = seeded(3), 0, 20
    for _ in range(runs):
        evidence, reached = new_round(), False
        for window in latency_windows(rng, 40, calls=100, share=0.3, canary_times=slower):
            evidence.close(window)
            reached = reached or odds_reached(evidence, latency, 0.05)
        wrong += reached

    assert wrong <= most_by_chance(runs, 0.05)


@pytest.mark.parametrize("slower", [1.3, 2.0])
def test_a_canary_that_is_slower_by_more_than_the_margin_is_found(slower: float) -> None:
    rng, evidence, reached = seeded(4), new_round(), False
    for window in latency_windows(rng, 60, calls=100, share=0.3, canary_times=slower):
        evidence.close(window)
        reached = reached or odds_reached(evidence, latency, 0.01)

    assert reached


def test_a_few_calls_that_are_much_slower_are_found_and_named() -> None:
    """One canary call in twenty takes ten times as long; the median stays."""
    rng, evidence, feed, seen = seeded(6), new_round(), Feed(), 0
    while not odds_reached(evidence, latency, 0.01) and seen < 1_000:
        times = [10 if number < 30 and rng.random() < 0.05 else 1 for number in range(100)]
        buckets = [latency_bucket(50 * by * rng.lognormvariate(0, 0.5)) for by in times]
        canary, stable = (
            Histogram((each, 1) for each in part) for part in (buckets[:30], buckets[30:])
        )
        evidence.close(feed.window(Window(0.3, Arm(30), Arm(70)), canary, stable))
        seen += 30
    assert seen < 600
    assert evidence.placement is not None

    reason = is_slower("vision", evidence, evidence.placement, 0.01)
    percents = [float(each) for each in re.findall(r"([\d.]+) % of", reason)]
    assert percents[0] > 2 * percents[1]


def test_terms_of_a_version_that_had_rates_of_slow_calls_are_read() -> None:
    placement = placed(40.0)
    assert placement is not None
    cuts, canary_cuts, scores, first, again = placement.to_list()
    saved = [0.01, 0.9, [cuts, canary_cuts, scores, (0.05, 0.01), first, again], (0.05, 0.01)]

    assert Terms.from_list(json.loads(json.dumps(saved))) == Terms(0.01, 0.9, placement)


def test_an_open_call_is_as_slow_as_it_is_open_already() -> None:
    """A canary call that hangs is evidence before it ends; a stable call counts as the slowest."""
    rng, evidence = seeded(5), new_round()
    for window in latency_windows(rng, 30, calls=100, share=0.2):
        evidence.close(window)
    hanging = Feed().window(
        Window(0.2, Arm(), Arm(80, 0)), None, Histogram([(latency_bucket(40), 80)])
    )
    hanging.number, values = 30, []
    hanging.open[OpenCalls(1000, canary=True, asked=False)] = 20
    for now in (1001, 1002, 1010):
        copy = evidence.copy()
        copy.extend(hanging, now)
        values.append(copy.latency.log_e)
    hanging.open[OpenCalls(1000, canary=False, asked=False)] = 1
    copy = evidence.copy()
    copy.extend(hanging, 1010)

    assert values == sorted(values)
    assert values[-1] > evidence.latency.log_e + 2
    assert copy.latency.log_e < values[-1]
