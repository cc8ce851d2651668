"""Error rates of the canary's evidence, and the calls until it detects a bad or a good canary.

Simulated traffic with known rates, passed to the daemon's own classes. The seeds are fixed, so two
runs of the same length give the same numbers.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from rich.table import Table

from atlas_supervisor.canary.stats.counts import Prior
from atlas_supervisor.canary.stats.round_evidence import RoundEvidence
from atlas_supervisor.model.histogram import Histogram
from atlas_worker.contract import latency_bucket
from scripts.benchmarks import canary_keys
from scripts.benchmarks.result import Options, Result
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

RUNS = 500
WINDOWS, CALLS = 200, 100  # of each run: 20,000 calls
ALPHA, PROMOTE_ALPHA, MARGIN = 0.01, 0.05, 0.02
SPEED_SHARE, SPEED_RATE, SPEED_CALLS = 0.3, 0.2, 2_000
KNOWN = 1e6  # a prior worth this many calls is as good as known

LATENCY_ALPHA = 0.05
Slower = Callable[[float], float]
NOT_SLOWER: dict[str, tuple[float, float, Slower, float]] = {
    "as fast, margin 0": (0.0, 50.0, lambda ms: ms, 0.7),
    "slower by 10 %, margin 10 %": (0.1, 50.0, lambda ms: 1.1 * ms, 0.7),
    "slower by 1 ms at 3 ms, margin 10 %": (0.1, 3.0, lambda ms: max(ms + 1, 1.1 * ms), 0.3),
    "slower by 1 ms at 3 ms, margin 0": (0.0, 3.0, lambda ms: max(min(ms, 10.0) + 1, ms), 0.3),
}
"""By name: the margin, stable's median in milliseconds, a canary's latency by stable's, sigma."""

Order = Callable[[list[Call], float, int], Iterator[Window]]


async def run(options: Options) -> Result:
    runs = options.count or RUNS
    wrong = {
        **{f"rollback, {name}": rollbacks(story, runs) for name, story in ALIKE.items()},
        "rollback, canary only slower": by_speed(in_order, runs),
        "(the same, counted as calls end)": by_speed(as_they_end, runs),
    }
    promoted = {
        f"promotion, stable {rate * 100:g} %, {name}": promotions(story, runs)
        for rate in (0.001, 0.01, 0.05, 0.3)
        for name, story in at_the_margin(rate).items()
    }
    slower = {name: by_latency(*how, runs) for name, how in NOT_SLOWER.items()}
    found, (returning, by_case) = detection(runs), canary_keys.table(runs)
    tables = [
        rates_table(f"wrong, of {runs} runs of {WINDOWS * CALLS} calls", wrong, ALPHA, runs),
        rates_table("wrong by latency, of 2,400 calls", slower, LATENCY_ALPHA, runs),
        rates_table("wrong, at the margin", promoted, PROMOTE_ALPHA, runs),
        found_table(found),
        returning,
    ]
    rates = {**wrong, **slower, **promoted}
    data: dict[str, Any] = {
        "runs": runs,
        "wrong": rates,
        "canary_calls": found,
        "returning": by_case,
    }
    return Result(tables, data, ["each row looks after every window; medians of canary calls"])


def rollbacks(story: Story, runs: int) -> float:
    """Return the share of runs in which a canary that is no worse is rolled back."""
    rng = seeded(1)
    return sum(errs(rng, (errors, ALPHA), story, WINDOWS, CALLS) for _ in range(runs)) / runs


def promotions(story: Story, runs: int) -> float:
    """Return the share of runs in which a canary that is worse by the margin is promoted."""
    rng = seeded(2)
    test = (promotion, PROMOTE_ALPHA)
    return sum(errs(rng, test, story, WINDOWS, CALLS) for _ in range(runs)) / runs


def at_the_margin(rate: float) -> dict[str, Story]:
    """Return stories of a canary that is worse by exactly the margin."""
    story = worse(rate + MARGIN, rate)
    return {"one share": story, "ramp": ramp(story)}


def by_speed(order: Order, runs: int) -> float:
    """Return the share of runs in which a canary that is only slower is rolled back."""
    rng, wrong = seeded(3), 0
    for _ in range(runs):
        evidence, reached = new_round(), False
        calls = list(unequal_calls(rng, SPEED_CALLS, SPEED_RATE, SPEED_SHARE))
        for window in order(calls, SPEED_SHARE, 20):
            update(evidence, window)
            reached = reached or odds_reached(evidence, errors, ALPHA)
        wrong += reached
    return wrong / runs


def by_latency(margin: float, median: float, slower: Slower, sigma: float, runs: int) -> float:
    """Return the share of runs in which a canary that is slower by up to the margin is found."""
    rng, wrong = seeded(77), 0
    for _ in range(runs):
        evidence, feed, reached = new_round(latency_margin=margin), Feed(), False
        for _ in range(60):
            counts = draw(rng, 40, Moment(0.1, 0.0, 0.0))
            arms = ((counts.canary, slower), (counts.stable, lambda ms: ms))
            canary, stable = (
                Histogram(
                    (latency_bucket(of(median * rng.lognormvariate(0, sigma))), 1)
                    for _ in range(arm.calls)
                )
                for arm, of in arms
            )
            evidence.close(feed.window(counts, canary, stable))
            reached = reached or odds_reached(evidence, latency, LATENCY_ALPHA)
        wrong += reached
    return wrong / runs


def detection(runs: int) -> dict[str, float]:
    """Return the medians of canary calls until a verdict, at a share of 10 %, windows of 20."""
    found: dict[str, float] = {}
    for canary, known in ((0.15, 0.024), (0.05, 0.014)):
        truth, words = Moment(0.1, canary, 0.01), f"1 % to {canary * 100:g} %"
        for name, prior in ((words, None), (f"{words}, rate known", Prior(known, KNOWN))):
            rng = seeded(4)
            found[name] = statistics.median(
                calls_until_found(rng, truth, prior) for _ in range(runs)
            )
    for good in (10_000, 100_000, 1_000_000):
        found[f"1 % to 5 % after {good:,} good calls"] = late(good, runs)
    found["1 % and 1 %, until promoted"] = until_promoted(runs)
    return found


def late(good: int, runs: int) -> float:
    """Return the median for a canary that turns bad late, over ten pasts."""
    rng, found = seeded(5), []
    for _ in range(10):
        evidence = new_round()
        for _ in range(good // 100):
            update(evidence, draw(rng, 100, Moment(0.1, 0.01, 0.01)))
        kept, truth = evidence.to_dict(), Moment(0.1, 0.05, 0.01)
        found += [
            calls_until_found(rng, truth, after=RoundEvidence.from_dict(kept))
            for _ in range(max(1, runs // 10))
        ]
    return statistics.median(found)


def until_promoted(runs: int) -> float:
    """Return the median of canary calls until a canary as good as stable is promoted."""
    rng, found = seeded(6), []
    for _ in range(runs):
        evidence, seen = new_round(), 0
        while not odds_reached(evidence, promotion, PROMOTE_ALPHA):
            window = draw(rng, 20, Moment(0.1, 0.01, 0.01))
            update(evidence, window)
            seen += window.canary.calls
        found.append(seen)
    return statistics.median(found)


def rates_table(title: str, rows: dict[str, float], bound: float, runs: int) -> Table:
    chance = most_by_chance(runs, bound, 0.01) / runs
    words = f"{title}; at most {bound * 100:g} %, or {chance * 100:.1f} % by chance"
    table = Table(title=words, title_justify="left")
    table.add_column("")
    table.add_column("wrong, %", justify="right")
    for name, rate in rows.items():
        table.add_row(name, f"{rate * 100:.1f}")
    return table


def found_table(rows: dict[str, float]) -> Table:
    table = Table(title="canary calls until a verdict, median", title_justify="left")
    table.add_column("")
    table.add_column("calls", justify="right")
    for name, calls in rows.items():
        table.add_row(name, f"{calls:,.0f}")
    return table
