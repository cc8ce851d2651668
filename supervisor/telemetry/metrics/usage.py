"""What the workers take of the machine, read from `/proc` when somebody scrapes, in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from supervisor import procfs


class Running(NamedTuple):
    """A worker's first process."""

    slot: str
    version: str
    pid: int


class WorkerUsage:
    """Memory and CPU time of each worker's first process, without what it has started itself."""

    def __init__(
        self, registry: CollectorRegistry, running: Callable[[], Iterable[Running]]
    ) -> None:
        self._running = running
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield both families, as prometheus_client asks for them."""
        memory = GaugeMetricFamily(
            "atlas_worker_resident_memory_bytes",
            "Resident memory of the worker's first process.",
            labels=["slot", "version"],
        )
        cpu = CounterMetricFamily(
            "atlas_worker_cpu_seconds",
            "CPU time of the worker's first process, of the system and of its own.",
            labels=["slot", "version"],
        )
        for worker in self._running():
            if (usage := procfs.usage(worker.pid)) is not None:
                memory.add_metric([worker.slot, worker.version], usage[0])
                cpu.add_metric([worker.slot, worker.version], usage[1])
        yield memory
        yield cpu
