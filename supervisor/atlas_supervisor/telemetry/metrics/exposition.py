"""Writes all metrics in Prometheus' text format.

Gauges are read on the event loop, whose objects they look at. The text is written in a thread,
because collectors read `/proc` and the disk. The format is always version 0.0.4: OpenMetrics has
nothing to add, and demands suffixes that the promised names lack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector

from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.telemetry.metrics import Metrics

ReadGauges = Callable[[], Iterable[Metric]]
"""Reads gauges from memory, in the event loop's thread."""


class Exposition:
    """The registry, and the gauges read at a scrape; implements `api.ports.MetricsPort`."""

    def __init__(self, metrics: Metrics, read_gauges: ReadGauges) -> None:
        self._registry = metrics.registry
        self._read_gauges = read_gauges
        self.answered = metrics.requests.answered

    async def text(self) -> bytes:
        """Return all metrics of this moment in the text format, version 0.0.4."""
        scrape = _Scrape(self._registry, list(self._read_gauges()))
        return await in_thread(generate_latest, scrape)


class _Scrape(Collector):
    """The families of one answer."""

    def __init__(self, registry: Collector, gauges: Iterable[Metric]) -> None:
        self._registry = registry
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        return chain(self._registry.collect(), self._gauges)
