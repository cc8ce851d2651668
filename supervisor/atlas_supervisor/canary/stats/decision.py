"""One feature's ramp: all evidence about it, and what follows.

What a judge says: a verdict, what it is about, the reason, and the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from atlas_supervisor.canary.stats import explain
from atlas_supervisor.canary.stats.baseline import Prior
from atlas_supervisor.canary.stats.counts import Window
from atlas_supervisor.canary.stats.histogram import Histogram
from atlas_supervisor.canary.stats.latency_evidence import LatencyEvidence, Slow
from atlas_supervisor.canary.stats.promotion_evidence import PromotionEvidence
from atlas_supervisor.canary.stats.rollback_evidence import RollbackEvidence
from atlas_supervisor.canary.stats.sample_ratio import Draws, SampleRatios
from atlas_supervisor.canary.stats.strata import Strata, expected
from atlas_supervisor.model.verdict import Verdict
from atlas_worker.contract import bucket_milliseconds


class EvidenceKind(StrEnum):
    """What a verdict is about."""

    ERRORS = "errors"
    LATENCY = "latency"
    PROMOTION = "promotion"
    RATIO = "ratio"
    """The arms do not get their shares, so nothing is promoted."""
    WAITING = "waiting"
    """There is no evidence yet, or not enough."""


@dataclass(frozen=True)
class Decision:
    """`pass` means promote, `fail` roll back, and `inconclusive` hold: never ship.

    `reason` is one sentence for a person. `numbers` is as JSON has it. `needs` is about how many
    more canary calls it takes to a verdict if all goes on as it did; None where nobody can tell,
    and with a verdict.
    """

    verdict: Verdict
    kind: EvidenceKind
    reason: str
    numbers: Mapping[str, Any]
    needs: int | None = None


ERRORS_PART = 0.75
"""The part of alpha that errors get; latency has the rest, for it has more to tell per call."""

_LEAST_CALLS = 20  # canary calls before anything is said about how many more it takes
_FURTHEST = 10_000_000  # a forecast beyond this many calls is none


class RampEvidence:
    """Weighs the windows of one feature over one ramp; its evidence carries over the steps.

    `alpha` is the probability of a wrongful rollback in the ramps of all `features` together,
    `promote_alpha` that of promoting this one although its error rate is higher by `margin` or
    more. `prior` is what is known of the error rate beforehand.
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
            raise ValueError(f"a judge is one of at least 1 feature, not of {features}")
        self.feature = feature
        own = alpha / features
        self.errors = RollbackEvidence(own * ERRORS_PART, prior)
        self.latency = LatencyEvidence(own * (1 - ERRORS_PART))
        self.promotion = PromotionEvidence(margin, promote_alpha, prior)
        self.totals = Strata()
        self.assigned = Draws()
        """All calls that were drawn in this ramp, those without an outcome included."""
        self.unreported = Draws()
        """Of these, the questions whose outcome nobody told."""

    @property
    def thresholds(self) -> tuple[int, ...]:
        """The latency buckets from which on a call is slow; empty until they are fixed."""
        return self.latency.thresholds

    def fix_thresholds(self, stable: Histogram) -> bool:
        """Fix what is slow by the stable arm's past; return whether that had enough calls.

        Call it when an epoch begins, and between windows while there are no thresholds. The past
        is that of windows which were already multiplied in.
        """
        return self.latency.fix_thresholds(stable)

    def slow(self, canary: Histogram, stable: Histogram) -> tuple[Slow, ...]:
        """Return how many of a window's calls were slow, by each threshold."""
        return self.latency.slow(canary, stable)

    def update(self, window: Window, slow: Sequence[Slow] = ()) -> None:
        """Multiply in the next window in order of assignment, each window once.

        `slow` has an entry for each of the thresholds (ValueError if not).
        """
        self.latency.update(window, slow)
        self.errors.update(window)
        self.promotion.update(window)
        self.totals.add(window)

    def verdict(self) -> Decision:
        """Return what the evidence says now; once it said `fail`, it says so for ever.

        While the arms do not get or do not report their shares, `pass` is withheld: something is
        wrong around the canary. `fail` is not: that would keep a bad canary in traffic.
        """
        ratios = self.ratios()
        numbers = self._numbers(ratios)
        found = next(self._findings(ratios), None)
        if found is not None:
            verdict, kind, reason = found
            return Decision(verdict, kind, reason, numbers)
        needs = self._needs()
        reason = explain.waits(self.feature, self.totals, needs)
        return Decision(Verdict.INCONCLUSIVE, EvidenceKind.WAITING, reason, numbers, needs)

    def ratios(self) -> SampleRatios:
        """Return whether the arms get their shares, and report as much of them."""
        return SampleRatios(self.assigned.check(), self.unreported.check())

    def _findings(self, ratios: SampleRatios) -> Iterator[tuple[Verdict, EvidenceKind, str]]:
        """Yield what is decided, the weightiest first."""
        name, totals = self.feature, self.totals
        if self.errors.reached:
            alpha = self.errors.alpha
            yield Verdict.FAIL, EvidenceKind.ERRORS, explain.fails_more(name, totals, alpha)
        if self.latency.reached:
            yield Verdict.FAIL, EvidenceKind.LATENCY, self._is_slower()
        if not ratios.fit:
            reason = f"{name}: {explain.wrong_ratio(ratios)}; it holds"
            yield Verdict.INCONCLUSIVE, EvidenceKind.RATIO, reason
        if self.promotion.reached:
            margin, alpha = self.promotion.margin, self.promotion.alpha
            reason = explain.is_no_worse(name, totals, margin, alpha)
            yield Verdict.PASS, EvidenceKind.PROMOTION, reason

    def _is_slower(self) -> str:
        clearest = self.latency.clearest
        milliseconds = bucket_milliseconds(self.thresholds[clearest])
        seen = self.latency.seen[clearest]
        return explain.is_slower(self.feature, milliseconds, seen, self.latency.alpha)

    def _needs(self) -> int | None:
        """Return about how many more canary calls it takes to whichever verdict comes first."""
        share, canary, stable = self.totals.last_share, self.totals.canary, self.totals.stable
        rates = expected(share, canary, stable)
        if rates is None or canary.calls < _LEAST_CALLS or not stable.calls:
            return None
        slow = [each for each in (expected(share, *seen) for seen in self.latency.seen) if each]
        forecasts = (
            self.errors.needs(rates),
            self.latency.needs(slow),
            self.promotion.needs(rates),
        )
        least = min((each for each in forecasts if each is not None), default=math.inf)
        return math.ceil(least) if least <= _FURTHEST else None

    def _numbers(self, ratios: SampleRatios) -> dict[str, Any]:
        totals, difference = self.totals, self.totals.difference()
        return {
            "canary": {"calls": totals.canary.calls, "errors": totals.canary.errors},
            "stable": {"calls": totals.stable.calls, "errors": totals.stable.errors},
            "canary_error_rate": totals.canary.rate,
            "stable_error_rate": totals.stable_rate,
            "difference": difference and asdict(difference),
            "margin": self.promotion.margin,
            "evidence": {
                kind: {"e_value": each.e_value, "needed": 1 / each.alpha}
                for kind, each in (
                    (EvidenceKind.ERRORS.value, self.errors),
                    (EvidenceKind.LATENCY.value, self.latency),
                    (EvidenceKind.PROMOTION.value, self.promotion),
                )
            },
            "sample_ratio": asdict(ratios.assigned),
            "unreported_ratio": asdict(ratios.unreported),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, without loss."""
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
    def from_dict(cls, kept: dict[str, Any]) -> RampEvidence:
        """Return what was kept. Raises ValueError if that was by a version with other tests."""
        judge = cls(kept["feature"])
        judge.errors = RollbackEvidence.from_dict(kept["errors"])
        judge.latency = LatencyEvidence.from_dict(kept["latency"])
        judge.promotion = PromotionEvidence.from_dict(kept["promotion"])
        judge.totals = Strata.from_list(kept["totals"])
        judge.assigned = Draws.from_list(kept.get("assigned", ()))
        judge.unreported = Draws.from_list(kept.get("unreported", ()))
        return judge
