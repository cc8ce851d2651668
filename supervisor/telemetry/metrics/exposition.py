"""Writes what is known as Prometheus' text: what the loop knows is read there, the rest is not.

Gauges are read on the event loop, whose objects they look at. The text is put together in a
thread, because it looks at `/proc` and the disk.

It is the plain text format whatever a client prefers: OpenMetrics would have nothing more to say,
and demands suffixes that the promised names lack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import chain

from prometheus_client import Metric

from supervisor.telemetry.metrics import Metrics
from supervisor.telemetry.metrics.text import TextWriter

Look = Callable[[], Iterable[Metric]]
"""Reads gauges from memory, in the event loop's thread."""


class Exposition:
    """The registry and what is read when somebody scrapes; it satisfies `api.control.Metrics`."""

    def __init__(self, metrics: Metrics, look: Look) -> None:
        self._registry = metrics.registry
        self._look = look
        self._writer = TextWriter()
        self._writing = asyncio.Lock()
        self.answered = metrics.requests.answered

    async def text(self) -> bytes:
        """Return everything at this moment in the text format, version 0.0.4."""
        seen = list(self._look())
        async with self._writing:
            return await asyncio.to_thread(self._written, seen)

    def _written(self, seen: list[Metric]) -> bytes:
        return self._writer.write(chain(self._registry.collect(), seen))
