"""Rollouts over three machines on a real etcd; a checker of etcd's history proves each test."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator

import pytest

from atlas_supervisor.errors import RefusedError
from atlas_supervisor.fleet.documents import (
    PRESENT,
    ROLLOUT,
    Direction,
    HostState,
    RolloutState,
)
from atlas_supervisor.fleet.engine import Delete, Put
from atlas_supervisor.fleet.rollouts import Rollouts
from atlas_supervisor.model.deploy import Mode
from tests.etcd import MISSING as NO_ETCD
from tests.etcd import PROGRAM, Cluster
from tests.simulation.fleet.machine import MISSING, Machine
from tests.simulation.fleet.run import play
from tests.simulation.fleet.world import World, fleet, quick, quick_etcd

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=NO_ETCD)

RUNNING, HALTED, PASSED = RolloutState.RUNNING, RolloutState.HALTED, RolloutState.PASSED


@pytest.fixture(scope="module")
def etcd() -> Iterator[Cluster]:
    with quick_etcd() as etcd:
        yield etcd


@pytest.fixture
async def world(etcd: Cluster, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    draw = random.Random(1)  # noqa: S311 - how long a deploy takes
    prefix = f"/atlas/{request.node.name}/"
    with quick():
        async with fleet(etcd, draw, hosts=3, prefix=prefix) as world:
            yield world
        assert world.violations() == []


@pytest.fixture
def rollouts(world: World) -> Rollouts:
    return Rollouts(world.operator)


def machine(world: World, name: str) -> Machine:
    return next(each for each in world.machines if each.name == name)


async def until_state(world: World, state: RolloutState) -> None:
    await world.until(lambda: (found := world.turns.rollout) is not None and found.state is state)


async def until_holds(world: World, host: str) -> int:
    """Wait until a host has begun to deploy with a slot; return the slot's generation."""
    await world.until(lambda: host in world.turns.semaphore.holders)
    await world.until(lambda: machine(world, host).state().deploying)
    return world.turns.semaphore.holders[host].generation


async def until_waits(world: World, host: str, reason: str) -> None:
    await world.until(lambda: reason in machine(world, host).agent.waits_for)


async def until_versions(world: World, *versions: str) -> None:
    await world.until(lambda: tuple(each.version for each in world.machines) == versions)


def states(world: World) -> dict[str, HostState]:
    return {host: result.state for host, result in world.results().items()}


def deployed(world: World) -> list[str]:
    return [deploy.host for deploy in world.facts.deploys]


async def test_a_rollout_deploys_on_one_host_after_the_other(
    world: World, rollouts: Rollouts
) -> None:
    begun = await rollouts.begin("r1", by="uid:0", waves=(1, 1))
    await until_state(world, PASSED)

    assert (begun.order, begun.wave_ends) == (("h1", "h2", "h3"), (1, 3))
    assert deployed(world) == ["h1", "h2", "h3"]
    assert {each.version for each in world.machines} == {"r1"}
    assert world.turns.semaphore.holders == {}


async def test_the_first_failure_halts_with_its_host_and_reason_and_is_tried_again_first(
    world: World, rollouts: Rollouts
) -> None:
    world.bad.add(("h2", "r1"))
    await rollouts.begin("r1", by="uid:0")
    await until_state(world, HALTED)

    assert world.turns.rollout is not None
    halt = world.turns.rollout.halt
    assert halt is not None
    assert halt.host == "h2"
    assert halt.reason in {"smoke: home answers 500", "guard: errors rose"}
    assert states(world) == {"h1": HostState.PASSED, "h2": HostState.FAILED}

    world.bad.clear()
    await rollouts.resume()
    await until_state(world, PASSED)
    assert deployed(world) == ["h1", "h2", "h2", "h3"]


async def test_a_pause_lets_no_further_host_take_a_slot(world: World, rollouts: Rollouts) -> None:
    machine(world, "h1").gates.clear()
    await rollouts.begin("r1", by="uid:0")
    await until_holds(world, "h1")
    await rollouts.pause()
    machine(world, "h1").gates.set()
    await world.until(lambda: states(world).get("h1") is HostState.PASSED)
    await until_waits(world, "h2", "the rollout is paused")

    assert deployed(world) == ["h1"]
    await rollouts.resume()
    await until_state(world, PASSED)


async def test_an_abort_gives_up_a_deploy_that_has_not_switched(
    world: World, rollouts: Rollouts
) -> None:
    machine(world, "h1").gates.clear()
    await rollouts.begin("r1", by="uid:0")
    await until_holds(world, "h1")
    aborted = await rollouts.abort()
    await world.until(lambda: not world.turns.semaphore.holders)

    assert aborted.ended_ts is not None
    result = world.results()["h1"]
    assert (result.state, result.reason) == (HostState.FAILED, "aborted")
    assert {each.version for each in world.machines} == {"old"}


async def test_a_rollback_takes_the_release_from_the_hosts_that_have_it_the_last_one_first(
    world: World, rollouts: Rollouts
) -> None:
    world.bad.add(("h3", "r1"))
    await rollouts.begin("r1", by="uid:0")
    await until_state(world, HALTED)
    undone = world.turns.rollout
    back = await rollouts.roll_back(by="uid:0")
    await until_state(world, PASSED)

    assert undone is not None
    assert (back.direction, back.undoes) == (Direction.BACK, undone.rollout_id)
    assert back.order == ("h3", "h2", "h1")
    assert [each.version for each in world.machines] == ["old"] * 3
    with pytest.raises(RefusedError, match="it goes back already"):
        await rollouts.roll_back(by="uid:0")


async def test_a_host_that_dies_with_a_slot_keeps_it_until_an_operator_breaks_that_very_slot(
    world: World, rollouts: Rollouts
) -> None:
    machine(world, "h1").gates.clear()
    await rollouts.begin("r1", by="uid:0")
    generation = await until_holds(world, "h1")
    await world.let_die(machine(world, "h1"))
    await world.until(lambda: PRESENT + "h1" not in world.recorder.state)
    await until_waits(world, "h2", "1 of 1 slots is held by h1")

    with pytest.raises(RefusedError) as refused:
        await rollouts.break_slot("h1", generation + 1, by="uid:0")
    assert (refused.value.code, refused.value.status) == ("slot_has_changed", 409)
    assert f"a slot of generation {generation}" in refused.value.message
    world.facts.breaks.add(("h1", generation))
    await rollouts.break_slot("h1", generation, by="uid:0")
    await until_state(world, HALTED)
    assert world.results()["h1"].reason == "its slot was broken by uid:0"

    machine(world, "h1").gates.set()
    await world.bring_back(machine(world, "h1"))
    await until_waits(world, "h1", "failed, and waits for an operator: its slot was broken")
    await rollouts.resume()
    await until_state(world, PASSED)
    assert deployed(world) == ["h1", "h1", "h2", "h3"]


async def test_a_host_whose_slot_was_broken_reports_nothing_of_its_deploy(
    world: World, rollouts: Rollouts
) -> None:
    machine(world, "h1").gates.clear()
    await rollouts.begin("r1", by="uid:0")
    generation = await until_holds(world, "h1")
    world.facts.breaks.add(("h1", generation))
    await rollouts.break_slot("h1", generation, by="uid:0")
    machine(world, "h1").gates.set()
    await until_versions(world, "r1", "old", "old")
    await until_waits(world, "h1", "its slot was broken by uid:0")

    assert states(world) == {"h1": HostState.FAILED}


async def test_a_supervisor_that_restarts_goes_on_with_its_slot_and_its_deploy(
    world: World, rollouts: Rollouts
) -> None:
    machine(world, "h1").gates.clear()
    await rollouts.begin("r1", by="uid:0")
    await until_holds(world, "h1")
    await machine(world, "h1").restart()
    machine(world, "h1").gates.set()
    await until_state(world, PASSED)

    assert deployed(world) == ["h1", "h2", "h3"]


async def test_a_host_begins_nothing_with_a_slot_of_a_rollout_that_ended_while_it_was_away(
    world: World, rollouts: Rollouts
) -> None:
    first = machine(world, "h1")
    first.link.hold_after_commit = True  # it takes the slot, and learns nothing of it
    await rollouts.begin("r1", by="uid:0")
    await world.until(lambda: "h1" in world.turns.semaphore.holders)
    await world.let_die(first)
    await rollouts.abort()
    first.link.hold_after_commit = False
    await world.bring_back(first)
    await world.until(lambda: not world.turns.semaphore.holders)

    assert deployed(world) == []
    assert states(world) == {}


async def test_with_etcd_away_a_deploy_goes_on_and_its_end_is_recorded_later(
    world: World, rollouts: Rollouts
) -> None:
    machine(world, "h1").gates.clear()
    await rollouts.begin("r1", by="uid:0")
    await until_holds(world, "h1")
    machine(world, "h1").link.cut()
    machine(world, "h1").gates.set()
    await world.until(lambda: "engine" in machine(world, "h1").agent.waits_for)

    assert machine(world, "h1").version == "r1"
    assert machine(world, "h1").agent.waits_for == (
        "deployed, and waits for the fleet's engine: the connection is cut"
    )
    machine(world, "h1").link.mend()
    await until_state(world, PASSED)
    world.operator.cut()
    with pytest.raises(RefusedError) as refused:
        await rollouts.begin("r2", by="uid:0")
    assert (refused.value.code, refused.value.status) == ("fleet_unavailable", 503)
    world.operator.mend()


async def test_a_document_that_can_not_be_read_is_named_and_nothing_is_decided_by_it(
    world: World, rollouts: Rollouts
) -> None:
    third = machine(world, "h3")
    await world.let_die(third)
    await world.until(lambda: PRESENT + "h3" not in world.recorder.state)
    await rollouts.begin("r1", by="uid:0")
    await world.operator.commit((), Put(PRESENT + "h3", b"{}"))

    await until_waits(world, "h1", "waits for an operator: present/h3 can't be read: daemon_versi")
    await rollouts.pause()
    with pytest.raises(RefusedError) as refused:
        await rollouts.resume()
    assert refused.value.code == "fleet_document_unreadable"
    await world.bring_back(third)
    await world.until(lambda: world.recorder.state[PRESENT + "h3"].value != b"{}")
    await rollouts.resume()
    await until_state(world, PASSED)


async def test_a_release_that_a_host_does_not_have_halts_the_rollout(
    world: World, rollouts: Rollouts
) -> None:
    await rollouts.begin(MISSING, by="uid:0")
    await until_state(world, HALTED)

    assert world.results()["h1"].reason == (
        "its deploy could not begin: there is no release 'missing'"
    )
    assert world.turns.semaphore.holders == {}


async def test_a_host_whose_deploys_are_disabled_or_busy_takes_no_slot(
    world: World, rollouts: Rollouts
) -> None:
    first = machine(world, "h1")
    first.mode = Mode.SINGLE
    await rollouts.begin("r1", by="uid:0")
    await until_waits(world, "h1", "deploys are disabled on this host")
    await until_waits(world, "h2", "waits for its wave: host h1 of an earlier one has not passed")
    first.gates.clear()
    first.deploy_locally()
    first.mode = Mode.BLUEGREEN
    await until_waits(world, "h1", "a deploy of its own is in progress on this host")
    first.gates.set()
    await until_state(world, PASSED)


async def test_a_host_whose_own_deploy_came_first_gives_its_slot_back_and_tries_again(
    world: World, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine(world, "h1")
    idle = first.state()
    first.gates.clear()
    first.deploy_locally()
    monkeypatch.setattr(first, "state", lambda: idle)  # as of the moment before
    await rollouts.begin("r1", by="uid:0")
    await world.until(lambda: world.turns.semaphore.generation >= 3)  # taken, and given back
    monkeypatch.undo()
    first.gates.set()
    await until_state(world, PASSED)

    assert deployed(world) == ["h1", "h2", "h3"]


async def test_a_host_that_failed_before_the_rollout_is_its_first(
    world: World, rollouts: Rollouts
) -> None:
    world.bad.add(("h2", "r1"))
    await rollouts.begin("r1", by="uid:0")
    await until_state(world, HALTED)
    await rollouts.abort()
    begun = await rollouts.begin("r2", by="uid:0")
    await until_state(world, PASSED)

    assert (begun.order, begun.excused) == (("h2", "h1", "h3"), ("h2",))


async def test_a_command_that_does_not_fit_changes_nothing(
    world: World, rollouts: Rollouts
) -> None:
    refused: list[str] = []
    for command in (
        rollouts.pause(),
        rollouts.roll_back(by="uid:0"),
        rollouts.begin("r1", by="uid:0", max_unavailable=4),
        rollouts.begin("r1", by="uid:0", max_unavailable=0),
        rollouts.begin("r1", by="uid:0", waves=(1, 2)),
        rollouts.break_slot("h1", 1, by="uid:0"),
        rollouts.break_slot("h9", 1, by="uid:0"),
    ):
        with pytest.raises(RefusedError) as error:
            await command
        refused.append(error.value.code)

    assert refused == [
        *("no_rollout", "no_rollout", "invalid_max_unavailable", "invalid_max_unavailable"),
        *("invalid_waves", "slot_not_held", "unknown_host"),
    ]
    assert world.turns.rollout is None
    machine(world, "h1").gates.clear()
    await rollouts.begin("r1", by="uid:0")
    with pytest.raises(RefusedError, match=r"rollout .* of r1 is running"):
        await rollouts.begin("r2", by="uid:0")
    with pytest.raises(RefusedError, match="can't be resumed: it is running"):
        await rollouts.resume()


async def test_results_of_earlier_rollouts_are_removed(world: World, rollouts: Rollouts) -> None:
    first = await rollouts.begin("r1", by="uid:0")
    await until_state(world, PASSED)
    await rollouts.begin("r2", by="uid:0")

    await world.until(
        lambda: not any(first.rollout_id in key for key in world.recorder.state if key != ROLLOUT)
    )
    await until_state(world, PASSED)


async def test_a_forgotten_host_is_no_part_of_the_rollout_any_more(
    world: World, rollouts: Rollouts
) -> None:
    third = machine(world, "h3")
    await world.let_die(third)
    await world.until(lambda: PRESENT + "h3" not in world.recorder.state)
    await rollouts.begin("r1", by="uid:0")
    await until_waits(world, "h1", "waits for host h3: no sign of life")
    await world.operator.commit((), Delete("hosts/h3"))
    await until_state(world, PASSED)

    assert deployed(world) == ["h1", "h2"]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.timeout(180)
def test_no_seed_breaks_a_promise(seed: int) -> None:
    played = play(seed, chaos_seconds=4)

    assert not played.broken, played.text
