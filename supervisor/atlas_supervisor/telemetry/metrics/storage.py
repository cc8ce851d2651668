"""Durable writes: their duration and their failures."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.0025, 0.01, 0.025, 0.1, 0.5, 5.0)


class _Writes:
    """Writes to one place."""

    def __init__(self, registry: CollectorRegistry, name: str, write: str) -> None:
        self._seconds = Histogram(
            f"atlas_{name}_write_duration_seconds",
            f"Duration of a {write}, until it is durable or fails.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._failures = Counter(
            f"atlas_{name}_write_failures_total",
            f"Failed {write}s.",
            registry=registry,
        )

    def written(self, seconds: float, done: bool) -> None:
        """Count one write; its type is `store.statements.Timed`."""
        self._seconds.observe(seconds)
        if not done:
            self._failures.inc()


class StorageMetrics:
    """Writes of `atlas.db`, the journal included, and of the state file."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.database = _Writes(registry, "database", "database transaction")
        self.state_file = _Writes(registry, "state_file", "state file write")
