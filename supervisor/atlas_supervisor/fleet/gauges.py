"""The fleet's gauges: what this host knows of it, at the time of a scrape.

Each host exposes the same numbers as it knows them, so queries take the `max by (fleet)`. In a
large fleet a host looks at all others seldom, and exposes their numbers only in the minute after.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from atlas_supervisor.fleet.documents import RolloutState
from atlas_supervisor.fleet.view import FleetView


def fleet_gauges(fleet: str, view: FleetView | None, *, connected: bool) -> Iterator[Metric]:
    """Yield all gauges of a fleet; without a view of its hosts, whether its engine answers."""

    def one(name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"atlas_fleet_{name}", text, labels=["fleet"])
        family.add_metric([fleet], value)
        return family

    yield one("engine_connected", "1 while the fleet's etcd answers.", connected)
    if view is None:
        return
    yield one("hosts", "Hosts of the fleet, alive or not.", len(view.hosts))
    if connected:  # otherwise it is not known, and 0 would be an alarm
        yield one(
            "fresh_hosts",
            "Hosts that show a sign of life. Absent while etcd is away.",
            sum(host.fresh is True for host in view.hosts),
        )
    rollout = GaugeMetricFamily(
        "atlas_fleet_rollout_state",
        "1 for the state of the last rollout, 0 for the others. Absent without a rollout.",
        labels=["fleet", "state"],
    )
    if view.rollout:
        for state in RolloutState:
            rollout.add_metric([fleet, state.value], state is view.rollout.state)
    yield rollout
    yield one("slots", "Hosts that may be unavailable at a time.", view.semaphore.slots)
    yield one("slots_held", "Slots that hosts hold.", len(view.semaphore.holders))
    yield one("kill_epoch", "Epoch of the kill switch. 0 if it is unused.", view.kills.epoch)
    yield one(
        "kill_behind_hosts",
        "Hosts that have not acknowledged the present epoch of the kill switch.",
        len(view.kills.behind),
    )
