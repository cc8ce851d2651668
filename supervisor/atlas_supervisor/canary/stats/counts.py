"""The counts that all evidence is computed from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """What is known of one arm: how many calls it had, and how many of them failed.

    Raises ValueError for counts that can't be.
    """

    calls: int = 0
    errors: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.errors <= self.calls:
            raise ValueError(f"an arm can't have {self.errors} errors in {self.calls} calls")

    def __add__(self, other: Arm) -> Arm:
        return Arm(self.calls + other.calls, self.errors + other.errors)

    @property
    def rate(self) -> float | None:
        """The share of calls that failed; None without calls."""
        return self.errors / self.calls if self.calls else None


@dataclass(frozen=True)
class Window:
    """The calls of both arms that were assigned in one span of time, under one share.

    Raises ValueError for a share that is no share.
    """

    share: float
    canary: Arm
    stable: Arm

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"the canary's share is between 0 and 1, not {self.share}")

    @property
    def both(self) -> Arm:
        """The calls of both arms together."""
        return self.canary + self.stable

    @property
    def is_drawn(self) -> bool:
        """Whether both arms could be drawn; a window in which they could not compares nothing."""
        return 0 < self.share < 1


@dataclass(frozen=True)
class Rates:
    """What the calls to come are expected to be like; the share is within (0, 1)."""

    share: float
    canary: float
    stable: float

    @property
    def stable_calls(self) -> float:
        """How many stable calls come with each canary call."""
        return (1 - self.share) / self.share
