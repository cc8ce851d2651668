"""What the process itself and its disk look like, read from the system when somebody scrapes."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector

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
