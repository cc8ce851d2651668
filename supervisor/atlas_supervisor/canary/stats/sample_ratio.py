"""Sample ratio mismatch: whether assignments and reports fit the canary's share.

Theory (a beta-binomial mixture against the binomial, after Lindon and Malek 2020, "Anytime-valid
inference for multinomial count data", arXiv 2011.03567).

Null hypothesis: each assignment goes to the canary with the probability of its share p, drawn
independently. For C assignments to the canary and S to stable under one share, and a concentration
k, the e-value is the likelihood under a share that is Beta-distributed around p, against p itself:

    B(k·p + C, k·(1-p) + S) / B(k·p, k·(1-p)) / (p^C · (1-p)^S)      B: the beta function

Epochs multiply; the mean over k = 10, 1,000 and 100,000 covers large and small deviations. It is a
function of the totals alone, so it is computed when it is read instead of window by window.

Two counts are checked, both over the whole ramp:
- all assignments: a mismatch means that something other than the draw chooses the arm;
- assignments that stay without an outcome: a mismatch means that one arm reports fewer of its
  calls. A few missing reports do not show among the reported calls, but do among the unreported.

Invariants: a key counts once, by its first call, because all its calls have one arm. Calls under a
share of 0 or 1 are left out. A mismatch withholds a promotion, never a rollback.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from atlas_supervisor.canary.stats.bets import exponential, log_sum
from atlas_supervisor.canary.stats.counts import Draws

ALPHA = 0.001
"""The probability that a correct share is ever reported as a mismatch."""

_CONCENTRATIONS = (10.0, 1_000.0, 100_000.0)


@dataclass(frozen=True)
class SampleRatioCheck:
    """Whether the counts fit the shares, with the canary's expected and observed share.

    Both shares are None if there were no assignments.
    """

    fits: bool
    e_value: float
    expected: float | None
    observed: float | None


class SampleRatios(NamedTuple):
    """The checks of all assignments, and of those without an outcome."""

    assigned: SampleRatioCheck
    unreported: SampleRatioCheck

    @property
    def fit(self) -> bool:
        """Whether the arms can be compared."""
        return self.assigned.fits and self.unreported.fits


def check_ratio(draws: Draws, alpha: float = ALPHA) -> SampleRatioCheck:
    """Return whether these assignments fit their shares."""
    drawn = [(share, *counts) for share, counts in draws.by_share.items()]
    calls = sum(canary + stable for _, canary, stable in drawn)
    if not calls:
        return SampleRatioCheck(True, 1.0, None, None)
    logs = [sum(_log_factor(*each, k) for each in drawn) for k in _CONCENTRATIONS]
    log_e = log_sum(logs) - math.log(len(_CONCENTRATIONS))
    return SampleRatioCheck(
        fits=log_e < -math.log(alpha),
        e_value=exponential(log_e),
        expected=sum(share * (canary + stable) for share, canary, stable in drawn) / calls,
        observed=sum(canary for _, canary, _ in drawn) / calls,
    )


def _log_factor(share: float, canary: int, stable: int, concentration: float) -> float:
    a, b = concentration * share, concentration * (1 - share)
    mixture = _log_beta(a + canary, b + stable) - _log_beta(a, b)
    return mixture - canary * math.log(share) - stable * math.log1p(-share)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
