"""Confidence intervals for the report: of a rate, a quantile, and a difference within strata.

They are for one look at the numbers; verdicts come from the evidence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.model.histogram import Histogram


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


def wilson(arm: Arm, confidence: float = 0.95) -> Interval | None:
    """Return an arm's error rate with Wilson's score interval; None without calls.

    Wilson (1927), Journal of the American Statistical Association 22, 209-212.
    """
    if not arm.calls:
        return None
    z, n, rate = _z(confidence), arm.calls, arm.errors / arm.calls
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if arm.errors == 0 else max(0.0, middle - half)
    high = 1.0 if arm.errors == arm.calls else min(1.0, middle + half)
    return Interval(rate, low, high)


def quantile(latency: Histogram, q: float, confidence: float = 0.95) -> Interval | None:
    """Return a quantile in milliseconds with its interval; None if there are too few calls for it.

    By order statistics, for every distribution (Conover 1999, section 3.2): the number of calls
    below the true quantile is binomial, here by its normal approximation, rounded outwards.
    """
    n = latency.count
    half = _z(confidence) * math.sqrt(n * q * (1 - q))
    low, high = math.floor(n * q - half), math.ceil(n * q + half) + 1
    if low < 1 or high > n:
        return None
    below, estimate, above = latency.quantiles(low / n, q, high / n)
    if below is None or estimate is None or above is None:
        return None
    return Interval(estimate, below, above)


def difference(canary: Arm, stable: Arm, confidence: float = 0.95) -> Interval | None:
    """Return the canary's error rate minus stable's; None if an arm has no calls.

    Newcombe (1998), Statistics in Medicine 17, 873-890, method 10, from Wilson's intervals.
    """
    return stratified_difference([(canary, stable)], confidence)


def stratified_difference(
    epochs: Iterable[tuple[Arm, Arm]], confidence: float = 0.95
) -> Interval | None:
    """Return the canary's error rate minus stable's, compared within epochs only.

    The differences are averaged with Mantel and Haenszel's weights; the interval is Newcombe's of
    each epoch, weighted (Zou and Donner 2008, Statistics in Medicine 27, 1693-1702). An epoch
    without calls of an arm is left out. None if all are.
    """
    compared = [(c, s) for c, s in epochs if c.calls and s.calls]
    if not compared:
        return None
    weights = [c.calls * s.calls / (c.calls + s.calls) for c, s in compared]
    total = sum(weights)
    estimate = below = above = 0.0
    for (canary, stable), weight in zip(compared, weights, strict=True):
        c, s, part = wilson(canary, confidence), wilson(stable, confidence), weight / total
        if c is None or s is None:
            continue
        estimate += part * (c.estimate - s.estimate)
        below += part**2 * ((c.estimate - c.low) ** 2 + (s.high - s.estimate) ** 2)
        above += part**2 * ((c.high - c.estimate) ** 2 + (s.estimate - s.low) ** 2)
    return Interval(estimate, estimate - math.sqrt(below), estimate + math.sqrt(above))


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence is between 0 and 1, not {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
