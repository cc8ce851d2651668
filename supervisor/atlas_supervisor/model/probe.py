"""Results of probes and smoke tests, as the record of a deploy keeps them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from atlas_supervisor.model.verdict import Verdict


class ProbeResult(BaseModel):
    """The result of one probe."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    status: int | None
    """The HTTP status, or None where there was no answer."""
    duration_ms: float
    message: str
    excerpt: str | None = None
    """The beginning of a failing answer's body: many say there what is wrong."""


class CheckResult(BaseModel):
    """The result of one smoke test."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["http", "command"]
    ok: bool
    verdict: Verdict
    """`inconclusive` where the supervisor could not run the test; `ok` is false then, too."""
    expected: str
    got: str
    duration_ms: float
    message: str
    problems: list[str] = []
    """Each thing that is not as expected, for itself; `message` has them all."""
    headers: dict[str, str] = {}
    """Of an answer that failed: those headers that may tell why."""
