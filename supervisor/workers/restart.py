"""When a worker that died is started again: at once, then ever later, then not any more. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_DELAYS_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)
_STABLE_SECONDS = 30.0


@dataclass(frozen=True)
class RestartPolicy:
    """How long to wait before each start in a row of short lives.

    A life of `stable_seconds` or more begins a new row. After as many short lives as there are
    `delays_seconds`, the worker is given up.
    """

    delays_seconds: tuple[float, ...] = _DELAYS_SECONDS
    stable_seconds: float = _STABLE_SECONDS


@dataclass(frozen=True)
class CrashCount:
    """Short lives in a row."""

    short_lives: int = 0

    def after(self, lived_seconds: float, policy: RestartPolicy) -> CrashCount:
        """Return the count after a life of this length."""
        if lived_seconds >= policy.stable_seconds:
            return CrashCount(1)
        return CrashCount(self.short_lives + 1)

    def delay_seconds(self, policy: RestartPolicy) -> float | None:
        """Return how long to wait before the next start; None: give up."""
        if self.short_lives > len(policy.delays_seconds):
            return None
        return policy.delays_seconds[max(self.short_lives - 1, 0)]
