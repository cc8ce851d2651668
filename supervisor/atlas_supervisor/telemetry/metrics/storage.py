"""The disk as the daemon feels it: how long durable writes take, and whether they succeed."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.0025, 0.01, 0.025, 0.1, 0.5, 5.0)


class _Writes:
    """Writes to one place."""

    def __init__(self, registry: CollectorRegistry, name: str, what: str) -> None:
        self._seconds = Histogram(
            f"atlas_{name}_write_duration_seconds",
            f"How long {what} took until it was durable, or had failed.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._failures = Counter(
            f"atlas_{name}_write_failures_total",
            f"How often {what} failed, and nothing of it was kept.",
            registry=registry,
        )

    def written(self, seconds: float, done: bool) -> None:
        """Count one; it is a `store.statements.Timed`."""
        self._seconds.observe(seconds)
        if not done:
            self._failures.inc()


class StorageMetrics:
    """Writes of `atlas.db` (the journal among them) and of the state file."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.database = _Writes(registry, "database", "a transaction of atlas.db")
        self.state_file = _Writes(registry, "state_file", "a change of deploy_state.json")
