"""Hosts whose calls fail more often than those of the other hosts, beyond chance.

Of a feature's arm, host h has e_h errors in n_h calls, all hosts together K in N. If h were like
the others, e_h would be hypergeometric (N calls, K of them errors, n_h drawn): Fisher's exact test.
Its tail is bounded by a geometric series, so that a count of millions costs no loop: from the mean
upwards, each term is at most r times the one before, and r falls.

It is shown, and decides nothing; each look is a test of its own, so `ALPHA` is small. With many
calls chance explains little, and hosts are never quite alike: so one is named only if it is worse
by `MARGIN`, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import BaseModel, Field

from atlas_supervisor.fleet.documents import ArmCount, FeatureCount

ALPHA = 0.001
"""Probability that one look names a host of a feature, if all are alike."""
MARGIN = 0.02
"""How much higher an error rate is at least, absolute: less is no worse, as for CANARY_MARGIN."""

Arm = Literal["canary", "stable"]
_ARMS: tuple[Arm, ...] = ("canary", "stable")


class Outlier(BaseModel, frozen=True):
    """A host whose calls of one arm fail more often than those of the other hosts."""

    host: str = Field(description="The host.")
    arm: Arm = Field(description="`canary`: calls of the new code; `stable`: of the old code.")
    calls: int = Field(description="Its calls.")
    errors: int = Field(description="How many of them failed.")
    others_error_rate: float = Field(description="The share of the other hosts' calls that failed.")


def total(counts: Mapping[str, FeatureCount], arm: Arm) -> ArmCount:
    """Return the calls of one arm on all hosts."""
    arms = [_of(each, arm) for each in counts.values()]
    return ArmCount(
        calls=sum(each.calls for each in arms), errors=sum(each.errors for each in arms)
    )


def outliers(counts: Mapping[str, FeatureCount]) -> list[Outlier]:
    """Return the hosts, given by name, that are worse than the others at one feature."""
    return [each for arm in _ARMS for each in _of_arm(counts, arm)]


def _of_arm(counts: Mapping[str, FeatureCount], arm: Arm) -> Iterator[Outlier]:
    whole, tests = total(counts, arm), len(counts) * len(_ARMS)
    for host, each in sorted(counts.items()):
        own = _of(each, arm)
        others = whole.calls - own.calls
        if not own.calls or not others:
            continue
        rate = (whole.errors - own.errors) / others
        worse = own.errors / own.calls - rate >= MARGIN
        if worse and _tail(whole, own) * tests < ALPHA:
            yield Outlier(
                host=host, arm=arm, calls=own.calls, errors=own.errors, others_error_rate=rate
            )


def _of(count: FeatureCount, arm: Arm) -> ArmCount:
    return count.canary if arm == "canary" else count.stable


def _tail(whole: ArmCount, own: ArmCount) -> float:
    """Return a bound of the probability of so many errors or more; `own` is above the mean."""
    good, k = whole.calls - whole.errors, own.errors
    first = math.exp(
        _log_ways(whole.errors, k)
        + _log_ways(good, own.calls - k)
        - _log_ways(whole.calls, own.calls)
    )
    falls = (whole.errors - k) * (own.calls - k) / ((k + 1) * (good - own.calls + k + 1))
    return min(1.0, first / (1 - falls)) if falls < 1 else 1.0


def _log_ways(n: int, k: int) -> float:
    """Return the logarithm of the number of ways to draw k of n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
