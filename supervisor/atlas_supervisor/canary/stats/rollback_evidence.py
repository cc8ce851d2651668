"""Evidence that the canary fails more often than stable: reason enough for a rollback.

The formulas, what they guarantee and what the restarts cost are told in `docs/canary.md`.
"""

from __future__ import annotations

import math
from typing import Any

from atlas_supervisor.canary.stats.baseline import Baseline, Prior
from atlas_supervisor.canary.stats.counts import Rates, Window
from atlas_supervisor.canary.stats.evalue import check_alpha, exponential, log_ratio, log_sum

RISK_RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
"""How many times as often as stable the canary may fail: one bet on each, all alike."""

_WORST = 0.999  # no bet says that every canary call fails: one that works would end it
_AT_FIRST = 0.9  # the part of alpha that bets from the first call on
_RESTARTS_FROM = 100  # canary calls over which the restarts begin to thin out


class RollbackEvidence:
    """An e-value against "the canary fails no more often than stable".

    `alpha` is the probability with which it is ever `reached` although the canary is no worse.
    Windows are given in the order in which their calls were assigned, each once.
    """

    def __init__(self, alpha: float, prior: Prior | None = None) -> None:
        check_alpha(alpha)
        self.alpha = alpha
        self._past = Baseline(prior or Prior())
        self._canary_calls = 0
        self._started = _AT_FIRST
        self._logs = [math.log(_AT_FIRST / len(RISK_RATIOS))] * len(RISK_RATIOS)
        self._highest = 0.0

    def update(self, window: Window) -> None:
        """Multiply a window in, and then learn from it."""
        if window.is_drawn and window.both.calls:
            self._restart()
            rate = self._past.rate
            for index, ratio in enumerate(RISK_RATIOS):
                self._logs[index] += log_factor(window, ratio, rate)
            self._highest = max(self._highest, self.log_e)
        self._past.learn(window.both)
        self._canary_calls += window.canary.calls

    def _restart(self) -> None:
        """Let the part of alpha bet that is due by now, as if the canary had begun just now."""
        due = share_started(self._canary_calls)
        if due > self._started:
            new = math.log((due - self._started) / len(RISK_RATIOS))
            self._logs = [log_sum((log, new)) for log in self._logs]
            self._started = due

    def believe(self, prior: Prior) -> None:
        """Begin the pooled rate anew, for what counts as an error changed; the evidence stays."""
        self._past = Baseline(prior)

    @property
    def rate(self) -> float:
        """The pooled rate that the next window will be judged by."""
        return self._past.rate

    @property
    def log_e(self) -> float:
        """The natural logarithm of the e-value."""
        return log_sum([*self._logs, math.log1p(-self._started)])

    @property
    def e_value(self) -> float:
        """The odds against chance as they are now, at most about 1e304."""
        return exponential(self.log_e)

    @property
    def reached(self) -> bool:
        """Whether the e-value has ever reached 1/alpha: roll back."""
        return self._highest >= -math.log(self.alpha)

    def needs(self, rates: Rates, extra: float = 0.0) -> float | None:
        """Return about how many canary calls more it takes, if the rates are these.

        `extra` is what the logarithm must grow beyond 1/alpha.
        """
        missing = [extra - math.log(self.alpha) - log for log in self._logs]
        paces = [growth(rates, ratio, self.rate) for ratio in RISK_RATIOS]
        return min(
            (max(much, 0) / pace for much, pace in zip(missing, paces, strict=True) if pace > 0),
            default=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, without loss."""
        return {
            "alpha": self.alpha,
            "past": self._past.to_dict(),
            "canary_calls": self._canary_calls,
            "started": self._started,
            "logs": list(self._logs),
            "highest": self._highest,
        }

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> RollbackEvidence:
        """Return what was kept. Raises ValueError if that was by a version with other bets."""
        if len(kept["logs"]) != len(RISK_RATIOS):
            raise ValueError("this evidence was kept by another version of the supervisor")
        evidence = cls(kept["alpha"])
        evidence._past = Baseline.from_dict(kept["past"])
        evidence._canary_calls = kept["canary_calls"]
        evidence._started = kept["started"]
        evidence._logs = list(kept["logs"])
        evidence._highest = kept["highest"]
        return evidence


def share_started(canary_calls: int) -> float:
    """Return the part of alpha that bets after this many canary calls, in [0.9, 1)."""
    return 1 - (1 - _AT_FIRST) / (1 + math.log1p(canary_calls / _RESTARTS_FROM))


def bet(ratio: float, rate: float, share: float) -> tuple[float, float]:
    """Return the rates of canary and stable that a bet on a risk ratio says, with this pooled."""
    stable = rate / (share * ratio + 1 - share)
    return min(ratio * stable, _WORST), stable


def log_factor(window: Window, ratio: float, rate: float) -> float:
    """Return the logarithm of what a window multiplies the bet on a risk ratio by."""
    canary, stable = bet(ratio, rate, window.share)
    pooled = window.share * canary + (1 - window.share) * stable
    in_canary = log_ratio(window.canary.calls, window.canary.errors, canary, pooled)
    return in_canary + log_ratio(window.stable.calls, window.stable.errors, stable, pooled)


def growth(rates: Rates, ratio: float, rate: float) -> float:
    """Return by how much a bet's logarithm grows for each canary call, if rates are these."""
    canary, stable = bet(ratio, rate, rates.share)
    pooled = rates.share * canary + (1 - rates.share) * stable
    in_canary = log_ratio(1, rates.canary, canary, pooled)
    return in_canary + rates.stable_calls * log_ratio(1, rates.stable, stable, pooled)
