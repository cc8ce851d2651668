"""Deploys and switches, counted from the published transitions of deploys."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from atlas_supervisor.model.deploy import Result
from atlas_supervisor.model.event import BEGUN, DeployEvent, PublishedEvent

_FLIPS = frozenset({"switch", "revert"})
"""Phases that switch all traffic; the end of each counts as an attempted switch."""

_ENDED = "ended"
_PASSED = "passed"
_STEP_SECONDS = (0.1, 0.5, 2.5, 10, 60)


class _Kind:
    """The kinds of deploys, as the label has them."""

    DEPLOY, DRY_RUN, ROLLBACK = "deploy", "dry_run", "rollback"
    ALL = (DEPLOY, DRY_RUN, ROLLBACK)


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
            "Attempted switches of all traffic, by deploys and rollbacks.",
        )
        self._switched = promised("deploy_switch_success", "Switches that succeeded.")
        self._not_switched = promised("deploy_switch_fail", "Switches that failed.")
        self._runs = promised(
            "deploy_bluegreen_runs",
            "Deploys started, dry runs included. Rollbacks are not counted.",
        )
        self._started = Counter(
            "atlas_deploys_total",
            "Deploys started. Rollbacks to a warm version are not counted.",
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

    def _note_start(self, event: DeployEvent, *, rollback: bool) -> None:
        kind = _Kind.ROLLBACK if rollback else _kind_of(event)
        if kind != _Kind.ROLLBACK:
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
    return _Kind.DRY_RUN if event.dry_run else _Kind.DEPLOY
