"""Gauges: the state of the daemon's parts at the time of a scrape, read from memory.

Called in the event loop's thread. Nothing here waits for a disk or a worker.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.status import DeployQueries
from atlas_supervisor.model.deploy import Mode
from atlas_supervisor.model.drain import DrainingView
from atlas_supervisor.model.histogram import Histogram
from atlas_supervisor.model.requests import RequestTotals
from atlas_supervisor.model.slot import Role, SlotName, SlotState, SlotView
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.model.status import Status
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.telemetry.metrics import Metrics
from atlas_supervisor.telemetry.metrics.exposition import Exposition
from atlas_supervisor.telemetry.metrics.machine import Running, WorkerUsage
from atlas_supervisor.traffic import Plane
from atlas_supervisor.traffic.plane import RelayTraffic
from atlas_supervisor.workers.slots import Slots
from atlas_worker.contract import bucket_milliseconds

_SERVING = frozenset({SlotState.RUNNING, SlotState.WARM})
_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
Requests = Mapping[tuple[str, str], RequestTotals]
"""Users' requests since the daemon's start, by slot and version."""


@dataclass(frozen=True)
class Snapshot:
    """The status, and the little that it does not show."""

    status: Status
    state: DeployState
    ready: bool
    """Whether an active worker takes traffic."""
    queued: Mapping[SlotName, int]
    """Connections that wait to be accepted."""
    relayed: Mapping[str, RelayTraffic]
    listeners: int
    """Subscribers of `GET /deploy/events`."""
    requests: Requests


def gauges(now: Snapshot) -> Iterator[Metric]:
    """Yield all gauges."""
    yield from _deploys(now)
    yield from _slots(now.status.slots)
    yield from _workers(now.status.slots)
    yield from _draining(now.status.draining)
    yield from _traffic(now)
    yield from _canaries(now.state)
    yield from _requests(now.requests)


def _deploys(now: Snapshot) -> Iterator[Metric]:
    status, state = now.status, now.state
    modes: dict[tuple[str, ...], float] = {(mode,): mode is status.mode for mode in Mode}
    yield _gauge("atlas_mode", "1 for the current mode, 0 for the other.", modes, "mode")
    yield _one("atlas_ready", "1 while an active worker receives traffic.", now.ready)
    yield _one(
        "atlas_deploy_in_progress", "1 while a deploy is in progress.", status.deploy_in_progress
    )
    lost = any(each.code == "history_lost" for each in status.fallback_suggestions)
    yield _one(
        "atlas_history_lost",
        "1 while a damaged database lies in STATE_DIR, whose history is missing.",
        lost,
    )
    yield _one("atlas_state_generation", "Changes of deploy_state.json.", state.generation)
    yield _one("atlas_event_stream_listeners", "Open streams of GET /deploy/events.", now.listeners)
    for name, moment, ts in (
        ("deploy", "start", state.last_deploy_ts),
        ("switch", "end", state.last_switch_ts),
    ):
        if ts is not None:
            text = f"Time of the last {name}'s {moment}. Absent without a {name}."
            yield _one(f"atlas_last_{name}_timestamp_seconds", text, ts.timestamp())
    if status.health_score is not None:
        yield _one("atlas_health_score", "Health score, from 0 to 100.", status.health_score)


def _slots(slots: Iterable[SlotView]) -> Iterator[Metric]:
    views = list(slots)
    yield _gauge(
        "atlas_slot_state",
        "1 for the state of the slot, 0 for the others.",
        {(view.slot, state.value): view.state is state for view in views for state in SlotState},
        "slot",
        "state",
    )
    yield _gauge(
        "atlas_slot_active",
        "1 for the active slot, 0 for the other.",
        {(view.slot,): view.role is Role.ACTIVE for view in views},
        "slot",
    )
    restarts = CounterMetricFamily(
        "atlas_worker_restarts",
        "Restarts of the slot's crashed worker, since its deploy.",
        labels=["slot"],
    )
    for view in views:
        restarts.add_metric([view.slot], view.restarts)
    yield restarts


def _workers(slots: Iterable[SlotView]) -> Iterator[Metric]:
    there = [view for view in slots if view.pid is not None]
    labels = [(view.slot, view.version or "") for view in there]
    yield _gauge(
        "atlas_worker_up",
        "1 if the worker in the slot is ready, 0 if it is not. Absent without a worker.",
        {key: view.state in _SERVING for key, view in zip(labels, there, strict=True)},
        "slot",
        "version",
    )
    yield _gauge(
        "atlas_worker_start_time_seconds",
        "Start time of the worker in the slot.",
        {
            key: view.started_ts.timestamp()
            for key, view in zip(labels, there, strict=True)
            if view.started_ts is not None
        },
        "slot",
        "version",
    )


def _draining(draining: Iterable[DrainingView]) -> Iterator[Metric]:
    instances: dict[tuple[str, ...], float] = {(slot.value,): 0 for slot in SlotName}
    connections = dict(instances)
    for view in draining:
        instances[view.slot,] += 1
        connections[view.slot,] += _left_of(view)
    yield _gauge(
        "atlas_draining_instances",
        "Draining instances, by their slot.",
        instances,
        "slot",
    )
    yield _gauge(
        "atlas_draining_connections",
        "Connections of draining instances, as reported or else as last observed.",
        connections,
        "slot",
    )


def _left_of(view: DrainingView) -> int:
    if view.left is not None:
        return sum(count for _, count in view.left)
    return view.connections or 0


def _traffic(now: Snapshot) -> Iterator[Metric]:
    traffic = now.status.traffic
    yield _gauge(
        "atlas_traffic_weight_ratio",
        "Share of new connections that the slot receives, from 0 to 1.",
        {(slot,): share for slot, share in traffic.weights.items()},
        "slot",
    )
    yield _gauge(
        "atlas_traffic_plane_info",
        "Traffic plane in the label. Always 1.",
        {(traffic.plane,): 1},
        "plane",
    )
    yield _gauge(
        "atlas_listener_queue_connections",
        "Connections that wait to be accepted.",
        {(slot.value,): count for slot, count in now.queued.items()},
        "slot",
    )
    held = traffic.held
    yield _one("atlas_traffic_held", "1 while new connections are held.", held is not None)
    yield _one(
        "atlas_traffic_held_connections",
        "Connections that wait for the end of a hold.",
        held.waiting if held else 0,
    )
    yield from _relay(now.relayed)


def _canaries(state: DeployState) -> Iterator[Metric]:
    yield _one(
        "atlas_canary_disabled_fallback",
        "1 while the fallback disables all feature canaries.",
        state.canary_disabled_fallback,
    )
    features = state.canary.features if state.canary else {}
    yield _gauge(
        "atlas_canary_share_ratio",
        "Share of the feature's calls that its canary receives, from 0 to 1.",
        {(name,): policy.share for name, policy in features.items()},
        "feature",
    )


def _requests(requests: Requests) -> Iterator[Metric]:
    count = CounterMetricFamily(
        "atlas_requests",
        "Users' requests of the last eight versions, counted by workers with the kit or by the "
        "relay (docs/worker-contract.md). Code is 1xx to 5xx, client_left (no failure) or cut "
        "(open when the process died).",
        labels=["slot", "version", "code"],
    )
    seconds = HistogramMetricFamily(
        "atlas_request_seconds",
        "Latency of users' requests that are answered, until the response ends.",
        labels=["slot", "version"],
    )
    for (slot, version), totals in requests.items():
        counts = totals.counts
        codes = {f"{number}xx": each for number, each in enumerate(counts.classes, 1)}
        for code, each in (codes | {"client_left": counts.left, "cut": counts.cut}).items():
            count.add_metric([slot, version, code], each)
        seconds.add_metric([slot, version], *_latencies(totals.latency))
    yield count
    yield seconds


def _latencies(latency: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Return the count up to each bound, and the sum of all, within 1 %."""
    counts, total = [0] * (len(_REQUEST_SECONDS) + 1), 0.0
    for bucket, count in latency:
        value = bucket_milliseconds(bucket) / 1000
        counts[bisect_left(_REQUEST_SECONDS, value)] += count
        total += value * count
    bounds = [*(str(bound) for bound in _REQUEST_SECONDS), "+Inf"]
    return list(zip(bounds, map(float, accumulate(counts)), strict=True)), total


def _relay(relayed: Mapping[str, RelayTraffic]) -> Iterator[Metric]:
    yield _gauge(
        "atlas_relay_open_connections",
        "Connections that the daemon relays. Purpose is public (the relay plane), own_port (of "
        "{fd} workers), rescue (in place of a dead worker) or hold (at the end of a hold).",
        {(purpose,): each.open_connections for purpose, each in relayed.items()},
        "purpose",
    )
    accepted = CounterMetricFamily(
        "atlas_relay_connections",
        "Connections accepted by the daemon, by the same purposes.",
        labels=["purpose"],
    )
    moved = CounterMetricFamily(
        "atlas_relay_bytes",
        "Bytes relayed by the daemon.",
        labels=["purpose", "direction"],
    )
    for purpose, each in relayed.items():
        accepted.add_metric([purpose], each.connections)
        moved.add_metric([purpose, "from_clients"], each.from_clients)
        moved.add_metric([purpose, "to_clients"], each.to_clients)
    yield accepted
    yield moved


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _gauge(name: str, text: str, values: Mapping[tuple[str, ...], float], *labels: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


class GaugeCollector:
    """Takes a snapshot of the daemon for each scrape."""

    def __init__(
        self,
        *,
        queries: DeployQueries,
        slots: Slots,
        plane: Plane,
        events: EventHub,
        state: StateKeeper,
        requests: Callable[[], Requests],
        more: Callable[[], Iterable[Metric]] = tuple,
    ) -> None:
        """`more` returns the gauges of parts that deploys know nothing of."""
        self._more = more
        self._queries = queries
        self._slots = slots
        self._plane = plane
        self._events = events
        self._state = state
        self._requests = requests

    def exposition(self, metrics: Metrics) -> Exposition:
        """Return the instruments together with the gauges; to be called once."""
        WorkerUsage(metrics.registry, self._running)
        return Exposition(metrics, self._look)

    def _look(self) -> Iterator[Metric]:
        yield from self._more()
        yield from gauges(
            Snapshot(
                status=self._queries.status(),
                state=self._state.state,
                ready=self._queries.ready(),
                queued={slot: self._plane.queued(slot) for slot in SlotName},
                relayed=self._plane.relayed(),
                listeners=self._events.listeners,
                requests=self._requests(),
            )
        )

    def _running(self) -> Iterator[Running]:
        """Yield the workers in the slots. From any thread: it reads each attribute once."""
        for slot in self._slots:
            if (instance := slot.instance) is not None:
                yield Running(slot.name.value, instance.release.version, instance.pid)
