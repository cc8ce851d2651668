"""Requests of the control API, labelled from the route table and never by a client's text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.01, 0.1, 1.0, 10.0)


class RequestMetrics:
    """Counts responses and measures their duration."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter(
            "atlas_api_requests_total",
            "Responses of the control API. Streams count when they end.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "atlas_api_request_duration_seconds",
            "Duration from a request's headers to its response. Streams are excluded.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count one response. `seconds` is None for a stream, whose length its client decides.

        The caller must bound the values of `method` and `route`.
        """
        self._count.labels(method, route, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(method, route).observe(seconds)
