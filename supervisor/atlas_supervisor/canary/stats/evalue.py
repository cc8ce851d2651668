"""E-values: the measure of evidence that all sequential tests here share.

Theory. A test multiplies, call by call, factors whose expectation is at most 1 as long as its null
hypothesis is true. The running product is then a non-negative supermartingale that starts at 1 or
below, and Ville's inequality (1939) bounds its maximum:

    P(the product ever reaches 1/alpha) <= alpha      if the null hypothesis is true

"Ever" includes every moment at which the value is read, so reading it early and often is free, and
the number of calls need not be fixed in advance. A p-value has no such guarantee.

Invariants
- Everything that a factor depends on besides its own call is fixed before that call.
- Each call is multiplied in once.
- A weighted mean of such products is one again, so alpha may be spread over bets (`Mixture`).
- A number that is certainly below the product may be compared in its place: if the lower bound has
  reached 1/alpha, so has the product. That is how calls without an outcome are handled.

Products are stored as logarithms: over 10^7 calls they leave the range of a float.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

_MAX_LOG = 700.0  # exp() of more than 709 does not fit a float


class Mixture:
    """Money spread over several bets by weight, of which a part may start later.

    Bets that start later on the same odds multiply by the same factors from then on, so each bet
    needs one number however often it starts.
    """

    __slots__ = ("_log_weights", "_logs", "_started")

    def __init__(self, weights: Sequence[float], started: float = 1.0) -> None:
        self._log_weights = [math.log(each) for each in weights]
        self._started = started
        self._logs = [each + math.log(started) for each in self._log_weights]

    def copy(self) -> Mixture:
        """Return a copy that goes on by itself."""
        return copy.copy(self)  # its lists are replaced, never changed

    def start(self, due: float) -> None:
        """Start bets until this part of the money bets."""
        if due > self._started:
            new = math.log(due - self._started)
            both = zip(self._logs, [new + weight for weight in self._log_weights], strict=True)
            self._logs = [max(a, b) + math.log1p(math.exp(-abs(a - b))) for a, b in both]
            self._started = due

    def multiply(self, log_factors: Sequence[float]) -> None:
        """Multiply each bet by its factor."""
        self._logs = [log + by for log, by in zip(self._logs, log_factors, strict=True)]

    @property
    def logs(self) -> Sequence[float]:
        """The logarithm of each bet's money."""
        return self._logs

    @property
    def log_bound(self) -> float:
        """A number that the logarithm of all money does not exceed, quickly computed."""
        return max(0.0, *self._logs) + math.log(len(self._logs) + 1)

    @property
    def log_e(self) -> float:
        """The logarithm of all money; what does not bet yet counts as it is."""
        if self._started >= 1:
            return log_sum(self._logs)
        return log_sum([*self._logs, math.log1p(-self._started)])

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values, without loss."""
        return {"started": self._started, "logs": list(self._logs)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over the saved state; the money of other bets is spread over these."""
        self._started, logs = saved["started"], list(saved["logs"])
        if len(logs) != len(self._log_weights):  # an earlier version has saved it
            total = log_sum(logs)
            logs = [total + weight for weight in self._log_weights]
        self._logs = logs


def exponential(log: float) -> float:
    """Return e to this power, limited to about 1e304."""
    return math.exp(min(log, _MAX_LOG))


def log_add(one: float, other: float) -> float:
    """Return the logarithm of the sum of two numbers that are given by their logarithms."""
    return max(one, other) + math.log1p(math.exp(-abs(one - other)))


def log_sum(logs: Sequence[float]) -> float:
    """Return the logarithm of the sum of numbers that are given by their logarithms."""
    largest = max(logs)
    return largest + math.log(sum([math.exp(each - largest) for each in logs]))


def holm(largest: Mapping[str, float], alpha: float) -> tuple[frozenset[str], int]:
    """Return the features that reach their part of alpha, and how many parts the others need.

    `largest` are logarithms. The reciprocal of the largest evidence is a p-value at any time, so
    Holm's rule (1979) holds: a feature that is rolled back leaves its part to the others.
    """
    reached: set[str] = set()
    for feature, log in sorted(largest.items(), key=lambda each: -each[1]):
        if log < math.log((len(largest) - len(reached)) / alpha):
            break
        reached.add(feature)
    return frozenset(reached), max(len(largest) - len(reached), 1)
