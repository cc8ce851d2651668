"""Evidence that the canary is slower: more of its calls than of stable's are over a threshold.

The test is the one for errors, with "was slow" in the place of "failed", once for each of three
thresholds; their e-values are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from atlas_supervisor.canary.stats.baseline import Prior
from atlas_supervisor.canary.stats.counts import Arm, Rates, Window
from atlas_supervisor.canary.stats.evalue import check_alpha, exponential, log_sum
from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.canary.stats.rollback_evidence import RollbackEvidence
from atlas_worker.contract import (
    LATENCY_BUCKETS,
    LATENCY_RATIO,
    bucket_milliseconds,
    latency_bucket,
)

QUANTILES = (0.5, 0.95, 0.99)
"""Where in the stable arm's latencies the thresholds lie."""

SLACK = 1.1
"""Thresholds lie this much higher: a canary that is slower by less is not slower to a person."""

SLACK_MS = 1.0
"""And at least this much: microseconds are seen by nobody, however sure they are."""

LEAST_CALLS = 200
"""How many stable calls it takes to place thresholds: its slowest 1 % are two of them."""

_SLACK_BUCKETS = round(math.log(SLACK) / math.log(LATENCY_RATIO))
_PRIOR_CALLS = 50.0  # what the stable arm's past is worth; tomorrow is not quite like it


class Slow(NamedTuple):
    """How many calls of a window were slow, in each arm, by one threshold."""

    canary: int
    stable: int


class LatencyEvidence:
    """An e-value against "the canary is over no threshold more often than stable".

    It has no thresholds at first and then ignores windows. They may be fixed anew between
    windows, by the past alone; the evidence stays.
    """

    def __init__(self, alpha: float) -> None:
        check_alpha(alpha)
        self.alpha = alpha
        self.thresholds: tuple[int, ...] = ()
        self.seen: list[tuple[Arm, Arm]] = []
        self._tests = [RollbackEvidence(alpha) for _ in QUANTILES]
        self._highest = 0.0

    def fix_thresholds(self, stable: Histogram) -> bool:
        """Place the thresholds by the stable arm's past, if it has LEAST_CALLS; say whether."""
        calls = stable.count
        if calls < LEAST_CALLS:
            return False
        self.thresholds = tuple(_above(stable.quantile_bucket(q) or 0) for q in QUANTILES)
        self.seen = [(Arm(), Arm())] * len(self.thresholds)
        for test, threshold in zip(self._tests, self.thresholds, strict=True):
            test.believe(Prior((stable.over(threshold) + 0.5) / (calls + 1), _PRIOR_CALLS))
        return True

    def slow(self, canary: Histogram, stable: Histogram) -> tuple[Slow, ...]:
        """Return how many of a window's calls were slow, by each threshold."""
        return tuple(Slow(canary.over(each), stable.over(each)) for each in self.thresholds)

    def update(self, window: Window, slow: Sequence[Slow]) -> None:
        """Multiply in a window, with `slow` for each threshold; nothing while there are none.

        Raises ValueError if `slow` is not of the thresholds as they are.
        """
        if len(slow) != len(self.thresholds):
            raise ValueError(f"{len(slow)} counts of slow calls, {len(self.thresholds)} thresholds")
        for index, counts in enumerate(slow):
            canary = Arm(window.canary.calls, counts.canary)
            stable = Arm(window.stable.calls, counts.stable)
            self._tests[index].update(Window(window.share, canary, stable))
            if window.is_drawn:
                seen = self.seen[index]
                self.seen[index] = (seen[0] + canary, seen[1] + stable)
        self._highest = max(self._highest, self.log_e)

    @property
    def log_e(self) -> float:
        """The natural logarithm of the mean of the thresholds' e-values."""
        return log_sum([test.log_e for test in self._tests]) - math.log(len(self._tests))

    @property
    def e_value(self) -> float:
        """The odds against chance as they are now, at most about 1e304."""
        return exponential(self.log_e)

    @property
    def reached(self) -> bool:
        """Whether the e-value has ever reached 1/alpha: roll back."""
        return self._highest >= -math.log(self.alpha)

    @property
    def clearest(self) -> int:
        """Which threshold has most evidence."""
        return max(range(len(self._tests)), key=lambda index: self._tests[index].log_e)

    def needs(self, rates: Sequence[Rates]) -> float | None:
        """Return about how many canary calls more it takes, if the rates are these."""
        missing = math.log(len(self._tests))  # the mean counts the best one for a third
        found = [test.needs(each, missing) for test, each in zip(self._tests, rates, strict=False)]
        return min((each for each in found if each is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, without loss."""
        return {
            "alpha": self.alpha,
            "thresholds": list(self.thresholds),
            "seen": [[c.calls, c.errors, s.calls, s.errors] for c, s in self.seen],
            "tests": [test.to_dict() for test in self._tests],
            "highest": self._highest,
        }

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> LatencyEvidence:
        """Return what was kept. Raises ValueError if that was by a version with other tests."""
        if len(kept["tests"]) != len(QUANTILES):
            raise ValueError("this evidence was kept by another version of the supervisor")
        evidence = cls(kept["alpha"])
        evidence.thresholds = tuple(kept["thresholds"])
        evidence.seen = [(Arm(cc, ce), Arm(sc, se)) for cc, ce, sc, se in kept["seen"]]
        evidence._tests = [RollbackEvidence.from_dict(each) for each in kept["tests"]]
        evidence._highest = kept["highest"]
        return evidence


def _above(bucket: int) -> int:
    """Return the threshold for a quantile in this bucket: clearly above it."""
    by_ratio = bucket + 1 + _SLACK_BUCKETS
    by_time = latency_bucket(bucket_milliseconds(bucket) + SLACK_MS) + 1
    return min(max(by_ratio, by_time), LATENCY_BUCKETS - 1)
