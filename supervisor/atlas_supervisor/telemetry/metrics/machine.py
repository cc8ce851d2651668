"""Usage of the machine by the daemon and its workers: process, disk, memory, CPU, event loop.

All of it is read from the system at a scrape, in a thread, except the event loop's lag, which is
sampled: it is the first sign of an overloaded daemon.
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
    """Register build, process, garbage collector and disk."""
    build = Gauge(
        "atlas_build_info",
        "Build information in the labels. Always 1.",
        ["version", "python"],
        registry=registry,
    )
    build.labels(version, platform.python_version()).set(1)
    ProcessCollector(namespace=_PREFIX, registry=registry)
    registry.register(_GarbageCollector())
    registry.register(_Disk(state_dir))


class _GarbageCollector:
    """prometheus_client's collector with the prefix of this daemon, which it has no option for."""

    def __init__(self) -> None:
        self._original = GCCollector(CollectorRegistry())

    def collect(self) -> Iterator[Metric]:
        for family in self._original.collect():
            renamed = Metric(f"{_PREFIX}_{family.name}", f"{family.documentation}.", family.type)
            for sample in family.samples:
                renamed.add_sample(f"{_PREFIX}_{sample.name}", sample.labels, sample.value)
            yield renamed


class _Disk:
    """The file system of `STATE_DIR`; without space there, no write is durable."""

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
                "Free space on the file system of STATE_DIR, for the daemon's user.",
                disk.f_bavail * disk.f_frsize,
            ),
            GaugeMetricFamily(
                "atlas_state_dir_size_bytes",
                "Size of the file system of STATE_DIR.",
                disk.f_blocks * disk.f_frsize,
            ),
        ]


class Running(NamedTuple):
    """A worker's main process."""

    slot: str
    version: str
    pid: int


class WorkerUsage:
    """Memory and CPU time of each worker's main process, without its children."""

    def __init__(
        self, registry: CollectorRegistry, running: Callable[[], Iterable[Running]]
    ) -> None:
        self._running = running
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield both families, as prometheus_client asks for them."""
        memory = GaugeMetricFamily(
            "atlas_worker_resident_memory_bytes",
            "Resident memory of the worker's main process.",
            labels=["slot", "version"],
        )
        cpu = CounterMetricFamily(
            "atlas_worker_cpu_seconds",
            "CPU time of the worker's main process, user and system.",
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
    """Samples how late the event loop wakes a sleeping task."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "atlas_event_loop_lag_seconds",
            f"Event loop lag, sampled every {SAMPLE_SECONDS:g} s.",
            buckets=_SECONDS,
            registry=registry,
        )

    async def sample(self) -> None:
        """Sample until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + SAMPLE_SECONDS
            await asyncio.sleep(SAMPLE_SECONDS)
            self._lag.observe(max(loop.time() - due, 0.0))
