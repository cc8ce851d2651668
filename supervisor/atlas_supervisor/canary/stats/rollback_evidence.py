"""Evidence for a rollback: the canary fails more often than stable.

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
  lost nearly everything. So 0.9 of the money bets from the first call on, and a little is added
  in small steps; after n canary calls 1 - 0.1 / (1 + ln(1 + n/1000)) bets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

RISK_RATIOS = {1.25: 0.04, 1.5: 0.08, 2.0: 0.2, 3.0: 0.18, 5.0: 0.2, 10.0: 0.16, 20.0: 0.14}
"""The risk ratios r, and how the money is divided. The least ones need many calls anyway."""

STARTED_AT_FIRST = 0.9
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
    """Return the part of the money that bets after this many canary calls, in [0.9, 1)."""
    grown = math.log1p(canary_calls / _RESTART_CALLS) // _RESTART_STEP * _RESTART_STEP
    return 1 - (1 - STARTED_AT_FIRST) / (1 + grown)
