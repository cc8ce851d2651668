"""Evidence for a promotion: the canary's error rate is not higher by a margin or more.

Theory (after Grünwald, de Heide and Koolen, arXiv 1906.07801; docs/canary.md tells what a margin
means). "No worse" can't be shown, only "not worse by δ": this is a non-inferiority test.

Null hypothesis: the canary's rate is at least δ above stable's, for any rate of stable. Of all
such pairs (s + δ, s) the one that is hardest to tell from "both arms have the pooled rate m" is

    s = argmin  p·KL(m‖s+δ) + (1-p)·KL(m‖s)      KL(a‖b) = a·ln(a/b) + (1-a)·ln((1-a)/(1-b))

with p the canary's share: the reverse information projection of m onto the null. A window with c
errors in C canary calls and s' errors in S stable calls multiplies the evidence by

    (m/(s+δ))^c · ((1-m)/(1-s-δ))^(C-c) · (m/s)^s' · ((1-m)/(1-s))^(S-s')

The projection makes the factor's expectation at most 1 for every pair of the null at once: equal
to 1 on its boundary near m, below 1 further inside. As for a rollback, m is the pooled rate before
the window, and each window is multiplied in first and learned from afterwards.

The objective is convex in s and its derivative grows with s, so s is found by bisection between
max(0, m - δ) and min(m, 1 - δ). There are no restarts: a canary that was good and turned bad is
the rollback test's business, which takes precedence over a promotion.
"""

from __future__ import annotations

import math
from typing import Any

from atlas_supervisor.canary.stats.counts import Baseline, Prior, Rates, Window
from atlas_supervisor.canary.stats.evalue import EProcess, log_ratio


class PromotionEvidence(EProcess):
    """The e-process against "the canary's error rate is higher by `margin` or more".

    `margin` is a difference of rates: 0.02 is two percentage points.
    """

    def __init__(self, margin: float, alpha: float, prior: Prior | None = None) -> None:
        super().__init__(alpha)
        if not 0 < margin < 1:
            raise ValueError(f"the margin is between 0 and 1, not {margin}")
        self.margin = margin
        self._baseline = Baseline(prior or Prior())
        self._log = 0.0

    def update(self, window: Window) -> None:
        """Multiply the next window in, then learn from it."""
        if window.is_drawn and window.both.calls:
            self._log += log_factor(window, self._baseline.rate, self.margin)
            self._track_highest()
        self._baseline.learn(window.both)

    @property
    def rate(self) -> float:
        """The pooled rate that the next window is judged by."""
        return self._baseline.rate

    @property
    def log_e(self) -> float:
        """The natural logarithm of the e-value."""
        return self._log

    def calls_needed(self, rates: Rates) -> float | None:
        """Return a forecast of the canary calls until it is reached, at these rates."""
        stable = nearest_stable_rate(self.rate, self.margin, rates.share)
        in_canary = log_ratio(1, rates.canary, self.rate, stable + self.margin)
        in_stable = log_ratio(1, rates.stable, self.rate, stable)
        speed = in_canary + rates.stable_calls * in_stable
        return max(-math.log(self.alpha) - self._log, 0) / speed if speed > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values, without loss."""
        return {
            "margin": self.margin,
            "alpha": self.alpha,
            "past": self._baseline.to_dict(),
            "log": self._log,
            "highest": self._highest,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> PromotionEvidence:
        """Return the saved state."""
        evidence = cls(saved["margin"], saved["alpha"])
        evidence._baseline = Baseline.from_dict(saved["past"])
        evidence._log, evidence._highest = saved["log"], saved["highest"]
        return evidence


def log_factor(window: Window, rate: float, margin: float) -> float:
    """Return the logarithm of the factor by which a window multiplies the evidence."""
    stable = nearest_stable_rate(rate, margin, window.share)
    in_canary = log_ratio(window.canary.calls, window.canary.errors, rate, stable + margin)
    return in_canary + log_ratio(window.stable.calls, window.stable.errors, rate, stable)


def nearest_stable_rate(rate: float, margin: float, share: float) -> float:
    """Return the s that minimises share·KL(rate‖s+margin) + (1-share)·KL(rate‖s)."""
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
