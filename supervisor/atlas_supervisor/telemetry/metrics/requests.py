"""Requests of the control API, by the table's own words: never by what a client has made up."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.01, 0.1, 1.0, 10.0)


class RequestMetrics:
    """How many there were, and how long they took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter(
            "atlas_api_requests_total",
            "Requests of the control API that were answered, streams once they have ended.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "atlas_api_request_duration_seconds",
            "From a request's headers to its answer. A deploy is waited for; streams are left out.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count one answer. `seconds` is None for a stream, whose client decides how long it is.

        `method` and `route` have to be bounded by whoever calls.
        """
        self._count.labels(method, route, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(method, route).observe(seconds)
