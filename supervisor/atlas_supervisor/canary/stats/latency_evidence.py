"""Evidence for a rollback: the canary is slower than stable by more than a margin.

Theory. Let a canary call of x ms count as one of x/1.1 ms, with a margin of 10 %; one of less than
11 ms as x - 1 ms at most, as a difference of microseconds would be certain and irrelevant. Null
hypothesis: for every t, canary calls adjusted this way take over t ms no more often than stable
calls. There are two kinds of bets, all on the same coarse ranks: a call's level is how many of
stable's past quantiles (`CUTS`) it has passed.

All bets are on ranks (after Shekhar and Ramdas, arXiv 2112.09162, and Waudby-Smith and Ramdas,
arXiv 2010.09686): let w >= 0 not fall with the latency, and q = p·w / (p·w + 1 - p), p being the
canary's share. A canary call multiplies by q/p and a stable call by (1-q)/(1-p). The first grows
with w, so if the canary is no slower its expectation is at most that over stable's calls, and
p·(q/p) + (1-p)·(1-q)/(1-p) = 1. There are two kinds of w.

- w = exp(λz - λ²/2), with z the normal score of the level and λ one of `STRENGTHS`: for normal
  logarithms, the likelihood ratio of a shift by λ standard deviations. They find a shift of the
  whole distribution.
- w = 1 - κ + κ·(1-θ)·(1-u)^-θ, with u the level's rank between 0 and 1: the likelihood ratio if a
  part κ of the calls is among the slowest. It finds a longer tail, and some calls that are much
  slower (`_TAIL`).

Invariants
- Quantiles and scores are fixed before a window's first call. They come from calls of earlier
  windows. They are placed anew after four times as many stable calls as they come from,
  PLACE_CALLS at most, because latencies drift; money and earlier factors stay, which were valid
  when they were multiplied in.
- Rounding is in the canary's favour: a call that is slower by exactly the margin never gets a
  higher level.
- Every bet grows with a canary call's level and falls with a stable call's. So a call without an
  outcome is bounded from below: a canary call has the level of the time that it is open already, a
  stable call the highest.
- All calls count, failed ones too. A cancelled call counts with the time that it took.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from statistics import NormalDist
from typing import Any

from atlas_supervisor.model.histogram import Histogram
from atlas_worker.contract import (
    LATENCY_BUCKETS,
    LATENCY_RATIO,
    bucket_milliseconds,
    latency_bucket,
)

CUTS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999)
"""The quantiles of stable's latencies between the levels."""

LEVELS = len(CUTS) + 1

STRENGTHS = {0.12: 0.15, 0.25: 0.4, 0.6: 0.2, 1.2: 0.05}
"""The strengths λ of the bets on a shift, and their parts of the money.

Most is on a quarter and a half of a standard deviation: for a log-normal latency with a sigma of
0.7, on a fifth and a half more. With the default margin a fifth more looks like a twelfth.
"""

_TAIL, _TAIL_PART = (0.8, 0.07), 0.2
"""θ and κ of the bet on a longer tail, and its part of the money."""

WEIGHTS = (*STRENGTHS.values(), _TAIL_PART)
"""The money of each bet: by strength, then on the tail."""

SLACK_MS, SLACK_BELOW_MS = 1.0, 11.0
"""A difference up to the first is not counted for canary calls of less than the second."""

LEAST_CALLS, PLACE_CALLS = 50, 2_000
"""The least stable calls to place quantiles by, and the most until they are placed anew."""

_AGAIN = 4

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Placement:
    """Stable's past quantiles, as the first bucket of each level but the lowest."""

    cuts: tuple[int, ...]
    canary_cuts: tuple[int, ...]
    """The same for canary calls, which are adjusted by the margin."""
    scores: tuple[float, ...]
    """The normal score of each level."""
    first: int
    """The first window that goes by it."""
    again: int
    """The number of stable calls after which quantiles are placed anew."""

    def level(self, bucket: int, *, canary: bool) -> int:
        """Return the level of a call's latency."""
        return bisect_right(self.canary_cuts if canary else self.cuts, bucket)

    def levels(self, latency: Iterable[tuple[int, int]], *, canary: bool) -> list[int]:
        """Return how many calls of these latencies are in each level."""
        found, cuts = [0] * LEVELS, self.canary_cuts if canary else self.cuts
        for bucket, count in latency:
            found[bisect_right(cuts, bucket)] += count
        return found

    def to_list(self) -> list[Any]:
        """Return it as JSON values."""
        return list(vars(self).values())

    @classmethod
    def from_list(cls, saved: Iterable[Any] | None) -> Placement | None:
        """Return the placement that `to_list` has saved; None if an early version has."""
        match list(saved or ()):
            case [cuts, canary_cuts, scores, *_, first, again]:  # others had slow calls' rates
                return cls(tuple(cuts), tuple(canary_cuts), tuple(scores), first, again)
        return None


def place(stable: Histogram, margin: float, first: int = 0) -> Placement | None:
    """Return the placement by stable's past calls; None if there are too few."""
    calls = stable.count
    if calls < LEAST_CALLS:
        return None
    cuts = [(bucket or 0) + 1 for bucket in stable.quantile_buckets(CUTS)]
    levels = [0] * LEVELS
    for bucket, count in stable:
        levels[bisect_right(cuts, bucket)] += count
    below = list(accumulate(levels[:-1]))
    ends = zip([0, *below], [*below, calls], strict=True)
    ranks = [(low + high + 1) / (2 * calls + 2) for low, high in ends]
    adjusted = _adjusted(margin)
    return Placement(
        cuts=tuple(cuts),
        canary_cuts=tuple(bisect_left(adjusted, cut) for cut in cuts),
        scores=tuple(_NORMAL.inv_cdf(rank) for rank in ranks),
        first=first,
        again=min(_AGAIN * calls, PLACE_CALLS),
    )


@lru_cache(maxsize=4)
def _adjusted(margin: float) -> list[int]:
    """Return the bucket that a canary's bucket counts as, at this margin."""
    shift = math.ceil(math.log1p(margin) / math.log(LATENCY_RATIO) - 1e-9)
    edges = [
        bucket_milliseconds(each) / math.sqrt(LATENCY_RATIO) for each in range(LATENCY_BUCKETS)
    ]
    at_most = [
        latency_bucket(edge - SLACK_MS) if edge < SLACK_BELOW_MS else LATENCY_BUCKETS
        for edge in edges
    ]
    return [max(0, min(bucket - shift, most)) for bucket, most in enumerate(at_most)]


@dataclass(frozen=True)
class LatencyBets:
    """The bets on one window: by strength, then on the tail."""

    canary: list[list[float]]
    """Of each bet, the logarithm of a canary call's factor by level."""
    stable: list[list[float]]

    @classmethod
    def fixed(cls, share: float, placement: Placement) -> LatencyBets:
        """Return the bets that these numbers fix."""
        scores, (power, part) = placement.scores, _TAIL
        ranks = [_NORMAL.cdf(score) for score in scores]
        tail = [1 - part + part * (1 - power) * (1 - rank) ** -power for rank in ranks]
        by_level = [[each * score - each**2 / 2 for score in scores] for each in STRENGTHS]
        canary, stable = [], []
        for logs in (*by_level, [math.log(weight) for weight in tail]):
            totals = [math.log(share * math.exp(log) + 1 - share) for log in logs]
            canary.append([log - total for log, total in zip(logs, totals, strict=True)])
            stable.append([-total for total in totals])
        return cls(canary, stable)

    def log_factors(self, canary: Sequence[float], stable: Sequence[float]) -> list[float]:
        """Return the logarithm of the factor of each bet, by both arms' calls by level."""
        return [
            sum([by * count for by, count in zip(in_canary, canary, strict=True)])
            + sum([by * count for by, count in zip(in_stable, stable, strict=True)])
            for in_canary, in_stable in zip(self.canary, self.stable, strict=True)
        ]
