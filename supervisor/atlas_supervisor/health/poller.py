"""Runs one check again and again in the background, and keeps the last result.

A report takes the last result at once. A check that hangs delays its own next run and nothing
else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

from atlas_supervisor.system.clock import Stopwatch

T = TypeVar("T")


class Poller(Generic[T]):
    """Calls `check`, pauses for `interval` seconds, and so on."""

    def __init__(self, check: Callable[[], Awaitable[T]], *, interval: float) -> None:
        self._check = check
        self._interval = interval
        self._last: T | None = None
        self._finished = anyio.Event()
        self._running: Stopwatch | None = None
        self._scope = anyio.CancelScope()

    @property
    def last(self) -> T | None:
        """The last result; None before the first."""
        return self._last

    @property
    def running_seconds(self) -> float:
        """For how long the current check has been running; 0 between two checks."""
        return self._running.seconds if self._running else 0.0

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            with anyio.CancelScope() as self._scope:
                self._running = Stopwatch()
                try:
                    self._last = await self._check()
                finally:
                    self._running = None
                self._finished.set()
                self._finished = anyio.Event()
                await anyio.sleep(self._interval)

    def restart(self) -> None:
        """Check again at once: end the pause, or the check in progress."""
        self._scope.cancel()

    async def next(self) -> None:
        """Wait until a check has finished."""
        await self._finished.wait()
