"""Whether calls were assigned as the share says, and both arms report as much of them.

If not, something is wrong around the canary, and no comparison of the arms is to be trusted. A few
calls that one arm swallows do not show among those it reports; among the unreported they do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from atlas_supervisor.canary.stats.evalue import exponential, log_sum

ALPHA = 0.001
"""The probability with which a true share is ever called wrong, however often one looks."""

_CONCENTRATIONS = (10.0, 1_000.0, 100_000.0)


class Assigned(NamedTuple):
    """How many calls of each arm there were under one share."""

    share: float
    canary: int
    stable: int


@dataclass(frozen=True)
class SampleRatioCheck:
    """Whether the counts fit the shares, with the canary's share as it was and should have been.

    The two shares are None where nothing was drawn.
    """

    fits: bool
    e_value: float
    expected: float | None
    observed: float | None


class SampleRatios(NamedTuple):
    """The check of all calls that were assigned, and that of those which nobody reported."""

    assigned: SampleRatioCheck
    unreported: SampleRatioCheck

    @property
    def fit(self) -> bool:
        """Whether the arms can be compared."""
        return self.assigned.fits and self.unreported.fits


@dataclass
class Draws:
    """How many calls each arm was given, the canary first, by the share they were drawn with.

    A key is drawn once, with its first call.
    """

    by_share: dict[float, tuple[int, int]] = field(default_factory=dict)

    def add(self, share: float, count: int, *, canary: bool) -> None:
        """Add calls of one arm; where nothing is drawn they are left out."""
        if 0 < share < 1:
            mine, others = self.by_share.get(share, (0, 0))
            self.by_share[share] = (mine + count, others) if canary else (mine, others + count)

    def check(self) -> SampleRatioCheck:
        """Return whether they fit the shares."""
        return check_ratio(Assigned(share, *counts) for share, counts in self.by_share.items())

    def to_list(self) -> list[list[float]]:
        """Return it as JSON has it."""
        return [[share, *counts] for share, counts in self.by_share.items()]

    @classmethod
    def from_list(cls, kept: Iterable[Iterable[float]]) -> Draws:
        """Return what was kept."""
        return cls({share: (int(canary), int(stable)) for share, canary, stable in kept})


def check_ratio(epochs: Iterable[Assigned], alpha: float = ALPHA) -> SampleRatioCheck:
    """Compare what was assigned with the shares; epochs of share 0 or 1 are left out.

    A beta-binomial mixture against the binomial, after Lindon and Malek (2020), "Anytime-valid
    inference for multinomial count data", arXiv 2011.03567.
    """
    drawn = [each for each in epochs if 0 < each.share < 1 and each.canary + each.stable]
    calls = sum(each.canary + each.stable for each in drawn)
    if not calls:
        return SampleRatioCheck(True, 1.0, None, None)
    bets = [sum(_log_bet(each, much) for each in drawn) for much in _CONCENTRATIONS]
    log_e = log_sum(bets) - math.log(len(_CONCENTRATIONS))
    return SampleRatioCheck(
        fits=log_e < -math.log(alpha),
        e_value=exponential(log_e),
        expected=sum(each.share * (each.canary + each.stable) for each in drawn) / calls,
        observed=sum(each.canary for each in drawn) / calls,
    )


def _log_bet(of: Assigned, concentration: float) -> float:
    """Return how much likelier the counts are if the share is only about what it should be."""
    a, b = concentration * of.share, concentration * (1 - of.share)
    mixture = _log_beta(a + of.canary, b + of.stable) - _log_beta(a, b)
    return mixture - of.canary * math.log(of.share) - of.stable * math.log1p(-of.share)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
