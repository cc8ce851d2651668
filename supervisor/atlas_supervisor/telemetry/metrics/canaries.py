"""Metrics of feature canaries: calls, and their latency by arm."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import HistogramMetricFamily

_BOUNDS = (0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0)
"""Seconds. A call that takes longer than the last bound counts as one that never ends."""

ARMS = ("canary", "stable")


class CanaryMetrics:
    """`canary_requests`, and one histogram `canary_<feature>` with the label `arm`.

    A window of evidence has many calls of the same latency. They are added at once, which
    prometheus_client's own histogram can't do.
    """

    def __init__(self, registry: CollectorRegistry, features: Iterable[str]) -> None:
        self._requests = Gauge(
            "canary_requests",
            "Feature calls served by a canary.",
            registry=registry,
        )
        self._arms = {
            feature: {arm: _Latencies() for arm in ARMS} for feature in dict.fromkeys(features)
        }
        registry.register(self)

    def observe(self, feature: str, arm: str, seconds: float, count: int = 1) -> None:
        """Add `count` calls that took `seconds` each. Raises KeyError for an unknown name."""
        self._arms[feature][arm].add(seconds, count)
        if arm == "canary":
            self._requests.inc(count)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the histograms, as prometheus_client asks for them."""
        for feature, arms in self._arms.items():
            family = HistogramMetricFamily(
                f"canary_{feature}",
                f"Latency of {feature} calls in seconds, by arm.",
                labels=["arm"],
            )
            for arm, latencies in arms.items():
                family.add_metric([arm], latencies.buckets(), latencies.sum)
            yield family


class _Latencies:
    """The latencies of one arm; one thread adds, any thread reads."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float, count: int) -> None:
        self._counts[bisect_left(_BOUNDS, seconds)] += count
        self.sum += seconds * count

    def buckets(self) -> list[tuple[str, float]]:
        """Return each upper bound with the number of calls up to it."""
        bounds = [*(str(float(bound)) for bound in _BOUNDS), "+Inf"]
        return list(zip(bounds, map(float, accumulate(list(self._counts))), strict=True))
