"""One feature's ramp: all evidence about it, and the verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from supervisor.canary.counts import Window
from supervisor.canary.histogram import Histogram
from supervisor.model.verdict import Verdict


class Kind(StrEnum):
    """What a judgement is about."""

    ERRORS = "errors"
    LATENCY = "latency"
    PROMOTION = "promotion"
    NONE = "none"


class Slow(NamedTuple):
    """How many calls of a window were slower than one threshold, in each arm."""

    canary: int
    stable: int


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reason for a person, and the numbers behind it.

    `pass`: promote; `fail`: roll back; `inconclusive`: hold. `needs` is about how many more
    canary calls it takes to a verdict if all goes on as it did, None where nobody can tell.
    """

    verdict: Verdict
    kind: Kind
    reason: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    needs: int | None = None
