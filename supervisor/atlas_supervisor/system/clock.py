"""Time, from one place: the wall clock for readers, the monotonic clock for durations.

A wall clock can jump a day back and forth, so it is not used for waits and measurements.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """Return the present moment, in UTC."""
    return datetime.now(UTC)


class Stopwatch:
    """Measures the time since it was made, independent of the wall clock."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def milliseconds(self) -> float:
        """Milliseconds since the start, to the microsecond."""
        return round(self.seconds * 1000, 3)
