"""What a judge says: a verdict, what it is about, the reason, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from supervisor.model.verdict import Verdict


class Kind(StrEnum):
    """What a verdict is about."""

    ERRORS = "errors"
    LATENCY = "latency"
    PROMOTION = "promotion"
    RATIO = "ratio"
    """The arms do not get their shares, so nothing is promoted."""
    WAITING = "waiting"
    """There is no evidence yet, or not enough."""


@dataclass(frozen=True)
class Judgement:
    """`pass` means promote, `fail` roll back, and `inconclusive` hold: never ship.

    `reason` is one sentence for a person. `numbers` is as JSON has it. `needs` is about how many
    more canary calls it takes to a verdict if all goes on as it did; None where nobody can tell,
    and with a verdict.
    """

    verdict: Verdict
    kind: Kind
    reason: str
    numbers: Mapping[str, Any]
    needs: int | None = None
