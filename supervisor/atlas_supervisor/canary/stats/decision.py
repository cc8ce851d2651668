"""Decides: the verdict on one feature's ramp, and the fallback over all features.

`RampEvidence` holds all tests of a ramp. `conclusion` is what a daemon's poll needs; `decision`
adds the numbers and the forecast that a reader is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from atlas_supervisor.canary.stats import explain
from atlas_supervisor.canary.stats.counts import Arm, Draws, Prior, Strata, Window, expected_rates
from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.canary.stats.intervals import stratified_difference
from atlas_supervisor.canary.stats.latency_evidence import LatencyEvidence, Slow
from atlas_supervisor.canary.stats.promotion_evidence import PromotionEvidence
from atlas_supervisor.canary.stats.rollback_evidence import RollbackEvidence
from atlas_supervisor.canary.stats.sample_ratio import SampleRatios, check_draws
from atlas_supervisor.model.verdict import Verdict
from atlas_worker.contract import bucket_milliseconds

ERRORS_PART = 0.75
"""The part of alpha for errors. Latency gets the rest: it says more per call."""

_LEAST_CALLS = 20  # canary calls before there is a forecast
_MAX_FORECAST = 10_000_000


class EvidenceKind(StrEnum):
    """The evidence that a verdict rests on."""

    ERRORS = "errors"
    LATENCY = "latency"
    PROMOTION = "promotion"
    RATIO = "ratio"
    """A sample ratio mismatch withholds the promotion."""
    WAITING = "waiting"
    """Not enough evidence yet."""


@dataclass(frozen=True)
class Conclusion:
    """A verdict: `pass` means promote, `fail` roll back, and `inconclusive` hold: never ship."""

    verdict: Verdict
    kind: EvidenceKind
    reason: str
    """One sentence for a reader."""


@dataclass(frozen=True)
class Decision(Conclusion):
    """A verdict with its numbers."""

    numbers: Mapping[str, Any]
    """JSON values."""
    needs: int | None = None
    """A forecast of the canary calls until a verdict; None with a verdict, or if unknown."""


class RampEvidence:
    """The evidence about one feature over one ramp; it carries over the ramp's steps.

    `alpha` is the probability of a wrongful rollback in the ramps of all `features` together.
    `promote_alpha` is that of promoting this feature although its error rate is higher by `margin`
    or more. `prior` is the error rate assumed beforehand.
    """

    def __init__(
        self,
        feature: str,
        *,
        alpha: float = 0.01,
        promote_alpha: float = 0.05,
        margin: float = 0.02,
        features: int = 1,
        prior: Prior | None = None,
    ) -> None:
        if features < 1:
            raise ValueError(f"alpha is split over at least 1 feature, not {features}")
        self.feature = feature
        own = alpha / features
        self.errors = RollbackEvidence(own * ERRORS_PART, prior)
        self.latency = LatencyEvidence(own * (1 - ERRORS_PART))
        self.promotion = PromotionEvidence(margin, promote_alpha, prior)
        self.totals = Strata()
        self.assigned = Draws()
        """All assignments of this ramp, those without an outcome included."""
        self.unreported = Draws()
        """The assignments whose outcome was never reported."""

    @property
    def thresholds(self) -> tuple[int, ...]:
        """The latency buckets from which on a call is slow; empty until they are fixed."""
        return self.latency.thresholds

    def fix_thresholds(self, stable: Histogram) -> bool:
        """Place the latency thresholds by stable's past; return False if it has too few calls.

        To be called when an epoch begins, and between windows while there are no thresholds.
        `stable` are windows that were already multiplied in.
        """
        return self.latency.fix_thresholds(stable)

    def slow(self, canary: Histogram, stable: Histogram) -> tuple[Slow, ...]:
        """Return the slow calls of a window by each threshold."""
        return self.latency.slow(canary, stable)

    def update(self, window: Window, slow: Sequence[Slow] = ()) -> None:
        """Multiply the next window in, in order of assignment, each window once.

        Raises ValueError if `slow` does not match the thresholds.
        """
        self.latency.update(window, slow)
        self.errors.update(window)
        self.promotion.update(window)
        self.totals.add(window)

    def conclusion(self) -> Conclusion | None:
        """Return the verdict reached, if any; a rollback stays one.

        A sample ratio mismatch withholds a promotion. It does not withhold a rollback: that would
        keep a bad canary in traffic.
        """
        name, totals = self.feature, self.totals
        if self.errors.reached:
            reason = explain.fails_more(name, totals, self.errors.alpha)
            return Conclusion(Verdict.FAIL, EvidenceKind.ERRORS, reason)
        if self.latency.reached:
            return Conclusion(Verdict.FAIL, EvidenceKind.LATENCY, self._is_slower())
        if self.promotion.reached and self.ratios().fit:
            margin, alpha = self.promotion.margin, self.promotion.alpha
            reason = explain.is_no_worse(name, totals, margin, alpha)
            return Conclusion(Verdict.PASS, EvidenceKind.PROMOTION, reason)
        return None

    def decision(self) -> Decision:
        """Return the current verdict with its reason, numbers and forecast."""
        ratios = self.ratios()
        numbers = self._numbers(ratios)
        if (reached := self.conclusion()) is not None:
            return Decision(reached.verdict, reached.kind, reached.reason, numbers)
        if not ratios.fit:
            mismatch = explain.sample_ratio_mismatch(ratios)
            reason = f"{self.feature}: {mismatch}; no promotion meanwhile"
            return Decision(Verdict.INCONCLUSIVE, EvidenceKind.RATIO, reason, numbers)
        needs = self._calls_needed()
        reason = explain.inconclusive(self.feature, self.totals, needs)
        return Decision(Verdict.INCONCLUSIVE, EvidenceKind.WAITING, reason, numbers, needs)

    def ratios(self) -> SampleRatios:
        """Return whether assignments and reports fit the canary's share."""
        return SampleRatios(check_draws(self.assigned), check_draws(self.unreported))

    def _is_slower(self) -> str:
        strongest = self.latency.strongest
        milliseconds = bucket_milliseconds(self.thresholds[strongest])
        seen = self.latency.seen[strongest]
        return explain.is_slower(self.feature, milliseconds, seen, self.latency.alpha)

    def _calls_needed(self) -> int | None:
        """Return a forecast of the canary calls until the first verdict, of either kind."""
        share, canary, stable = self.totals.last_share, self.totals.canary, self.totals.stable
        rates = expected_rates(share, canary, stable)
        if rates is None or canary.calls < _LEAST_CALLS or not stable.calls:
            return None
        slow = [expected_rates(share, *seen) for seen in self.latency.seen]
        forecasts = (
            self.errors.calls_needed(rates),
            self.latency.calls_needed([each for each in slow if each]),
            self.promotion.calls_needed(rates),
        )
        least = min((each for each in forecasts if each is not None), default=math.inf)
        return math.ceil(least) if least <= _MAX_FORECAST else None

    def _numbers(self, ratios: SampleRatios) -> dict[str, Any]:
        totals = self.totals
        difference = stratified_difference(totals.by_share.values())
        return {
            "canary": {"calls": totals.canary.calls, "errors": totals.canary.errors},
            "stable": {"calls": totals.stable.calls, "errors": totals.stable.errors},
            "canary_error_rate": totals.canary.rate,
            "stable_error_rate": totals.stable_rate,
            "difference": difference and asdict(difference),
            "margin": self.promotion.margin,
            "evidence": {
                kind.value: {"e_value": each.e_value, "needed": 1 / each.alpha}
                for kind, each in (
                    (EvidenceKind.ERRORS, self.errors),
                    (EvidenceKind.LATENCY, self.latency),
                    (EvidenceKind.PROMOTION, self.promotion),
                )
            },
            "sample_ratio": asdict(ratios.assigned),
            "unreported_ratio": asdict(ratios.unreported),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values, without loss."""
        return {
            "feature": self.feature,
            "errors": self.errors.to_dict(),
            "latency": self.latency.to_dict(),
            "promotion": self.promotion.to_dict(),
            "totals": self.totals.to_list(),
            "assigned": self.assigned.to_list(),
            "unreported": self.unreported.to_list(),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> RampEvidence:
        """Return the saved state. Raises ValueError if a version with other tests has saved it."""
        evidence = cls(saved["feature"])
        evidence.errors = RollbackEvidence.from_dict(saved["errors"])
        evidence.latency = LatencyEvidence.from_dict(saved["latency"])
        evidence.promotion = PromotionEvidence.from_dict(saved["promotion"])
        evidence.totals = Strata.from_list(saved["totals"])
        evidence.assigned = Draws.from_list(saved.get("assigned", ()))
        evidence.unreported = Draws.from_list(saved.get("unreported", ()))
        return evidence


@dataclass(frozen=True)
class Fallback:
    """Turns all canaries off when more than `threshold` of their calls failed.

    It looks at the canary arm alone, all features together, once `minimum` calls are known. So it
    also works where there is no comparison, but it gives no error probability.
    """

    threshold: float = 0.15
    minimum: int = 20

    def reason(self, canary: Arm, stable: Arm) -> str | None:
        """Return the reason to turn canaries off, by both arms' calls of the last hour, or None."""
        rate = canary.rate
        if rate is None or canary.calls < self.minimum or rate <= self.threshold:
            return None
        failed = (
            f"{explain.percent(rate)} of {canary.calls} canary calls failed, "
            f"more than {explain.percent(self.threshold)}"
        )
        if stable.rate is None:
            return f"{failed}; no stable calls"
        failed += f"; stable: {explain.percent(stable.rate)} of {stable.calls}"
        if stable.rate > self.threshold:
            failed += "; both arms fail, so the canary may not be the cause"
        return failed
