"""Writes what is known as Prometheus' text: what the loop knows is read there, the rest is not.

Gauges are read on the event loop, whose objects they look at. The text is put together in a
thread, because it looks at `/proc` and the disk.

It is the plain text format whatever a client prefers: OpenMetrics would have nothing more to say,
and demands suffixes that the promised names lack.

Prometheus' text, written by prometheus_client once and remembered: names and labels stay.

Most of the time of a scrape goes into checking and escaping the same names and labels again. So
what the library writes of a series, up to its value, is kept, and the next scrape adds the value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from atlas_supervisor.telemetry.metrics import Metrics

_SERIES_KEPT = 4096
"""Then all are forgotten: versions come and go, and so do the series that name them."""


class TextWriter:
    """Writes families as `generate_latest` does. To be used by one thread at a time."""

    def __init__(self) -> None:
        self._heads: dict[tuple[str, str, str], str] = {}
        self._series: dict[tuple[object, ...], str] = {}

    def write(self, families: Iterable[Metric]) -> bytes:
        """Return the families as text, version 0.0.4."""
        if len(self._series) > _SERIES_KEPT:
            self._series.clear()
        parts = []
        for family in families:
            parts.append(self._head(family))
            for sample in family.samples:
                value = floatToGoString(sample.value)  # type: ignore[no-untyped-call]  # upstream
                parts.append(f"{self._beginning(family, sample)} {value}\n")
        return "".join(parts).encode()

    def _head(self, family: Metric) -> str:
        key = (family.name, family.type, family.documentation)
        if key not in self._heads:
            bare = Metric(family.name, family.documentation, family.type)
            self._heads[key] = _written(bare)
        return self._heads[key]

    def _beginning(self, family: Metric, sample: Sample) -> str:
        """Return what stands before a sample's value."""
        key = (family.name, sample.name, *sample.labels.items())
        if (known := self._series.get(key)) is None:
            alone = Metric(family.name, family.documentation, family.type)
            alone.samples = [sample]
            line = _written(alone).removeprefix(self._head(family))
            known = self._series[key] = line.rpartition(" ")[0]
        return known


class _One(CollectorRegistry):
    def __init__(self, family: Metric) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


def _written(family: Metric) -> str:
    return generate_latest(_One(family)).decode()


Look = Callable[[], Iterable[Metric]]
"""Reads gauges from memory, in the event loop's thread."""


class Exposition:
    """The registry and what is read when somebody scrapes; it satisfies `api.ports.Metrics`."""

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
