"""Time, from one place: the wall clock for readers, the monotonic clock for durations.

A wall clock can be set a day back or forth, so no decision depends on it: waits and measurements
use `Stopwatch`, and what needs times that can be compared and saved uses `steady_time`.
"""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime


def now() -> datetime:
    """Return the present moment, in UTC."""
    return datetime.now(UTC)


def steady_time() -> float:
    """Return Unix time by a clock that is never set.

    It is the wall clock of the daemon's start, and the time since then.
    """
    return _STARTED_AT + time.clock_gettime(time.CLOCK_BOOTTIME)


def jittered(seconds: float) -> float:
    """Return a pause of about so many seconds, so that many hosts don't do a thing at once."""
    return seconds * random.uniform(0.75, 1.25)  # noqa: S311 - it only spreads the load


_STARTED_AT = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class Stopwatch:
    """Measures the time since it was made, independent of the wall clock."""

    def __init__(self, passed: float = 0.0) -> None:
        """Begin to measure; `passed` seconds are over already."""
        self._started = time.monotonic() - passed

    @classmethod
    def since(cls, moment: datetime | None) -> Stopwatch:
        """Return one that was made at a recorded moment of the past, None being now.

        The time until now is that of the wall clock.
        """
        return cls(max((now() - moment).total_seconds(), 0.0) if moment else 0.0)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def milliseconds(self) -> float:
        """Milliseconds since the start, to the microsecond."""
        return round(self.seconds * 1000, 3)
