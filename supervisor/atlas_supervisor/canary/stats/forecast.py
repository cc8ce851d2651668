"""Forecasts how many more canary calls a verdict needs, for readers.

At given rates a bet's logarithm is expected to grow by a known amount per call. So the forecast is
what is missing, divided by that growth, for the bet that is there first. It is an order of
magnitude, most accurate where the arms are far apart.

Where calls have keys, a share and the keys that call bring so many first calls and no more: keys
that return count for tests of their own, each day. So it is said what they lack, and what would do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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

LEAST_CALLS = 20
"""Canary calls before there is a forecast."""

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


@dataclass(frozen=True)
class Keys:
    """The keys that call in a ramp, and how they can still be evidence, for a reader."""

    used: bool = False
    """Whether calls have keys, so that only first calls count."""
    calling: int = 0
    """Keys that call, or that did before the ramp, if those were more."""
    called_today: int = 0
    """Those that have called in the present round."""
    share: float = 0.0
    """The canary's present share; 0 if unknown."""
    last_share: float = 0.0
    """The last share below 1 that the ramp has by itself; the present one without a ramp."""
    by_interval: Mapping[tuple[float, float], int] = field(default_factory=dict)
    """Keys by the interval that their hash is known to be in, in the first round."""
    all_known: bool = False
    """Whether hardly any others are to come."""
    anew_seconds: float | None = None
    """None while keys appear that have not counted; else the time until all count anew."""

    def drawn_at(self, share: float) -> tuple[float, float]:
        """Return the first calls of these keys that are draws at a share: the canary's, and all."""
        drawn = [
            (count * (share - low) / (high - low), count)
            for (low, high), count in self.by_interval.items()
            if low < share < high
        ]
        return sum([canary for canary, _ in drawn]), sum([count for _, count in drawn])


@dataclass(frozen=True)
class Shortage:
    """What a verdict lacks where the keys that call can't bring it."""

    calling: int
    """Keys that call."""
    at_share: float
    """The share at which they are too few."""
    more: int | None
    """About how many more keys it takes there; None if no number suffices."""
    share: float | None
    """A share at which these keys would do; None if none below 1 does."""


@dataclass(frozen=True)
class Outlook:
    """What an undecided verdict still takes."""

    needs: int | None = None
    """About how many more canary calls; None if unknown, or if they can't come."""
    keyed: bool = False
    """Whether only the first calls of keys count."""
    new_keys: int | None = None
    """From about how many keys that have not called yet; None if unknown, or from known ones."""
    shortage: Shortage | None = None
    """Why the keys that call can't bring a verdict; None if they can, or it is not known."""


def expected_rates(
    share: float | None, canary: Arm, stable: Arm, least_calls: int = LEAST_CALLS
) -> Rates | None:
    """Return the arms' rates, each shrunk by one call towards the pooled rate; None if too few."""
    if share is None or canary.calls < least_calls or not stable.calls:
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
