"""Evidence for a rollback: the canary is slower than stable.

Theory. "Slow" takes the place of "failed" and everything else is the test of `rollback_evidence`.
A call is slow by a threshold τ if its latency bucket is τ or above. There are three thresholds,
placed a little above stable's p50, p95 and p99, so that a shift of the whole distribution and a
longer tail are both found. Each threshold has an e-process of its own; the evidence is their mean,
which is an e-value too. That costs at most a factor of 3, or ln 3 in the logarithm.

Slack: thresholds lie 10 % and at least 1 ms above the quantile. Where all calls take nearly the
same time, a difference of microseconds would be certain and irrelevant.

Order and invariants
- Without thresholds (until LEAST_CALLS stable calls are known) windows are ignored.
- Thresholds are fixed when an epoch begins, or later as soon as there are enough calls. They come
  from windows that were already multiplied in, never from the window that they judge: otherwise
  the factor's expectation could exceed 1.
- Fixing them anew defines anew what counts as slow. So each test's pooled rate starts again, from
  the share of stable calls above the new threshold, with the weight of 50 calls. The evidence
  gathered so far stays: earlier factors were valid when they were multiplied in.
- All calls count, failed ones too. A cancelled call counts with the time that it took.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from atlas_supervisor.canary.stats.counts import Arm, Prior, Rates, Window
from atlas_supervisor.canary.stats.evalue import EProcess, log_sum
from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.canary.stats.rollback_evidence import RollbackEvidence
from atlas_worker.contract import (
    LATENCY_BUCKETS,
    LATENCY_RATIO,
    bucket_milliseconds,
    latency_bucket,
)

QUANTILES = (0.5, 0.95, 0.99)
"""The quantiles of stable's latencies that the thresholds are placed by."""

SLACK = 1.1
"""A threshold is at least this factor above its quantile."""

SLACK_MS = 1.0
"""A threshold is at least this many milliseconds above its quantile."""

LEAST_CALLS = 200
"""Stable calls needed to place thresholds: the slowest 1 % are then two calls."""

_SLACK_BUCKETS = round(math.log(SLACK) / math.log(LATENCY_RATIO))
_PRIOR_CALLS = 50.0  # weight of stable's past: latencies drift from one epoch to the next


class Slow(NamedTuple):
    """The slow calls of a window in each arm, by one threshold."""

    canary: int
    stable: int


class LatencyEvidence(EProcess):
    """The mean of three e-processes against "the canary is slow no more often than stable"."""

    def __init__(self, alpha: float) -> None:
        super().__init__(alpha)
        self.thresholds: tuple[int, ...] = ()
        self.seen: list[tuple[Arm, Arm]] = []
        """Calls and slow calls of both arms by threshold, since it was fixed."""
        self._tests = [RollbackEvidence(alpha) for _ in QUANTILES]

    def fix_thresholds(self, stable: Histogram) -> bool:
        """Place the thresholds by stable's past; return False if it has too few calls."""
        calls = stable.count
        if calls < LEAST_CALLS:
            return False
        self.thresholds = tuple(_above(stable.quantile_bucket(q) or 0) for q in QUANTILES)
        self.seen = [(Arm(), Arm())] * len(self.thresholds)
        for test, threshold in zip(self._tests, self.thresholds, strict=True):
            rate = (stable.over(threshold) + 0.5) / (calls + 1)
            test.reset_baseline(Prior(rate, _PRIOR_CALLS))
        return True

    def slow(self, canary: Histogram, stable: Histogram) -> tuple[Slow, ...]:
        """Return the slow calls of a window by each threshold."""
        return tuple(Slow(canary.over(each), stable.over(each)) for each in self.thresholds)

    def update(self, window: Window, slow: Sequence[Slow]) -> None:
        """Multiply the next window in, with its slow calls by each threshold.

        Raises ValueError if `slow` does not match the thresholds.
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
        self._track_highest()

    @property
    def log_e(self) -> float:
        """The natural logarithm of the mean of the thresholds' e-values."""
        return log_sum([test.log_e for test in self._tests]) - math.log(len(self._tests))

    @property
    def strongest(self) -> int:
        """The index of the threshold with the highest e-value."""
        return max(range(len(self._tests)), key=lambda index: self._tests[index].log_e)

    def calls_needed(self, rates: Sequence[Rates]) -> float | None:
        """Return a forecast of the canary calls until it is reached, at these rates."""
        extra = math.log(len(self._tests))  # a single test is a third of the mean
        found = [
            test.calls_needed(each, extra) for test, each in zip(self._tests, rates, strict=False)
        ]
        return min((each for each in found if each is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values, without loss."""
        return {
            "alpha": self.alpha,
            "thresholds": list(self.thresholds),
            "seen": [[c.calls, c.errors, s.calls, s.errors] for c, s in self.seen],
            "tests": [test.to_dict() for test in self._tests],
            "highest": self._highest,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> LatencyEvidence:
        """Return the saved state. Raises ValueError if a version with other tests has saved it."""
        if len(saved["tests"]) != len(QUANTILES):
            raise ValueError("this evidence was saved by another version of the supervisor")
        evidence = cls(saved["alpha"])
        evidence.thresholds = tuple(saved["thresholds"])
        evidence.seen = [(Arm(cc, ce), Arm(sc, se)) for cc, ce, sc, se in saved["seen"]]
        evidence._tests = [RollbackEvidence.from_dict(each) for each in saved["tests"]]
        evidence._highest = saved["highest"]
        return evidence


def _above(bucket: int) -> int:
    """Return the threshold for a quantile in this bucket."""
    by_ratio = bucket + 1 + _SLACK_BUCKETS
    by_time = latency_bucket(bucket_milliseconds(bucket) + SLACK_MS) + 1
    return min(max(by_ratio, by_time), LATENCY_BUCKETS - 1)
