"""How late the event loop comes to what it has to do: the first sign of a daemon that chokes."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Histogram

SAMPLE_SECONDS = 0.5
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class LoopMetrics:
    """Sleeps again and again, and notes by how much it was woken too late."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "atlas_event_loop_lag_seconds",
            f"How late the event loop was, sampled every {SAMPLE_SECONDS:g} s.",
            buckets=_SECONDS,
            registry=registry,
        )

    async def sample(self) -> None:
        """Go on until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + SAMPLE_SECONDS
            await asyncio.sleep(SAMPLE_SECONDS)
            self._lag.observe(max(loop.time() - due, 0.0))
