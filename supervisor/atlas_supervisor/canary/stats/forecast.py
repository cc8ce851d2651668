"""Forecasts how many more canary calls a verdict needs, for readers.

At given rates a bet's logarithm is expected to grow by a known amount per call. So the forecast is
what is missing, divided by that growth, for the bet that is there first. It is an order of
magnitude, most accurate where the arms are far apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from atlas_supervisor.canary.stats.bets import (
    Bet,
    Mixture,
    Outcomes,
    arm_bets,
    log_factors,
    margin_bets,
    rate_bets,
)
from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.latency_evidence import LatencyBets
from atlas_supervisor.canary.stats.round_evidence import RoundEvidence

_LEAST_CALLS = 20  # canary calls before there is a forecast
_MAX_FORECAST = 10_000_000


@dataclass(frozen=True)
class Rates:
    """Error rates expected of the next calls, for a forecast. The share is within (0, 1)."""

    share: float
    canary: float
    stable: float

    @property
    def stable_calls(self) -> float:
        """How many stable calls come with each canary call."""
        return (1 - self.share) / self.share


def expected_rates(share: float | None, canary: Arm, stable: Arm) -> Rates | None:
    """Return the arms' rates, each shrunk by one call towards the pooled rate; None if too few."""
    if share is None or canary.calls < _LEAST_CALLS or not stable.calls:
        return None
    both = canary + stable
    pooled = (both.errors + 0.5) / (both.calls + 1)
    return Rates(
        share,
        (canary.errors + pooled) / (canary.calls + 1),
        (stable.errors + pooled) / (stable.calls + 1),
    )


def calls_needed(
    evidence: RoundEvidence, rates: Rates, *, errors: float, latency: float, promotion: float
) -> int | None:
    """Return the canary calls until one of the tests reaches its logarithm; None if none will."""
    by_errors = [*rate_bets(rates.share, evidence.rate), *arm_bets(rates.share)]
    by_margin = margin_bets(rates.share, evidence.rate, evidence.margin)
    least = min(
        _calls_until(errors, evidence.errors, _growth(by_errors, rates)),
        _calls_until(promotion, evidence.promotion, _growth(by_margin, rates)),
        _calls_until(latency, evidence.latency, _latency_growth(evidence, rates)),
    )
    return math.ceil(least) if least <= _MAX_FORECAST else None


def _latency_growth(evidence: RoundEvidence, rates: Rates) -> list[float]:
    """Return the growth of each bet on latency; none before both arms have calls."""
    placement, seen = evidence.placement, evidence.seen
    if placement is None or not any(seen.canary) or not any(seen.stable):
        return [0.0] * len(evidence.latency.logs)
    bets = LatencyBets.fixed(rates.share, placement)
    stable_calls = sum(seen.stable)
    stable = [count / stable_calls for count in seen.stable]
    shrunk = [count + part for count, part in zip(seen.canary, stable, strict=True)]
    canary = [count / sum(shrunk) for count in shrunk]
    return bets.log_factors(canary, [part * rates.stable_calls for part in stable])


def _growth(bets: Iterable[Bet], rates: Rates) -> list[float]:
    """Return the growth of each bet's logarithm per canary call, expected at these rates."""
    per_call = Outcomes(
        rates.canary,
        1 - rates.canary,
        rates.stable * rates.stable_calls,
        (1 - rates.stable) * rates.stable_calls,
    )
    return log_factors(list(bets), per_call)


def _calls_until(needed: float, mixture: Mixture, speeds: Sequence[float]) -> float:
    """Return the canary calls until a bet alone reaches this logarithm; infinite if none will."""
    both = zip(mixture.logs, speeds, strict=True)
    return min((max(needed - log, 0) / speed for log, speed in both if speed > 0), default=math.inf)
