"""Looks at something again and again in the background, once at a time, and keeps what it saw.

Whoever asks gets the last look at once: what hangs makes one task wait, and nobody else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

from atlas_supervisor.system.clock import Stopwatch

T = TypeVar("T")


class Poller(Generic[T]):
    """Calls `look`, pauses for `interval` seconds, and so on."""

    def __init__(self, look: Callable[[], Awaitable[T]], *, interval: float) -> None:
        self._look = look
        self._interval = interval
        self._last: T | None = None
        self._seen = anyio.Event()
        self._under_way: Stopwatch | None = None
        self._scope = anyio.CancelScope()

    @property
    def last(self) -> T | None:
        """What was seen last; None if nothing was yet."""
        return self._last

    @property
    def waiting_seconds(self) -> float:
        """For how long the look that is under way goes on; 0 if none is."""
        return self._under_way.seconds if self._under_way else 0.0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            with anyio.CancelScope() as self._scope:
                self._under_way = Stopwatch()
                try:
                    self._last = await self._look()
                finally:
                    self._under_way = None
                self._seen.set()
                self._seen = anyio.Event()
                await anyio.sleep(self._interval)

    def again(self) -> None:
        """Look anew, at once: give up the pause, or the look that is under way."""
        self._scope.cancel()

    async def next(self) -> None:
        """Wait for the end of a look."""
        await self._seen.wait()
