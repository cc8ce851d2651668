"""The fleet's gauges say what is known, and nothing where nothing is."""

from __future__ import annotations

from atlas_supervisor.fleet.documents import Document
from atlas_supervisor.fleet.engine import Outage
from atlas_supervisor.fleet.gauges import fleet_gauges
from atlas_supervisor.fleet.overview import Knowledge, overview
from tests.unit.supervisor.fleet.support import (
    START,
    fleet_of,
    killed,
    rollout_of,
    slots_of,
    snapshot,
)


def values(documents: dict[str, Document]) -> dict[str, float]:
    """Return the gauges that are not 0 by their name and state."""
    view = overview(Knowledge("shop", "a", snapshot({**documents})))
    samples = [
        sample for family in fleet_gauges("shop", view, connected=True) for sample in family.samples
    ]
    assert {sample.labels["fleet"] for sample in samples} == {"shop"}
    return {
        sample.name.removeprefix("atlas_fleet_") + sample.labels.get("state", ""): sample.value
        for sample in samples
        if sample.value
    }


def test_the_gauges_have_the_rollout_the_slots_the_hosts_and_the_kill() -> None:
    documents = fleet_of("a", "b", "c", away=("c",), kill_epoch=4)
    documents |= rollout_of("a", "b", "c") | slots_of(b=7) | killed(5, "vision")

    assert values(documents) == {
        "engine_connected": 1,
        "hosts": 3,
        "fresh_hosts": 2,
        "rollout_staterunning": 1,
        "slots": 1,
        "slots_held": 1,
        "kill_epoch": 5,
        "kill_behind_hosts": 3,
    }


def test_while_the_engine_is_away_the_number_of_fresh_hosts_is_absent_and_not_0() -> None:
    view = overview(Knowledge("shop", "a", snapshot({**fleet_of("a")}), Outage(START, "refused")))
    families = {
        family.name: family.samples for family in fleet_gauges("shop", view, connected=False)
    }

    assert families["atlas_fleet_engine_connected"][0].value == 0
    assert "atlas_fleet_fresh_hosts" not in families
    assert families["atlas_fleet_rollout_state"] == []


def test_without_a_young_look_at_the_hosts_only_the_engines_gauge_is_there() -> None:
    (family,) = fleet_gauges("shop", None, connected=True)
    assert (family.name, family.samples[0].value) == ("atlas_fleet_engine_connected", 1)
