"""Metrics for Prometheus: instruments that count events, one file for each family.

The rest of the daemon calls their plain methods and does not depend on Prometheus. Current values
(a slot's state, a queue's length) are not counted but read at a scrape: see `deploy.collector`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, disable_created_metrics

from atlas_supervisor.telemetry.metrics.canaries import CanaryMetrics
from atlas_supervisor.telemetry.metrics.deploys import DeployMetrics
from atlas_supervisor.telemetry.metrics.machine import LoopMetrics, register_machine
from atlas_supervisor.telemetry.metrics.probes import ProbeMetrics
from atlas_supervisor.telemetry.metrics.requests import RequestMetrics
from atlas_supervisor.telemetry.metrics.storage import StorageMetrics


class Metrics:
    """All instruments of one daemon, in their own registry."""

    def __init__(self, *, version: str, features: Iterable[str], state_dir: Path) -> None:
        # Creation times would be a second series for each counter, without use for Prometheus.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types upstream
        self.registry = CollectorRegistry()
        self.deploys = DeployMetrics(self.registry)
        self.canaries = CanaryMetrics(self.registry, features)
        self.probes = ProbeMetrics(self.registry)
        self.requests = RequestMetrics(self.registry)
        self.storage = StorageMetrics(self.registry)
        self.loop = LoopMetrics(self.registry)
        register_machine(self.registry, version=version, state_dir=state_dir)
