"""Metrics for Prometheus: the instruments that count events, and their registry.

The rest of the daemon calls their plain methods and does not depend on Prometheus. Current values
(a slot's state, a queue's length) are not counted but read at a scrape: see `deploy.collector`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, disable_created_metrics

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.telemetry.metrics.instruments import (
    CanaryMetrics,
    DeployMetrics,
    ProbeMetrics,
    RequestMetrics,
    StorageMetrics,
)
from atlas_supervisor.telemetry.metrics.machine import LoopMetrics, register_machine


class Metrics:
    """All instruments of one daemon, in their own registry."""

    def __init__(
        self,
        *,
        version: str,
        features: Iterable[str],
        slot_ports: Mapping[SlotName, int],
        state_dir: Path,
    ) -> None:
        # Creation times would be a second series for each counter, without use for Prometheus.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types upstream
        self.registry = CollectorRegistry()
        self.deploys = DeployMetrics(self.registry)
        self.canaries = CanaryMetrics(self.registry, features)
        self.probes = ProbeMetrics(self.registry, slot_ports)
        self.requests = RequestMetrics(self.registry)
        self.storage = StorageMetrics(self.registry)
        self.loop = LoopMetrics(self.registry)
        register_machine(self.registry, version=version, state_dir=state_dir)
