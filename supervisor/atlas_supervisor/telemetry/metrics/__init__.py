"""Numbers for Prometheus: instruments that are told what happened, one file per family.

Whoever observes something calls a plain method here and knows nothing of Prometheus. What is not
counted but simply so (a slot's state, a queue's length) is read when somebody scrapes, from
whoever knows it: see `deploy.collector` and `exposition`.
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
    """All instruments of one daemon, over a registry of their own."""

    def __init__(self, *, version: str, features: Iterable[str], state_dir: Path) -> None:
        # A second series for each one, which Prometheus has no use for.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types upstream
        self.registry = CollectorRegistry()
        self.deploys = DeployMetrics(self.registry)
        self.canaries = CanaryMetrics(self.registry, features)
        self.probes = ProbeMetrics(self.registry)
        self.requests = RequestMetrics(self.registry)
        self.storage = StorageMetrics(self.registry)
        self.loop = LoopMetrics(self.registry)
        register_machine(self.registry, version=version, state_dir=state_dir)
