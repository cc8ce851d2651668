"""What all clients of one load share, and one client's own part of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tests.loadclient.report import Loss, Tally
from tests.loadclient.wire import LostError

# A client that is refused does not hammer; the server is given this long, in seconds.
PAUSE_AFTER_LOSS = 0.01


@dataclass(frozen=True)
class Session:
    """One client's view: whom it asks, where it counts, and when it is to stop."""

    kind: str
    number: int
    host: str
    port: int
    tally: Tally
    random: Random
    tokens: Iterator[int]
    stopping: asyncio.Event
    began: float

    def token(self) -> str:
        """Return a word that nobody else in this load sends."""
        return f"t{next(self.tokens)}"

    def answered(self, who: str, seconds: float | None = None) -> None:
        """Count a right answer; without `seconds` it has no latency."""
        self.tally.answered += 1
        self.tally.answered_by[who] += 1
        self.tally.latest[self.number] = who
        if seconds is not None:
            self.tally.latencies.append(seconds * 1000)

    async def lose(self, token: str, error: LostError, nth: int) -> None:
        """Write a loss down, and pause."""
        now = asyncio.get_running_loop().time() - self.began
        self.tally.losses.append(Loss(now, self.kind, token, error.reason, error.detail, nth))
        await asyncio.sleep(PAUSE_AFTER_LOSS)

    async def think(self, seconds: float) -> None:
        """Pause for so long, or until the load is told to stop."""
        if not seconds:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return
