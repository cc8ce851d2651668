"""Hosts whose calls fail more often than those of the other hosts, beyond chance.

Counts are cumulative, and looked at again and again: a test that errs once in a thousand looks
names some host in the end. So the test here holds over all looks together. Of a feature's arm a
host has e errors in n calls, the others E in N. Let p be a rate, and B Euler's beta function. The
calls of one side alone bet against p, at even odds:

    bet(e, n) = B(e + 1/2, n - e + 1/2) / (B(1/2, 1/2) * p^e * (1 - p)^(n - e))

If all hosts fail at the rate p, the product of the bets of both sides has the mean 1 at any time,
however their calls mingle, so that it ever reaches 1/alpha with a probability of at most alpha
(Ville's inequality). p is unknown: with the p that makes the product least, (e + E) / (n + N), it
is never too large. ALPHA is divided by the number of hosts and arms.

Rates are taken as equal between hosts at each time and steady over time: where errors rise for all
hosts at certain hours, one with more calls at those hours may be named. It is shown, and decides
nothing. With many calls chance explains little, and hosts are never quite alike: so one is named
only if it is worse by `MARGIN`, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import BaseModel, Field

from atlas_supervisor.fleet.documents import ArmCount, FeatureCount

ALPHA = 0.01
"""Probability that a host of a feature is ever named, at any of all looks, if all are alike."""
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
        if worse and _log_evidence(whole, own) >= math.log(tests / ALPHA):
            yield Outlier(
                host=host, arm=arm, calls=own.calls, errors=own.errors, others_error_rate=rate
            )


def _of(count: FeatureCount, arm: Arm) -> ArmCount:
    return count.canary if arm == "canary" else count.stable


def _log_evidence(whole: ArmCount, own: ArmCount) -> float:
    """Return the logarithm of the product of both sides' bets."""
    others = ArmCount(calls=whole.calls - own.calls, errors=whole.errors - own.errors)
    good = whole.calls - whole.errors
    likelihood = _x_log_x(whole.errors) + _x_log_x(good) - _x_log_x(whole.calls)
    return _log_mixture(own) + _log_mixture(others) - likelihood


def _log_mixture(arm: ArmCount) -> float:
    """Return the logarithm of the likelihood, averaged over all rates."""
    errors, good = arm.errors + 0.5, arm.calls - arm.errors + 0.5
    return math.lgamma(errors) + math.lgamma(good) - math.lgamma(arm.calls + 1) - math.log(math.pi)


def _x_log_x(count: int) -> float:
    return count * math.log(count) if count else 0.0
