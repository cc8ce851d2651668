"""Health probes of workers: their duration and their verdicts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.verdict import Verdict

_SECONDS = (0.005, 0.05, 0.5, 2.5, 10.0)


class ProbeMetrics:
    """All health probes: during a start, at the gate, in the guard, and of liveness."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "atlas_probe_duration_seconds",
            "Duration of a health probe. During a start: until the first answer.",
            ["slot"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._count = Counter(
            "atlas_probes_total",
            "Health probes, by verdict.",
            ["slot", "verdict"],
            registry=registry,
        )
        for slot in SlotName:
            self._seconds.labels(slot.value)
            for verdict in Verdict:
                self._count.labels(slot.value, verdict.value)

    def probed(self, slot: SlotName, verdict: Verdict, seconds: float) -> None:
        """Count one probe."""
        self._seconds.labels(slot.value).observe(seconds)
        self._count.labels(slot.value, verdict.value).inc()
