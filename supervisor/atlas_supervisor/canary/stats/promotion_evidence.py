"""Evidence for a promotion: the canary's error rate is not higher by a margin or more.

Theory (after Grünwald, de Heide and Koolen, arXiv 1906.07801; docs/canary.md says what a margin
means). "No worse" can't be shown, only "not worse by δ": this is a non-inferiority test.

Null hypothesis: the canary's rate is at least δ above stable's, for any rate of stable. Each bet is
on a pair of rates, a for the canary and b for stable. Of all pairs (s + δ, s) of the null the one
that is hardest to tell from it is

    s = argmin  p·KL(a‖s+δ) + (1-p)·KL(b‖s)      KL(x‖y) = x·ln(x/y) + (1-x)·ln((1-x)/(1-y))

with p the canary's share: the reverse information projection onto the null. A canary call
multiplies by a/(s+δ) if it failed, else by (1-a)/(1-s-δ); a stable call by b/s or (1-b)/(1-s). As
the null is convex in the distribution of one call, the projection makes the expectation at most 1
for all of its pairs at once.

Three quarters of the money bet on "both arms have m", the pooled rate of the calls before, and a
quarter on "the canary fails half as often".

Invariants
- m is fixed before a window's first call.
- As a < s + δ and b > s, a failed canary call lowers every bet and a failed stable call raises it.
  So a call without an outcome is bounded from below: a canary call as failed, a stable call as
  good. A decision that was never reported always counts that way.
- What stable calls add after the last canary call is not counted: a lower bound, which keeps a
  canary that no longer gets calls from being promoted by what stable does.
- The current value decides, not the highest: a canary that was good and turned bad loses it again.

The slope of the objective grows with s, so s is found by bisection.
"""

from __future__ import annotations

import math

from atlas_supervisor.canary.stats.counts import MAX_RATE
from atlas_supervisor.canary.stats.rollback_evidence import Bet

WEIGHTS = (0.75, 0.25)
"""The money on "both have the same rate" and on "the canary fails half as often"."""

_BETTER = 0.5


def margin_bets(share: float, rate: float, margin: float) -> list[Bet]:
    """Return the bets against "worse by the margin", given the pooled rate m."""
    stable = min(rate / (share * _BETTER + 1 - share), MAX_RATE)
    return [_bet(rate, rate, margin, share), _bet(_BETTER * stable, stable, margin, share)]


def _bet(canary: float, stable: float, margin: float, share: float) -> Bet:
    """Return the bet on this pair of rates against the nearest pair of the null."""
    nearest = nearest_stable_rate(canary, stable, margin, share)
    worse = nearest + margin
    return Bet(
        math.log(canary / worse),
        math.log1p(-canary) - math.log1p(-worse),
        math.log(stable / nearest),
        math.log1p(-stable) - math.log1p(-nearest),
    )


def nearest_stable_rate(canary: float, stable: float, margin: float, share: float) -> float:
    """Return the s that minimises share·KL(canary‖s+margin) + (1-share)·KL(stable‖s)."""
    low, high = max(0.0, canary - margin), min(stable, 1 - margin)
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return low or high
        if _slope(middle, canary, stable, margin, share) < 0:
            low = middle
        else:
            high = middle


def _slope(nearest: float, canary: float, stable: float, margin: float, share: float) -> float:
    worse = nearest + margin
    if worse >= 1:
        return math.inf
    by_canary = (worse - canary) / (worse * (1 - worse))
    by_stable = (nearest - stable) / (nearest * (1 - nearest))
    return share * by_canary + (1 - share) * by_stable
