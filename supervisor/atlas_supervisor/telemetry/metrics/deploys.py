"""Deploys and switches, counted from the transitions that everybody else is told, too."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from atlas_supervisor.model.deploy import Result
from atlas_supervisor.model.event import BEGUN, DeployEvent, PublishedEvent

_FLIPS = frozenset({"switch", "revert"})
"""Phases that send all traffic to the other slot; each end of one is an attempted switch."""

_ENDED = "ended"
_PASSED = "passed"
_STEP_SECONDS = (0.1, 0.5, 2.5, 10, 60)


class _Kind:
    """What a deploy was asked for as."""

    DEPLOY, DRY_RUN, ROLLBACK = "deploy", "dry_run", "rollback"
    ALL = (DEPLOY, DRY_RUN, ROLLBACK)


class DeployMetrics:
    """To be told every transition once, in order. It counts from the daemon's start on.

    The names without our prefix are promised elsewhere. They are gauges, since prometheus_client
    would add `_total` to a counter's name, and only ever grow.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def promised(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        self._switches = promised(
            "deploy_switch_total",
            "Attempts to send all traffic to the other slot, by a deploy or a rollback.",
        )
        self._switched = promised("deploy_switch_success", "Attempts that sent it there.")
        self._not_switched = promised("deploy_switch_fail", "Attempts that left all as it was.")
        self._runs = promised(
            "deploy_bluegreen_runs", "Deploys that were begun, dry runs included, rollbacks not."
        )
        self._begun = Counter(
            "atlas_deploys_total",
            "Deploys that were begun; a rollback to a version that is still warm is none.",
            ["kind"],
            registry=registry,
        )
        self._results = Counter(
            "atlas_deploy_results_total",
            "Results that deploys came to; one that was reverted had two.",
            ["kind", "result"],
            registry=registry,
        )
        self._steps = Histogram(
            "atlas_deploy_step_duration_seconds",
            "How long a step of a deploy took.",
            ["step", "outcome"],
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self._took = Gauge(
            "atlas_last_deploy_duration_seconds",
            "From the beginning of the latest deploy that has a result to its first result.",
            ["kind", "result"],
            registry=registry,
        )
        for kind in _Kind.ALL:  # an alert sees a number grow only if it was there before
            self._begun.labels(kind)
            for result in Result:
                self._results.labels(kind, result.value)
        self._under_way: dict[str, _Deploy] = {}

    def told(self, announcement: PublishedEvent) -> None:
        """Count one transition."""
        event = announcement.event
        if event.event == BEGUN:
            self._begin(event, rollback=announcement.rollback)
        if event.source in _FLIPS:
            self._switches.inc()
            (self._switched if event.event == _PASSED else self._not_switched).inc()
        if event.step is not None:
            outcome = "passed" if event.step.ok else "failed"
            seconds = event.step.duration_ms / 1000
            self._steps.labels(event.step.name.value, outcome).observe(seconds)
        self._note_result(event)

    def _begin(self, event: DeployEvent, *, rollback: bool) -> None:
        kind = _Kind.ROLLBACK if rollback else _kind_of(event)
        if kind != _Kind.ROLLBACK:
            self._runs.inc()
        self._begun.labels(kind).inc()
        self._under_way[event.deploy_id] = _Deploy(kind, event.ts.timestamp())

    def _note_result(self, event: DeployEvent) -> None:
        """Count a result when it is new; it is told again with whatever follows."""
        known = self._under_way.setdefault(event.deploy_id, _Deploy(_kind_of(event), None))
        result = event.result.value if event.result else None
        if result is not None and result != known.result:
            self._results.labels(known.kind, result).inc()
            if known.result is None and known.begun is not None:
                self._took.clear()
                seconds = max(event.ts.timestamp() - known.begun, 0.0)
                self._took.labels(known.kind, result).set(seconds)
            known.result = result
        if event.target == _ENDED:
            del self._under_way[event.deploy_id]


class _Deploy:
    """What is remembered of one that has not ended. `begun` is None if an earlier daemon did."""

    def __init__(self, kind: str, begun: float | None) -> None:
        self.kind = kind
        self.begun = begun
        self.result: str | None = None


def _kind_of(event: DeployEvent) -> str:
    return _Kind.DRY_RUN if event.dry_run else _Kind.DEPLOY
