"""The error rate that the calls so far had, in both arms together: what a window is judged by.

Evidence is only right if this rate is known before the window: what a window tells is learned
after it was multiplied in, never before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atlas_supervisor.canary.stats.counts import Arm

LOWEST, HIGHEST = 1e-9, 0.999
"""The rate is kept off 0 and 1, where one call would decide everything."""


@dataclass(frozen=True)
class Prior:
    """What is believed before the first call: a rate, worth as much as this many calls.

    Raises ValueError for a rate that is not within (0, 1) or a weight that is not positive.
    """

    mean: float = 0.02
    weight: float = 2.0

    def __post_init__(self) -> None:
        if not (0 < self.mean < 1 and self.weight > 0):
            raise ValueError(f"no prior: a rate of {self.mean} with the weight of {self.weight}")


@dataclass
class Baseline:
    """The calls so far, with the prior."""

    prior: Prior
    calls: int = 0
    errors: int = 0

    @property
    def rate(self) -> float:
        """The pooled error rate, within [LOWEST, HIGHEST]."""
        errors = self.prior.mean * self.prior.weight + self.errors
        return min(max(errors / (self.prior.weight + self.calls), LOWEST), HIGHEST)

    def learn(self, both: Arm) -> None:
        """Add a window's calls of both arms, after the window was judged."""
        self.calls += both.calls
        self.errors += both.errors

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        prior = {"mean": self.prior.mean, "weight": self.prior.weight}
        return {"prior": prior, "calls": self.calls, "errors": self.errors}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Baseline:
        """Return what was kept."""
        return cls(Prior(**kept["prior"]), kept["calls"], kept["errors"])
