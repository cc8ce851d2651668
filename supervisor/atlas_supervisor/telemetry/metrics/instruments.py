"""Instruments: what is counted and measured as it happens, one class for each family.

The label values of requests come from the route table, and never from a client's text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily

from atlas_supervisor.model.deploy import BEGUN, Cause, DeployEvent, PublishedEvent, Result
from atlas_supervisor.model.probe import ProbeResult
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.verdict import Verdict

ARMS = ("canary", "stable")

_PROBE_SECONDS = (0.005, 0.05, 0.5, 2.5, 10.0)
_REQUEST_SECONDS = (0.01, 0.1, 1.0, 10.0)
_WRITE_SECONDS = (0.0025, 0.01, 0.025, 0.1, 0.5, 5.0)
_STEP_SECONDS = (0.1, 0.5, 2.5, 10, 60)
_CALL_SECONDS = (0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0)
"""A call that takes longer than the last bound counts as one that never ends."""

_FLIPS = frozenset({"switch", "revert"})
"""Phases that switch all traffic; the end of each counts as an attempted switch."""

_RECYCLE_REASONS = ("memory", "age")
_ENDED = "ended"
_PASSED = "passed"


class _Kind:
    """The kinds of deploys, as the label has them."""

    DEPLOY, DRY_RUN, ROLLBACK, RECYCLE = "deploy", "dry_run", "rollback", "recycle"
    ALL = (DEPLOY, DRY_RUN, ROLLBACK, RECYCLE)


class DeployMetrics:
    """Counts transitions since the daemon's start; each is passed in once, in order.

    The names without a prefix are a promise of the API. They are gauges, because prometheus_client
    would add `_total` to a counter's name, and they never decrease.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def promised(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        self._switches = promised(
            "deploy_switch_total",
            "Attempted switches of all traffic, by deploys, rollbacks and recycles: success and "
            "fail together.",
        )
        self._switched = promised("deploy_switch_success", "Switches that succeeded.")
        self._not_switched = promised("deploy_switch_fail", "Switches that failed.")
        self._runs = promised(
            "deploy_bluegreen_runs",
            "Deploys started, dry runs included. Rollbacks and recycles are not counted.",
        )
        self._started = Counter(
            "atlas_deploys_total",
            "Deploys started. Kind rollback: the previous version is launched again. Rollbacks to "
            "a warm version are not counted.",
            ["kind"],
            registry=registry,
        )
        self._results = Counter(
            "atlas_deploy_results_total",
            "Results of deploys. A deploy that is reverted counts twice.",
            ["kind", "result"],
            registry=registry,
        )
        self._steps = Histogram(
            "atlas_deploy_step_duration_seconds",
            "Duration of a deploy step.",
            ["step", "outcome"],
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self._took = Gauge(
            "atlas_last_deploy_duration_seconds",
            "Duration of the last deploy, from its start to its first result.",
            ["kind", "result"],
            registry=registry,
        )
        self._recycles = Counter(
            "atlas_recycles_total",
            "Attempts to replace a worker beyond a limit, by that limit: memory or age.",
            ["reason"],
            registry=registry,
        )
        for reason in _RECYCLE_REASONS:
            self._recycles.labels(reason)
        for kind in _Kind.ALL:  # an alert sees a number grow only if it was there before
            self._started.labels(kind)
            for result in Result:
                self._results.labels(kind, result.value)
        self._running: dict[str, _Deploy] = {}

    def count(self, published: PublishedEvent) -> None:
        """Count one transition."""
        event = published.event
        if event.event == BEGUN:
            self._note_start(event, rollback=published.rollback)
        if event.source in _FLIPS:
            self._switches.inc()
            (self._switched if event.event == _PASSED else self._not_switched).inc()
        if event.step is not None:
            outcome = "passed" if event.step.ok else "failed"
            seconds = event.step.duration_ms / 1000
            self._steps.labels(event.step.name.value, outcome).observe(seconds)
        self._note_result(event)

    def recycled(self, reason: str) -> None:
        """Count an attempt to recycle a worker."""
        self._recycles.labels(reason).inc()

    def _note_start(self, event: DeployEvent, *, rollback: bool) -> None:
        kind = _Kind.ROLLBACK if rollback else _kind_of(event)
        if kind in {_Kind.DEPLOY, _Kind.DRY_RUN}:
            self._runs.inc()
        self._started.labels(kind).inc()
        self._running[event.deploy_id] = _Deploy(kind, event.ts.timestamp())

    def _note_result(self, event: DeployEvent) -> None:
        """Count a result when it is new; later transitions carry it again."""
        known = self._running.setdefault(event.deploy_id, _Deploy(_kind_of(event), None))
        result = event.result.value if event.result else None
        if result is not None and result != known.result:
            self._results.labels(known.kind, result).inc()
            if known.result is None and known.started is not None:
                self._took.clear()
                seconds = max(event.ts.timestamp() - known.started, 0.0)
                self._took.labels(known.kind, result).set(seconds)
            known.result = result
        if event.target == _ENDED:
            del self._running[event.deploy_id]


class _Deploy:
    """A deploy that has not ended. `started` is None if an earlier daemon started it."""

    def __init__(self, kind: str, started: float | None) -> None:
        self.kind = kind
        self.started = started
        self.result: str | None = None


def _kind_of(event: DeployEvent) -> str:
    if event.deploy_cause is Cause.RECYCLED:
        return _Kind.RECYCLE
    return _Kind.DRY_RUN if event.dry_run else _Kind.DEPLOY


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
        self._counts = [0] * (len(_CALL_SECONDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float, count: int) -> None:
        self._counts[bisect_left(_CALL_SECONDS, seconds)] += count
        self.sum += seconds * count

    def buckets(self) -> list[tuple[str, float]]:
        """Return each upper bound with the number of calls up to it."""
        bounds = [*(str(float(bound)) for bound in _CALL_SECONDS), "+Inf"]
        return list(zip(bounds, map(float, accumulate(list(self._counts))), strict=True))


class ProbeMetrics:
    """All health probes: during a start, at the gate, in the guard, and of liveness."""

    def __init__(self, registry: CollectorRegistry, slot_ports: Mapping[SlotName, int]) -> None:
        self._slots = {port: slot for slot, port in slot_ports.items()}
        self._seconds = Histogram(
            "atlas_probe_duration_seconds",
            "Duration of a health probe. During a start: until the first answer.",
            ["slot"],
            buckets=_PROBE_SECONDS,
            registry=registry,
        )
        self._count = Counter(
            "atlas_probes_total",
            "Health probes. Verdict is pass, fail or inconclusive.",
            ["slot", "verdict"],
            registry=registry,
        )
        for slot in SlotName:
            self._seconds.labels(slot.value)
            for verdict in Verdict:
                self._count.labels(slot.value, verdict.value)

    def probed(self, port: int, result: ProbeResult) -> None:
        """Count one probe of the worker on this port."""
        slot = self._slots[port].value
        self._seconds.labels(slot).observe(result.duration_ms / 1000)
        self._count.labels(slot, result.verdict.value).inc()


class RequestMetrics:
    """Counts responses and measures their duration."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter(
            "atlas_api_requests_total",
            "Responses of the control API. Streams count when they end. Route is the pattern, or "
            "unknown; status 499: the client closed first.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "atlas_api_request_duration_seconds",
            "Duration from a request's headers to its response. Streams are excluded.",
            ["method", "route"],
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """Count one response. `seconds` is None for a stream, whose length its client decides.

        The caller must bound the values of `method` and `route`.
        """
        self._count.labels(method, route, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(method, route).observe(seconds)


class _Writes:
    """Writes to one place."""

    def __init__(self, registry: CollectorRegistry, name: str, write: str) -> None:
        self._seconds = Histogram(
            f"atlas_{name}_write_duration_seconds",
            f"Duration of a {write}, until it is durable or fails.",
            buckets=_WRITE_SECONDS,
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
