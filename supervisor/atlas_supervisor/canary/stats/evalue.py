"""E-values: the measure of evidence that all sequential tests here share.

Theory. A test multiplies, window by window, factors whose expectation is at most 1 as long as its
null hypothesis is true. The running product is then a non-negative supermartingale that starts at
1 or below, and Ville's inequality (1939) bounds its maximum:

    P(the product ever reaches 1/alpha) <= alpha      if the null hypothesis is true

"Ever" includes every moment at which the value is read, so reading it early and often is free, and
the number of calls need not be fixed in advance. A p-value has no such guarantee.

Invariants
- Factors are computed from the past only: the rate that a window is judged by is fixed before it.
- Each window is multiplied in once, in the order in which its calls were assigned.
- `reached` never goes back to False: the bound is on the maximum, not on the current value.
- A mean of e-values is an e-value, so alpha may be split over several tests in one.

The product is stored as its logarithm: over 10^7 calls it leaves the range of a float.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

_MAX_LOG = 700.0  # exp() of more than 709 does not fit a float


class EProcess(ABC):
    """A sequence of e-values against one null hypothesis, which a test extends by windows.

    `alpha` is the probability that it is ever `reached` although the null hypothesis is true.
    Raises ValueError for an alpha outside (0, 1).
    """

    def __init__(self, alpha: float) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is between 0 and 1, not {alpha}")
        self.alpha = alpha
        self._highest = 0.0

    @property
    @abstractmethod
    def log_e(self) -> float:
        """The natural logarithm of the current e-value."""

    @property
    def e_value(self) -> float:
        """The current odds against chance, at most about 1e304."""
        return exponential(self.log_e)

    @property
    def reached(self) -> bool:
        """Whether the e-value has ever reached 1/alpha."""
        return self._highest >= -math.log(self.alpha)

    def _track_highest(self) -> None:
        self._highest = max(self._highest, self.log_e)


def exponential(log: float) -> float:
    """Return e to this power, limited to about 1e304."""
    return math.exp(min(log, _MAX_LOG))


def log_sum(logs: Sequence[float]) -> float:
    """Return the logarithm of the sum of numbers that are given by their logarithms."""
    largest = max(logs)
    return largest + math.log(sum(math.exp(each - largest) for each in logs))


def log_ratio(calls: float, errors: float, rate: float, against: float) -> float:
    """Return the log-likelihood ratio of these counts, of one rate against another.

    Both rates are within (0, 1). Expected counts need not be whole.
    """
    failed = math.log(rate / against)
    worked = math.log1p(-rate) - math.log1p(-against)
    return errors * failed + (calls - errors) * worked
