"""What users' requests say of a new version beside the old one: the verdict and its numbers."""

from __future__ import annotations

from typing import NamedTuple, Self

from pydantic import BaseModel, Field

from atlas_supervisor.model.requests import RequestTotals
from atlas_supervisor.model.verdict import Verdict


class ComparisonRules(NamedTuple):
    """How two versions are compared."""

    alpha: float = 0.01
    """The probability of a wrongful `fail`, in all of a comparison."""
    promote_alpha: float = 0.05
    """The probability of a `pass` although the error rate is higher by the margin or more."""
    margin: float = 0.02
    latency_margin: float = 0.1
    key_id: int = 0
    """Of the secret that addresses are hashed with, where they are drawn, and not connections."""

    @property
    def by_address(self) -> bool:
        """Whether addresses are drawn."""
        return self.key_id != 0


class VersionFigures(BaseModel, frozen=True):
    """What was counted of one version in some time."""

    requests: int = Field(description="Requests with an outcome.")
    failed: int = Field(description="Of them, those with 5xx or cut by the end of a process.")
    p50_ms: float | None = Field(default=None, description="Median latency; null without any.")
    p95_ms: float | None = Field(default=None, description="95th percentile; null without any.")

    @classmethod
    def of(cls, totals: RequestTotals) -> Self:
        """Return the figures of what was counted."""
        p50, p95 = totals.latency.quantiles(0.5, 0.95)
        return cls(
            requests=max(totals.counts.ended, 0),
            failed=max(totals.counts.failed, 0),
            p50_ms=p50 and round(p50, 3),
            p95_ms=p95 and round(p95, 3),
        )


class Judgement(BaseModel, frozen=True):
    """What the evidence says at one look."""

    verdict: Verdict = Field(
        description="`fail`: the new version is worse, at the promised rate of error; `pass`: it "
        "is not worse by the margin; `inconclusive`: neither is shown yet."
    )
    against: float | None = Field(
        default=None,
        description="How strongly the requests speak against the new version: the largest odds so "
        "far, to 1, and 1 at least; null if nothing is counted.",
    )
    why: str = Field(description="The verdict in a sentence, with the numbers.")
    new: VersionFigures | None = Field(default=None, description="Null if it is not counted.")
    old: VersionFigures | None = Field(default=None, description="Null if it is not counted.")
