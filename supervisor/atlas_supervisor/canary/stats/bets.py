"""E-values, the measure of evidence that all sequential tests here share, and bets on error rates.

**E-values.**

Theory. A test multiplies, call by call, factors whose expectation is at most 1 as long as its null
hypothesis is true. The running product is then a non-negative supermartingale that starts at 1 or
below, and Ville's inequality (1939) bounds its maximum:

    P(the product ever reaches 1/alpha) <= alpha      if the null hypothesis is true

"Ever" includes every moment at which the value is read, so reading it early and often is free, and
the number of calls need not be fixed in advance. A p-value has no such guarantee.

Invariants
- Everything that a factor depends on besides its own call is fixed before that call.
- Each call is multiplied in once.
- A weighted mean of such products is one again, so alpha may be spread over bets (`Mixture`).
- A number that is certainly below the product may be compared in its place: if the lower bound has
  reached 1/alpha, so has the product. That is how calls without an outcome are handled.

Products are stored as logarithms: over 10^7 calls they leave the range of a float.

**Rollback: the canary fails more often than stable.**

Theory (docs/canary.md has the guarantees and the simulations). Null hypothesis: the canary fails no
more often than stable, for any rate of stable. For each call only the arm and the outcome are
random; let p be the canary's share. There are two kinds of bets, each with half of the money.

Bets on a risk ratio r (after Turner, Ly and Grünwald, arXiv 2106.02693), with m the pooled error
rate of the calls before (`counts.Baseline`):

    θs = m / (p·r + 1 - p)      θc = min(r·θs, 0.999)      θ̄ = p·θc + (1 - p)·θs

A canary call multiplies by θc/θ̄ if it failed, else by (1-θc)/(1-θ̄); a stable call by θs/θ̄ or
(1-θs)/(1-θ̄). θ̄ is the mean of θc and θs under the share, so the expectation is exactly 1 if both
arms have the same rate, and below 1 if the canary has the lower one. m decides only how fast the
evidence grows, never whether it is valid.

Bets on a failure's arm (after Lindon and Malek, arXiv 2011.03567) need no m: of two arms alike, a
failed call is the canary's with probability p. With q = p·r / (p·r + 1 - p) a failed canary call
multiplies by q/p, a failed stable call by (1-q)/(1-p), a good call by 1. They are worth more after
an outage or a falling error rate, where m is wrong.

Invariants
- m and the part of the money that bets are fixed before a window's first call.
- For r > 1 a failed canary call raises every bet more than a good one, and a failed stable call
  less than a good one. So a call without an outcome is bounded from below: a canary call as good, a
  stable call as failed.
- Restarts (Shin, Ramdas and Rinaldo, arXiv 2203.03532): after 100,000 good calls a single bet has
  lost nearly everything. So 0.85 of the money bets from the first call on, and a little is added
  in small steps; after n canary calls 1 - 0.15 / sqrt(1 + n/1000) bets.

**Promotion: the canary's error rate is not higher by a margin or more.**

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

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_supervisor.canary.stats.counts import MAX_RATE

_MAX_LOG = 700.0  # exp() of more than 709 does not fit a float


class Mixture:
    """Money spread over several bets by weight, of which a part may start later.

    Bets that start later on the same odds multiply by the same factors from then on, so each bet
    needs one number however often it starts.
    """

    __slots__ = ("_log_weights", "_logs", "_started")

    def __init__(self, weights: Sequence[float], started: float = 1.0) -> None:
        self._log_weights = [math.log(each) for each in weights]
        self._started = started
        self._logs = [each + math.log(started) for each in self._log_weights]

    def copy(self) -> Mixture:
        """Return a copy that goes on by itself."""
        return copy.copy(self)  # its lists are replaced, never changed

    def start(self, due: float) -> None:
        """Start bets until this part of the money bets."""
        if due > self._started:
            new = math.log(due - self._started)
            both = zip(self._logs, [new + weight for weight in self._log_weights], strict=True)
            self._logs = [max(a, b) + math.log1p(math.exp(-abs(a - b))) for a, b in both]
            self._started = due

    def multiply(self, log_factors: Sequence[float]) -> None:
        """Multiply each bet by its factor."""
        self._logs = [log + by for log, by in zip(self._logs, log_factors, strict=True)]

    @property
    def logs(self) -> Sequence[float]:
        """The logarithm of each bet's money."""
        return self._logs

    @property
    def log_bound(self) -> float:
        """A number that the logarithm of all money does not exceed, quickly computed."""
        return max(0.0, *self._logs) + math.log(len(self._logs) + 1)

    @property
    def log_e(self) -> float:
        """The logarithm of all money; what does not bet yet counts as it is."""
        if self._started >= 1:
            return log_sum(self._logs)
        return log_sum([*self._logs, math.log1p(-self._started)])

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values, without loss."""
        return {"started": self._started, "logs": list(self._logs)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over the saved state; the money of other bets is spread over these."""
        self._started, logs = saved["started"], list(saved["logs"])
        if len(logs) != len(self._log_weights):  # an earlier version has saved it
            total = log_sum(logs)
            logs = [total + weight for weight in self._log_weights]
        self._logs = logs


def exponential(log: float) -> float:
    """Return e to this power, limited to about 1e304."""
    return math.exp(min(log, _MAX_LOG))


def log_add(one: float, other: float) -> float:
    """Return the logarithm of the sum of two numbers that are given by their logarithms."""
    return max(one, other) + math.log1p(math.exp(-abs(one - other)))


def log_sum(logs: Sequence[float]) -> float:
    """Return the logarithm of the sum of numbers that are given by their logarithms."""
    largest = max(logs)
    return largest + math.log(sum([math.exp(each - largest) for each in logs]))


def holm(largest: Mapping[str, float], alpha: float) -> tuple[frozenset[str], int]:
    """Return the features that reach their part of alpha, and how many parts the others need.

    `largest` are logarithms. The reciprocal of the largest evidence is a p-value at any time, so
    Holm's rule (1979) holds: a feature that is rolled back leaves its part to the others.
    """
    reached: set[str] = set()
    for feature, log in sorted(largest.items(), key=lambda each: -each[1]):
        if log < math.log((len(largest) - len(reached)) / alpha):
            break
        reached.add(feature)
    return frozenset(reached), max(len(largest) - len(reached), 1)


RISK_RATIOS = {1.3: 0.05, 2.0: 0.21, 3.0: 0.2, 5.0: 0.2, 9.0: 0.2, 16.0: 0.14}
"""The risk ratios r, and how the money is divided. The least one needs many calls anyway."""

STARTED_AT_FIRST = 0.85
"""The part of the money that bets from the first call on."""

_MAX_CANARY_RATE = 0.999  # at 1 a single good canary call would end the bet
_RESTART_CALLS = 1_000  # canary calls over which the restarts begin to thin out
_RESTART_STEP = 0.02  # of growth between two restarts, as starting costs more time than betting


class Bet(NamedTuple):
    """The logarithm of the factor of one call, by its arm and outcome."""

    canary_failed: float
    canary_worked: float
    stable_failed: float
    stable_worked: float


class Outcomes(NamedTuple):
    """Numbers of calls, by arm and outcome."""

    canary_failed: float
    canary_worked: float
    stable_failed: float
    stable_worked: float


def log_factors(bets: Sequence[Bet], calls: Outcomes) -> list[float]:
    """Return the logarithm of the factor of these calls, for each bet."""
    cf, cw, sf, sw = calls
    return [a * cf + b * cw + c * sf + d * sw for a, b, c, d in bets]


def rate_bets(share: float, rate: float) -> list[Bet]:
    """Return the bets on each risk ratio, given the pooled rate m."""
    found = []
    for ratio in RISK_RATIOS:
        stable = rate / (share * ratio + 1 - share)
        canary = min(ratio * stable, _MAX_CANARY_RATE)
        pooled = share * canary + (1 - share) * stable
        worked = math.log1p(-pooled)
        found.append(
            Bet(
                math.log(canary / pooled),
                math.log1p(-canary) - worked,
                math.log(stable / pooled),
                math.log1p(-stable) - worked,
            )
        )
    return found


def arm_bets(share: float) -> list[Bet]:
    """Return the bets on the arm of a failed call, for each risk ratio."""
    found = []
    for ratio in RISK_RATIOS:
        total = math.log(share * ratio + 1 - share)
        found.append(Bet(math.log(ratio) - total, 0.0, -total, 0.0))
    return found


def share_started(canary_calls: int) -> float:
    """Return the part of the money that bets after this many canary calls, in [0.85, 1)."""
    grown = math.log1p(canary_calls / _RESTART_CALLS) // _RESTART_STEP * _RESTART_STEP
    return 1 - (1 - STARTED_AT_FIRST) * math.exp(-grown / 2)


# Promotion.

PROMOTION_WEIGHTS = (0.75, 0.25)
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
