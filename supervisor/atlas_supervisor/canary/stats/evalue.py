"""What both kinds of evidence share: an e-value, kept as its logarithm.

An e-value is what a bet has grown to that is fair, or unfavourable, as long as a hypothesis is
true. So it seldom grows far: the probability that it *ever* reaches 1/alpha is at most alpha,
however often one looks (Ville 1939). Multiplied over 10^7 calls it leaves the range of a float;
its logarithm does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_LARGEST = 700.0  # exp() of more than 709 does not fit a float


def log_sum(logs: Sequence[float]) -> float:
    """Return the logarithm of the sum of numbers whose logarithms are given."""
    largest = max(logs)
    return largest + math.log(sum(math.exp(each - largest) for each in logs))


def exponential(log: float) -> float:
    """Return e to the power of this, cut off at about 1e304."""
    return math.exp(min(log, _LARGEST))


def log_ratio(calls: float, errors: float, rate: float, against: float) -> float:
    """Return the logarithm of how much likelier counts are under one rate than another.

    Both rates are within (0, 1). Counts that are expected rather than seen need not be whole.
    """
    failed = math.log(rate / against)
    worked = math.log1p(-rate) - math.log1p(-against)
    return errors * failed + (calls - errors) * worked


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless this can be the probability of an error."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is between 0 and 1, not {alpha}")
