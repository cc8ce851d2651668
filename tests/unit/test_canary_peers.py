"""The pure parts of `./scripts/bench canary-peers`: streams, oracles and goals."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

import pytest

from scripts.benchmarks.canary_bounds import early, oracle
from scripts.benchmarks.canary_peers import by_oracles, first, goal, ours
from scripts.benchmarks.canary_streams import (
    Kind,
    log_ratio,
    long_tail,
    scenarios,
    shifted,
)


def test_a_seed_always_gives_the_same_calls() -> None:
    for scenario in scenarios():
        one, other = (list(islice(scenario.slices(7), 3)) for _ in range(2))
        assert one == other


@pytest.mark.parametrize("latency", [shifted(1.2), long_tail])
@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_an_oracle_s_ratio_of_latencies_has_the_mean_one_without_a_difference(
    latency: Callable[[float], float], margin: float
) -> None:
    # Under the null hypothesis 1/ratio is the density's quotient the other way round, so its mean
    # over the canary's draws is 1.
    step = 0.001
    draws = [at * step for at in range(-9_000, 9_000)]
    mean = sum(
        step * math.exp(-log_ratio(latency, draw, latency(draw), margin) - draw * draw / 2)
        for draw in draws
    ) / math.sqrt(2 * math.pi)
    assert mean == pytest.approx(1, abs=1e-3)


def test_our_evidence_finds_a_canary_that_fails_often_about_as_soon_as_an_oracle() -> None:
    scenario = next(each for each in scenarios() if each.name == "1.0% x15")
    slices = list(islice(scenario.slices(1), 200))
    found, least = first(ours(scenario, slices)), by_oracles(scenario, slices)["oracle"]
    assert scenario.kind is Kind.ERRORS
    assert found is not None
    assert least is not None
    assert least / 2 <= found <= 4 * least + 4


def test_a_goal_names_what_misses_it() -> None:
    assert goal("at most 1.15", {"early": 1.2, "late": 1.0}, 1.15).startswith(
        "at most 1.15: not met: early 1.20;"
    )
    assert ": met;" in goal("at most 2", {"early": 1.2, "late": 1.0}, 2)


def test_a_bound_grows_by_what_a_smaller_alpha_costs_and_is_near_the_oracle() -> None:
    grows = 1.32  # of the evidence by a canary call, if 75 % fail and the pooled rate is 12 %
    least, less_alpha = early(0.05, 15, 0.01), early(0.05, 15, 0.001)

    assert 0.95 < least / oracle(0.05, 15) < 1.15
    assert less_alpha - least == pytest.approx(math.log(10) / grows, rel=0.1)
