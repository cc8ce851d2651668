"""The fallback: canaries are latched off when too many of their calls fail, whatever the cause.

It stands beside the evidence and is cruder: it looks at the canaries alone, all features
together. So it also holds where nothing can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.canary.stats.explain import percent


@dataclass(frozen=True)
class FallbackDecision:
    """Whether to latch, with the counts it was decided by and a sentence for a person."""

    latch: bool
    canary: Arm
    stable: Arm
    reason: str


@dataclass(frozen=True)
class Fallback:
    """The rule: over `threshold`, once at least `minimum` canary calls are known."""

    threshold: float = 0.15
    minimum: int = 20

    def decide(self, canary: Arm, stable: Arm) -> FallbackDecision:
        """Judge both arms' calls of the last hour, over all features."""
        rate = canary.rate
        if rate is None or canary.calls < self.minimum:
            known = f"{canary.calls} of the {self.minimum} canary calls that it takes are known"
            return FallbackDecision(False, canary, stable, known)
        latch = rate > self.threshold
        reason = (
            f"{percent(rate)} of {canary.calls} canary calls failed, "
            f"{'more' if latch else 'not more'} than {percent(self.threshold)}"
        )
        return FallbackDecision(latch, canary, stable, reason + self._beside(stable, latch))

    def _beside(self, stable: Arm, latch: bool) -> str:
        """Return what the stable arm says at the same time."""
        if stable.rate is None:
            return "; no stable calls are known"
        beside = f"; of {stable.calls} stable calls {percent(stable.rate)}"
        if latch and stable.rate > self.threshold:
            return beside + ": both arms fail, so the canary may not be to blame"
        return beside
