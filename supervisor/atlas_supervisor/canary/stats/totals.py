"""All calls of every feature that were ever counted here, which hosts of a fleet add up.

The totals are saved together with the position up to which events were read, so a call is counted
once, over any number of restarts and crashes. They never fall.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.outcomes import Tally


@dataclass
class CanaryTotals:
    """Calls with an outcome, by feature and arm."""

    origin: str
    """Differs between two counts that began at zero: a database that was lost begins another."""
    canary: dict[str, Arm] = field(default_factory=dict)
    stable: dict[str, Arm] = field(default_factory=dict)

    @classmethod
    def none(cls) -> Self:
        """Return totals that begin."""
        return cls(secrets.token_hex(8))

    def add(self, feature: str, tally: Tally, *, canary: bool) -> None:
        """Add the calls of one arm."""
        side = self.canary if canary else self.stable
        side[feature] = side.get(feature, Arm()) + Arm(tally.calls, tally.errors)

    def to_dict(self) -> dict[str, Any]:
        """Return them as JSON."""
        sides = {"canary": self.canary, "stable": self.stable}
        found = {
            side: {name: [arm.calls, arm.errors] for name, arm in arms.items()}
            for side, arms in sides.items()
        }
        return {"origin": self.origin, **found}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Return saved totals."""
        sides = ("canary", "stable")
        arms = ({name: Arm(*arm) for name, arm in saved[side].items()} for side in sides)
        return cls(saved["origin"], *arms)
