"""What the process itself and its disk look like, read from the system when somebody scrapes.

What the workers take of the machine, read from `/proc` when somebody scrapes, in a thread.

How late the event loop comes to what it has to do: the first sign of a daemon that chokes.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector

from atlas_supervisor.system import procfs

_PREFIX = "atlas"


def register_machine(registry: CollectorRegistry, *, version: str, state_dir: Path) -> None:
    """Register build, process, garbage collector and disk. All of it is read in a thread."""
    build = Gauge(
        "atlas_build_info",
        "Always 1; what runs stands in the labels.",
        ["version", "python"],
        registry=registry,
    )
    build.labels(version, platform.python_version()).set(1)
    ProcessCollector(namespace=_PREFIX, registry=registry)
    registry.register(_GarbageCollector())
    registry.register(_Disk(state_dir))


class _GarbageCollector:
    """prometheus_client's collector under our prefix, which it does not offer by itself."""

    def __init__(self) -> None:
        self._original = GCCollector(CollectorRegistry())

    def collect(self) -> Iterator[Metric]:
        for family in self._original.collect():
            renamed = Metric(f"{_PREFIX}_{family.name}", f"{family.documentation}.", family.type)
            for sample in family.samples:
                renamed.add_sample(f"{_PREFIX}_{sample.name}", sample.labels, sample.value)
            yield renamed


class _Disk:
    """The file system of `STATE_DIR`: without space there, nothing can be made durable."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def collect(self) -> Iterable[Metric]:
        try:
            disk = os.statvfs(self._state_dir)
        except OSError:
            return []
        return [
            GaugeMetricFamily(
                "atlas_state_dir_free_bytes",
                "Free space for the daemon's user on the file system of STATE_DIR.",
                disk.f_bavail * disk.f_frsize,
            ),
            GaugeMetricFamily(
                "atlas_state_dir_size_bytes",
                "Size of the file system of STATE_DIR.",
                disk.f_blocks * disk.f_frsize,
            ),
        ]


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
