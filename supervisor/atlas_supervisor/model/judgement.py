"""What users' requests say of a new version beside the old one: the verdict and its numbers."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, Field

from atlas_supervisor.model.verdict import Verdict


class ComparisonRules(NamedTuple):
    """How two versions are compared."""

    alpha: float = 0.01
    """The probability of a wrongful `fail`, in all of a comparison."""
    promote_alpha: float = 0.05
    """The probability of a `pass` although the error rate is higher by the margin or more."""
    margin: float = 0.02
    latency_margin: float = 0.1
    by_address: bool = False
    """Whether client addresses are drawn, and not connections."""


class VersionFigures(BaseModel, frozen=True):
    """What was counted of one version since the comparison began."""

    requests: int = Field(description="Requests with an outcome.")
    failed: int = Field(description="Of them, those with 5xx or cut by the end of a process.")
    p50_ms: float | None = Field(default=None, description="Median latency; null without any.")
    p95_ms: float | None = Field(default=None, description="95th percentile; null without any.")


class Judgement(BaseModel, frozen=True):
    """What the evidence says at one look."""

    verdict: Verdict = Field(
        description="`fail`: the new version is worse, at the promised rate of error; `pass`: it "
        "is not worse by the margin; `inconclusive`: neither is shown yet."
    )
    against: float | None = Field(
        default=None,
        description="How strongly the requests speak against the new version: odds to 1; null if "
        "nothing is counted.",
    )
    why: str = Field(description="The verdict in a sentence, with the numbers.")
    new: VersionFigures | None = Field(default=None, description="Null if it is not counted.")
    old: VersionFigures | None = Field(default=None, description="Null if it is not counted.")
