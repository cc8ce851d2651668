"""Evidence that the canary is not worse by a margin or more: reason enough for a promotion.

The mirror image of `rollback`; the formulas and what a margin means stand in `docs/canary.md`.
"""

from __future__ import annotations

import math
from typing import Any

from atlas_supervisor.canary.stats.baseline import Baseline, Prior
from atlas_supervisor.canary.stats.counts import Rates, Window
from atlas_supervisor.canary.stats.evalue import check_alpha, exponential, log_ratio


class PromotionEvidence:
    """An e-value against "the canary's error rate is higher by `margin` or more".

    `margin` is a difference of rates: 0.02 is two percentage points. `alpha` is the probability
    with which it is ever `reached` although the canary is that much worse. Windows are given in
    the order in which their calls were assigned, each once.
    """

    def __init__(self, margin: float, alpha: float, prior: Prior | None = None) -> None:
        check_alpha(alpha)
        if not 0 < margin < 1:
            raise ValueError(f"the margin is between 0 and 1, not {margin}")
        self.margin, self.alpha = margin, alpha
        self._past = Baseline(prior or Prior())
        self._log = self._highest = 0.0

    def update(self, window: Window) -> None:
        """Multiply a window in, and then learn from it."""
        if window.is_drawn and window.both.calls:
            self._log += log_factor(window, self._past.rate, self.margin)
            self._highest = max(self._highest, self._log)
        self._past.learn(window.both)

    @property
    def rate(self) -> float:
        """The pooled rate that the next window will be judged by."""
        return self._past.rate

    @property
    def log_e(self) -> float:
        """The natural logarithm of the e-value."""
        return self._log

    @property
    def e_value(self) -> float:
        """The odds against chance as they are now, at most about 1e304."""
        return exponential(self._log)

    @property
    def reached(self) -> bool:
        """Whether the e-value has ever reached 1/alpha: promote."""
        return self._highest >= -math.log(self.alpha)

    def needs(self, rates: Rates) -> float | None:
        """Return about how many canary calls more it takes, if the rates are these."""
        stable = nearest_stable_rate(self.rate, self.margin, rates.share)
        in_canary = log_ratio(1, rates.canary, self.rate, stable + self.margin)
        in_stable = log_ratio(1, rates.stable, self.rate, stable)
        pace = in_canary + rates.stable_calls * in_stable
        return max(-math.log(self.alpha) - self._log, 0) / pace if pace > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, without loss."""
        return {
            "margin": self.margin,
            "alpha": self.alpha,
            "past": self._past.to_dict(),
            "log": self._log,
            "highest": self._highest,
        }

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> PromotionEvidence:
        """Return what was kept."""
        evidence = cls(kept["margin"], kept["alpha"])
        evidence._past = Baseline.from_dict(kept["past"])
        evidence._log, evidence._highest = kept["log"], kept["highest"]
        return evidence


def log_factor(window: Window, rate: float, margin: float) -> float:
    """Return the logarithm of what a window multiplies the evidence by."""
    stable = nearest_stable_rate(rate, margin, window.share)
    in_canary = log_ratio(window.canary.calls, window.canary.errors, rate, stable + margin)
    return in_canary + log_ratio(window.stable.calls, window.stable.errors, rate, stable)


def nearest_stable_rate(rate: float, margin: float, share: float) -> float:
    """Return the stable rate of the worse canary that is hardest to tell from "both fail alike".

    That is the s which minimises share·KL(rate‖s+margin) + (1-share)·KL(rate‖s), for Bernoulli
    distributions: where its derivative, which grows with s, is 0. It is found by bisection.
    """
    low, high = max(0.0, rate - margin), min(rate, 1 - margin)
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return middle
        if _slope(middle, rate, margin, share) < 0:
            low = middle
        else:
            high = middle


def _slope(stable: float, rate: float, margin: float, share: float) -> float:
    canary = stable + margin
    by_canary = (canary - rate) / (canary * (1 - canary))
    by_stable = (stable - rate) / (stable * (1 - stable))
    return share * by_canary + (1 - share) * by_stable
