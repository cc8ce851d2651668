"""Two versions compared by simulated requests: what is found, how often it errs, what counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import pytest

from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.requests.collector import RequestCollector
from atlas_supervisor.requests.comparison import CHANGE_SECONDS, Comparison
from tests.unit.supervisor.canary.stats.support import seeded
from tests.unit.supervisor.requests.support import (
    NEW,
    OLD,
    AddressWorld,
    Version,
    World,
    clock_of,
    ramped,
)

GOOD = Version(0.01)
RAMP = (0.05, 0.25, 0.5)
SECONDS = 21  # on each step


def world_of(seed: int, new: Version = GOOD, old: Version = GOOD, **more: Any) -> World:
    return World(seeded(seed), new, old, **more)


@pytest.fixture
def world() -> Iterator[World]:
    """Return a world in which the old version has served for ten seconds."""
    found = world_of(1)
    with clock_of(found):
        for _ in range(10):
            found.second()
        yield found


def share(world: World, weight: float) -> Comparison:
    """Return a comparison at this share from now on."""
    comparison = world.compare()
    world.weight = weight
    comparison.set_weight(weight)
    return comparison


# How often it errs. The bench `versions` has the long form.


@pytest.mark.parametrize(
    "story",
    [
        {"heavy": 0.05},
        {"drift": lambda seconds: 1 + seconds % 60 / 10},
        {"new": Version(0.05, 20.0, 2.0), "old": Version(0.05, 20.0, 5000.0)},
        {"new": Version(0.01, 21.0)},
    ],
    ids=["heavy clients", "drift", "failures of other latency", "5 % slower"],
)
def test_a_version_that_is_no_worse_is_not_found(story: dict[str, Any]) -> None:
    for seed in (2, 3):
        last, _ = ramped(world_of(seed, **story), RAMP, SECONDS, every=3)
        assert last.verdict is not Verdict.FAIL
        assert last.new is not None
        assert last.new.requests > 100


def test_restarts_of_the_daemon_are_no_further_chances_to_err() -> None:
    for seed in (2, 3):
        last, _ = ramped(world_of(seed), (0.1, 0.5), 2 * SECONDS, restarts=5, every=2)
        assert last.verdict is not Verdict.FAIL


def test_each_request_as_evidence_would_revert_good_versions() -> None:
    world = world_of(5, heavy=0.05)
    world.every_request = True

    last, _ = ramped(world, RAMP, SECONDS, every=2)

    assert last.verdict is Verdict.FAIL


# What it finds.


def test_5_percent_of_errors_beside_half_a_percent_are_found_with_few_failed_requests() -> None:
    worlds = [world_of(seed, Version(0.05), Version(0.005)) for seed in range(3)]
    for world in worlds:
        last, _ = ramped(world, (0.05, 0.25), 60, every=2)

        assert last.verdict is Verdict.FAIL
        assert last.against is not None
        assert last.against >= 100
        assert "of the new version failed" in last.why
        assert "odds against chance are over 100 to 1" in last.why
        assert last.new is not None
        assert last.new.failed == world.failed
    assert sorted(world.failed for world in worlds)[1] < 15


def test_a_slower_version_is_found() -> None:
    last, _ = ramped(world_of(1, Version(0.01, 40.0)), RAMP, SECONDS, every=2)

    assert last.verdict is Verdict.FAIL
    assert last.why.startswith("the new version is slower: ")


def test_a_version_that_hangs_is_found_before_any_answer(world: World) -> None:
    world.new = Version(0.0, 1e6)
    comparison = share(world, 0.25)

    *_, last = world.looks(comparison, 12)

    assert last.verdict is Verdict.FAIL
    assert last.new is not None
    assert last.new.requests == 0
    assert "requests without an answer; the old one: 1" in last.why


def test_a_version_as_good_as_the_old_one_is_found_to_be_no_worse(world: World) -> None:
    comparison = share(world, 0.5)

    *_, last = world.looks(comparison, 60)

    assert last.verdict is Verdict.PASS
    assert "a rate higher by 2 percentage points or more is ruled out at odds" in last.why


def test_streams_are_no_failures(world: World) -> None:
    world.new = world.old = Version(0.0, 90_000.0)
    comparison = share(world, 0.5)

    *_, last = world.looks(comparison, 90, every=5)

    assert "0.0 % of" in last.why
    assert last.verdict is not Verdict.FAIL


# What counts.


def test_connections_that_may_be_of_another_share_do_not_count(world: World) -> None:
    comparison = share(world, 0.5)
    for _ in world.looks(comparison, 10):
        pass
    counted = comparison.look()
    world.weight = 1.0  # wrong for what the comparison knows
    comparison.set_weight(0.4)
    for _ in world.looks(comparison, CHANGE_SECONDS - 1):
        pass

    assert comparison.look().why == counted.why
    world.weight = 0.4
    for _ in world.looks(comparison, CHANGE_SECONDS):
        comparison.set_weight(0.4)  # no change
    assert comparison.look().why != counted.why


def test_nothing_is_counted_twice_or_under_a_new_number_after_a_restart(world: World) -> None:
    world.new = Version(0.02)
    comparison = share(world, 0.3)
    *_, before = world.looks(comparison, 30)
    saved = comparison.saved()
    assert len(json.dumps(saved)) < 8_000
    assert comparison.look() == before  # saving has changed nothing
    same = world.compare(saved)
    assert same.saved()["evidence"] == saved["evidence"]
    assert same.look().new == before.new

    later = world.restart(comparison, away=10)
    *_, after = world.looks(later, 1)

    assert after.why == before.why
    assert before.new is not None
    assert after.new is not None
    assert after.new.requests > before.new.requests  # figures are of all requests
    *_, end = world.looks(later, 30)
    assert end.why != before.why


def test_evidence_goes_on_with_the_next_instance_of_the_old_version(world: World) -> None:
    world.new = Version(0.03)
    comparison = share(world, 0.3)
    *_, before = world.looks(comparison, 20)

    other = Comparison(cast("RequestCollector", world), new=NEW, old="x", saved=comparison.saved())

    after = other.look()
    assert (after.against, after.new) == (before.against, before.new)
    assert after.why.partition(";")[0] == before.why.partition(";")[0]


def test_seconds_in_which_one_version_does_not_count_are_left_out(world: World) -> None:
    comparison = share(world, 0.3)
    *_, before = world.looks(comparison, 10)
    world.living = {NEW}  # the old one has died, and the new one has all connections
    world.weight, world.new = 1.0, Version(1.0)

    *_, after = world.looks(comparison, 20)

    assert after.against == before.against
    assert after.verdict is Verdict.INCONCLUSIVE


def test_no_verdict_against_a_version_that_gets_more_than_its_share(world: World) -> None:
    world.new, world.leak = Version(0.2), 0.5
    comparison = share(world, 0.05)

    *_, last = world.looks(comparison, 15)

    assert last.against is not None
    assert last.against > 100
    assert last.verdict is Verdict.INCONCLUSIVE
    assert "of the connections where 5.0 % were to be drawn" in last.why


def test_a_version_without_first_requests_is_named(world: World) -> None:
    comparison = share(world, 0.3)
    world.uncounted = OLD

    *_, last = world.looks(comparison, 5)

    assert last.verdict is Verdict.INCONCLUSIVE
    assert "the old version does not count the first requests of connections" in last.why


def test_without_traffic_there_is_no_verdict(world: World) -> None:
    world.rate = 0.0
    quiet = share(world, 0.3)

    *_, last = world.looks(quiet, 5)

    assert (last.verdict, last.against) == (Verdict.INCONCLUSIVE, None)


# Where addresses are drawn.


@pytest.mark.parametrize(
    "story",
    [{"heavy": 0.5}, {"addresses": 200, "pause": 2.0, "persistent": True}],
    ids=["one address has half of all requests", "the same addresses fail always"],
)
def test_by_address_a_version_that_is_no_worse_is_not_found(story: dict[str, Any]) -> None:
    for seed in (2, 3):
        world = AddressWorld(seeded(seed), Version(0.05), Version(0.05), **story)
        last, _ = ramped(world, RAMP, SECONDS, restarts=seed - 2, every=3)
        assert last.verdict is not Verdict.FAIL
        assert "addresses of the new version failed" in last.why


def test_by_address_a_version_that_fails_is_found_although_one_address_has_half_of_all() -> None:
    world = AddressWorld(seeded(4), Version(0.3), Version(0.005), heavy=0.5)

    last, _ = ramped(world, RAMP, SECONDS, every=2)

    assert last.verdict is Verdict.FAIL
    assert "addresses of the new version failed" in last.why


def test_by_address_a_good_version_is_found_to_be_no_worse() -> None:
    world = AddressWorld(seeded(1), Version(0.0), Version(0.0), addresses=4000)

    last, _ = ramped(world, (0.25, 0.5), SECONDS, every=5)

    assert last.verdict is Verdict.PASS


def test_addresses_count_anew_after_a_restart_with_their_own_part_of_alpha() -> None:
    world = AddressWorld(seeded(1), GOOD, GOOD, addresses=50, pause=1.0)
    with clock_of(world):
        comparison = share(world, 0.5)
        for _ in world.looks(comparison, 10):
            pass
        saved = comparison.saved()
        assert (saved["evidence"]["later"], len(saved["evidence"]["totals"])) == (None, 1)
        comparison = world.restart(comparison)
        for _ in world.looks(comparison, 10):
            pass

    number, _evidence = comparison.saved()["evidence"]["later"]
    assert number == 2
    (row,) = comparison.saved()["evidence"]["totals"]
    assert row[1] + row[3] == 100


def test_versions_of_which_one_lists_no_addresses_are_not_compared() -> None:
    world = AddressWorld(seeded(1), Version(0.5), GOOD)
    world.living = {NEW}
    with clock_of(world):
        comparison = share(world, 0.5)
        *_, last = world.looks(comparison, 10)

    assert last.against is None
    assert "lists no addresses of clients" in last.why
