"""Evidence for a rollback: the canary fails more often than stable.

Theory (after Turner, Ly and Grünwald, arXiv 2106.02693; restarts after Shin, Ramdas and Rinaldo,
arXiv 2203.03532; docs/canary.md has the guarantees and the simulations).

Null hypothesis: the canary fails no more often than stable, for any rate of stable. Let p be the
canary's share, m the pooled error rate before the window (`counts.Baseline`), and r a risk ratio:

    θs = m / (p·r + 1 - p)      θc = min(r·θs, 0.999)      θ̄ = p·θc + (1 - p)·θs

A window with c errors in C canary calls and s errors in S stable calls multiplies the bet on r by

    (θc/θ̄)^c · ((1-θc)/(1-θ̄))^(C-c) · (θs/θ̄)^s · ((1-θs)/(1-θ̄))^(S-s)

Because θ̄ is the mean of θc and θs under the share, the factor's expectation is exactly 1 if both
arms have the same rate, and below 1 if the canary has the lower one. m decides only how fast the
evidence grows, never whether it is valid, so the error rate may drift or jump.

Restarts: after 100,000 good calls a single bet has lost nearly everything. So 0.9 of alpha bets
from the first call on, and the rest is added step by step as new bets; after n canary calls
1 - 0.1 / (1 + ln(1 + n/100)) of alpha bets. Bets on the same r multiply by the same factor, so
their sum is one number per r.

Order in `update`: start the bets that are due, multiply by the rate of the past, then learn.
"""

from __future__ import annotations

import math
from typing import Any

from atlas_supervisor.canary.stats.counts import Baseline, Prior, Rates, Window
from atlas_supervisor.canary.stats.evalue import EProcess, log_ratio, log_sum

RISK_RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
"""The risk ratios r; each gets the same part of alpha."""

_MAX_CANARY_RATE = 0.999  # at 1 a single good canary call would end the bet
_STARTED_AT_FIRST = 0.9  # part of alpha that bets from the first call on
_RESTART_CALLS = 100  # canary calls over which the restarts begin to thin out


class RollbackEvidence(EProcess):
    """The e-process against "the canary fails no more often than stable"."""

    def __init__(self, alpha: float, prior: Prior | None = None) -> None:
        super().__init__(alpha)
        self._baseline = Baseline(prior or Prior())
        self._canary_calls = 0
        self._started = _STARTED_AT_FIRST
        self._logs = [math.log(_STARTED_AT_FIRST / len(RISK_RATIOS))] * len(RISK_RATIOS)

    def update(self, window: Window) -> None:
        """Multiply the next window in, then learn from it."""
        if window.is_drawn and window.both.calls:
            self._restart()
            rate = self._baseline.rate
            for index, ratio in enumerate(RISK_RATIOS):
                self._logs[index] += log_factor(window, ratio, rate)
            self._track_highest()
        self._baseline.learn(window.both)
        self._canary_calls += window.canary.calls

    def _restart(self) -> None:
        """Start new bets with the part of alpha that is due by now."""
        due = share_started(self._canary_calls)
        if due > self._started:
            new = math.log((due - self._started) / len(RISK_RATIOS))
            self._logs = [log_sum((log, new)) for log in self._logs]
            self._started = due

    def reset_baseline(self, prior: Prior) -> None:
        """Start the pooled rate anew, because an error is defined anew; the evidence stays."""
        self._baseline = Baseline(prior)

    @property
    def rate(self) -> float:
        """The pooled rate that the next window is judged by."""
        return self._baseline.rate

    @property
    def log_e(self) -> float:
        """The natural logarithm of the e-value; alpha that does not bet yet counts as it is."""
        return log_sum([*self._logs, math.log1p(-self._started)])

    def calls_needed(self, rates: Rates, extra: float = 0.0) -> float | None:
        """Return a forecast of the canary calls until it is reached, at these rates.

        `extra` is what the logarithm must grow beyond 1/alpha.
        """
        missing = [extra - math.log(self.alpha) - log for log in self._logs]
        speeds = [growth(rates, ratio, self.rate) for ratio in RISK_RATIOS]
        return min(
            (max(log, 0) / speed for log, speed in zip(missing, speeds, strict=True) if speed > 0),
            default=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values, without loss."""
        return {
            "alpha": self.alpha,
            "past": self._baseline.to_dict(),
            "canary_calls": self._canary_calls,
            "started": self._started,
            "logs": list(self._logs),
            "highest": self._highest,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> RollbackEvidence:
        """Return the saved state. Raises ValueError if a version with other bets has saved it."""
        if len(saved["logs"]) != len(RISK_RATIOS):
            raise ValueError("this evidence was saved by another version of the supervisor")
        evidence = cls(saved["alpha"])
        evidence._baseline = Baseline.from_dict(saved["past"])
        evidence._canary_calls = saved["canary_calls"]
        evidence._started = saved["started"]
        evidence._logs = list(saved["logs"])
        evidence._highest = saved["highest"]
        return evidence


def share_started(canary_calls: int) -> float:
    """Return the part of alpha that bets after this many canary calls, in [0.9, 1)."""
    return 1 - (1 - _STARTED_AT_FIRST) / (1 + math.log1p(canary_calls / _RESTART_CALLS))


def bet(ratio: float, rate: float, share: float) -> tuple[float, float]:
    """Return θc and θs of the bet on a risk ratio, given the pooled rate."""
    stable = rate / (share * ratio + 1 - share)
    return min(ratio * stable, _MAX_CANARY_RATE), stable


def log_factor(window: Window, ratio: float, rate: float) -> float:
    """Return the logarithm of the factor by which a window multiplies the bet on a risk ratio."""
    canary, stable = bet(ratio, rate, window.share)
    pooled = window.share * canary + (1 - window.share) * stable
    in_canary = log_ratio(window.canary.calls, window.canary.errors, canary, pooled)
    return in_canary + log_ratio(window.stable.calls, window.stable.errors, stable, pooled)


def growth(rates: Rates, ratio: float, rate: float) -> float:
    """Return the growth of a bet's logarithm per canary call, expected at these rates."""
    canary, stable = bet(ratio, rate, rates.share)
    pooled = rates.share * canary + (1 - rates.share) * stable
    in_canary = log_ratio(1, rates.canary, canary, pooled)
    return in_canary + rates.stable_calls * log_ratio(1, rates.stable, stable, pooled)
