"""Results of probes and smoke tests, as the record of a deploy keeps them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from atlas_supervisor.model.verdict import Verdict


class ProbeResult(BaseModel, frozen=True):
    """The result of one probe."""

    verdict: Verdict = Field(description="`inconclusive`: the prober itself failed.")
    status: int | None = Field(description="The HTTP status; null without an answer.")
    duration_ms: float = Field(description="How long the probe took.")
    message: str = Field(description="The result in words.")
    excerpt: str | None = Field(None, description="The beginning of a failing answer's body.")


class CheckResult(BaseModel, frozen=True):
    """The result of one smoke test."""

    name: str = Field(description="The test's name in the smoke file.")
    kind: Literal["http", "command"] = Field(description="A request or a program.")
    ok: bool = Field(description="Whether it passed.")
    verdict: Verdict = Field(
        description="`inconclusive`: the supervisor could not run the test; `ok` is false."
    )
    expected: str = Field(description="The expected outcome, in words.")
    got: str = Field(description="The outcome, in words.")
    duration_ms: float = Field(description="How long the test took.")
    message: str = Field(description="All differences in one sentence.")
    problems: list[str] = Field(
        default_factory=list, description="Each difference between `expected` and `got`."
    )
    headers: dict[str, str] = Field(
        default_factory=dict, description="Headers of a failing answer that may explain it."
    )
