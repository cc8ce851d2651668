"""All that a ramp's windows had, apart by share, so that like is compared with like.

Calls of different steps must not be poured together: if the error rate of both arms rises while
the canary's share does, the canary has more of the bad hours and looks worse than it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atlas_supervisor.canary.stats.counts import Arm, Rates, Window
from atlas_supervisor.canary.stats.intervals import Interval, stratified_difference


@dataclass
class Strata:
    """The calls of both arms, for each share at which both were drawn."""

    by_share: dict[float, tuple[Arm, Arm]] = field(default_factory=dict)
    last_share: float | None = None

    def add(self, window: Window) -> None:
        """Add a window; one that compares nothing is left out."""
        if window.is_drawn:
            canary, stable = self.by_share.get(window.share, (Arm(), Arm()))
            self.by_share[window.share] = (canary + window.canary, stable + window.stable)
            self.last_share = window.share

    @property
    def canary(self) -> Arm:
        """All canary calls."""
        return sum((canary for canary, _ in self.by_share.values()), Arm())

    @property
    def stable(self) -> Arm:
        """All stable calls."""
        return sum((stable for _, stable in self.by_share.values()), Arm())

    @property
    def stable_rate(self) -> float | None:
        """Stable's error rate with each share weighed as the canary's calls are; None without."""
        both = [(canary.calls, stable) for canary, stable in self.by_share.values() if canary.calls]
        weighed = [(calls, stable.rate) for calls, stable in both if stable.rate is not None]
        calls = sum(calls for calls, _ in weighed)
        return sum(calls * rate for calls, rate in weighed) / calls if calls else None

    def difference(self) -> Interval | None:
        """Return by how much the canary's error rate is higher, with its interval of 95 %."""
        return stratified_difference(self.by_share.values())

    def to_list(self) -> list[list[float]]:
        """Return it as JSON has it, without loss; the last share comes last."""
        order = sorted(self.by_share, key=lambda share: share == self.last_share)
        return [
            [share, canary.calls, canary.errors, stable.calls, stable.errors]
            for share, (canary, stable) in ((share, self.by_share[share]) for share in order)
        ]

    @classmethod
    def from_list(cls, kept: list[list[float]]) -> Strata:
        """Return what was kept."""
        totals = cls()
        for share, *counts in kept:
            cc, ce, sc, se = (int(each) for each in counts)
            totals.add(Window(share, Arm(cc, ce), Arm(sc, se)))
        return totals


def expected(share: float | None, canary: Arm, stable: Arm) -> Rates | None:
    """Return the rates that the counts suggest, each drawn a call's worth to their common one."""
    if share is None:
        return None
    both = canary + stable
    pooled = (both.errors + 0.5) / (both.calls + 1)
    return Rates(
        share,
        (canary.errors + pooled) / (canary.calls + 1),
        (stable.errors + pooled) / (stable.calls + 1),
    )
