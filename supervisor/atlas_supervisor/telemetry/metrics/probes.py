"""Probes of workers: how long they take and what they find."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.verdict import Verdict

_SECONDS = (0.005, 0.05, 0.5, 2.5, 10.0)


class ProbeMetrics:
    """Every probe, whoever asks: while an instance starts, at the gate, in the guard, for life."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "atlas_probe_duration_seconds",
            "How long a probe of the slot's instance took; of one that starts, until it answered.",
            ["slot"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._count = Counter(
            "atlas_probes_total",
            "Probes of the slot's instance, by what they found.",
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
