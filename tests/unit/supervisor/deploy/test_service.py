"""Two requests for the same, or for two things at once: the answer of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from atlas_supervisor.deploy import errors
from atlas_supervisor.deploy.machine import Event, Phase, Plan
from atlas_supervisor.deploy.recorder import Runs
from atlas_supervisor.deploy.service import DeployService, launchable
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.store.database import open_database
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.workers.releases import Releases
from tests.unit.supervisor.deploy.fakes import FAIL, World, driven, to_the_end, until_phase
from tests.unit.supervisor.store.support import a_deploy

ABORT, SWITCH = Event.ABORT_REQUESTED, Event.SWITCH_REQUESTED


async def test_an_abort_that_is_being_done_answers_every_caller_that_asks_for_it() -> None:
    world = World()
    world.held = {"health": anyio.Event(), "unstage": anyio.Event()}
    async with driven(world) as run:
        await until_phase(run, Phase.HEALTH)
        assert run.offer(ABORT, "by one")
        assert run.accepts(ABORT)
        assert run.offer(ABORT, "by another")
        await until_phase(run, Phase.UNSTAGE)
        assert run.offer(ABORT, "by a third")
        assert not run.settled.is_set()
        world.held["unstage"].set()
        await run.settled.wait()
        assert run.record.result == "aborted"
        assert not run.offer(ABORT, "too late")
    assert run.record.reason == "health: by one"
    assert world.done == ["preflight", "launch", "smoke", "unstage"]


async def test_a_deploy_with_a_result_can_not_be_aborted_while_it_is_cleaned_up() -> None:
    world = World()
    world.held["unstage"] = anyio.Event()
    async with driven(world, Plan(dry_run=True)) as run:
        await until_phase(run, Phase.UNSTAGE)
        assert not run.offer(ABORT, "of a dry run that has passed")
        world.held["unstage"].set()
    assert run.record.result == "dry_run_passed"


async def test_two_requests_for_a_switch_are_one_switch() -> None:
    world = World()
    world.held["switch"] = anyio.Event()
    async with driven(world, Plan(auto_switch=False)) as run:
        await run.settled.wait()
        assert run.offer(SWITCH, "by one")
        assert run.offer(SWITCH, "by another")
        await until_phase(run, Phase.SWITCH)
        assert run.offer(SWITCH, "by a third")
        assert not run.settled.is_set()
        world.held["switch"].set()
        await run.settled.wait()
        assert run.record.result == "switched"
    assert world.done.count("switch") == 1


async def test_of_an_abort_and_a_switch_the_first_one_counts_and_the_other_is_refused() -> None:
    for first, second, result in ((ABORT, SWITCH, "aborted"), (SWITCH, ABORT, "switched")):
        async with driven(World(), Plan(auto_switch=False)) as run:
            await run.settled.wait()
            assert run.offer(first, "by one")
            assert not run.offer(second, "by another")
            refused = str(errors.nothing_to("abort", run))
            assert f"the deploy is in awaiting_switch, and {first} came first" in refused
            await to_the_end(run)
        assert run.record.result == result


async def test_an_abort_that_is_accepted_as_the_last_probe_passes_is_done() -> None:
    world = World()
    async with driven(world) as run:
        taken: list[bool] = []

        def both_ask() -> None:
            taken.extend(run.offer(ABORT, by) for by in ("by one", "by another"))

        world.when_ending["health"] = both_ask
        await run.settled.wait()
        assert taken == [True, True]
        assert run.record.result == "aborted"
    assert "switch" not in world.done


@pytest.mark.parametrize("phase", ["preflight", "launch", "smoke", "health", "unstage"])
async def test_a_recycle_gives_way_at_any_step_before_its_switch(phase: str) -> None:
    world, runs = World(), Runs()
    world.held[phase] = anyio.Event()
    if phase == "unstage":
        world.outcomes["health"] = [FAIL]
    async with driven(world, Plan(recycle=True)) as run:
        runs.add(run)
        await until_phase(run, Phase(phase))
        if phase == "unstage":  # it has failed already, and is about to end
            world.held[phase].set()
        await runs.make_way("for a deploy")
        assert runs.current is None
    assert run.record.result == ("failed" if phase == "unstage" else "aborted")
    assert world.mode == "bluegreen"


async def test_a_recycle_whose_switch_comes_first_is_in_the_way_no_longer() -> None:
    world, runs = World(), Runs()
    world.held = {"switch": anyio.Event(), "drain": anyio.Event()}
    async with driven(world, Plan(recycle=True)) as run:
        runs.add(run)
        await until_phase(run, Phase.SWITCH)
        world.held["switch"].set()
        await runs.make_way("for a deploy")
        assert (run.phase, runs.current) == (Phase.DRAIN, None)
        assert not run.offer(Event.ROLLBACK_REQUESTED, "to the leaking worker")
        world.held["drain"].set()
    assert (run.record.result, run.record.phase) == ("switched", "ended")


async def test_a_deploy_that_was_requested_is_not_in_the_way_of_itself() -> None:
    runs = Runs()
    world = World()
    world.held["launch"] = anyio.Event()
    async with driven(world) as run:
        runs.add(run)
        await until_phase(run, Phase.LAUNCH)
        await runs.make_way("for a deploy")
        assert runs.current is run
        world.held["launch"].set()


async def test_a_deploy_in_progress_leaves_the_last_result_in_force() -> None:
    runs, failing, next_one, rehearsal = Runs(), World(), World(), World()
    failing.outcomes["health"] = [FAIL]
    async with driven(failing) as failed:
        runs.add(failed)
        await failed.settled.wait()
    runs.remove(failed)
    dry_run = Plan(dry_run=True)
    async with driven(rehearsal, dry_run, a_deploy("d2", dry_run=True)) as rehearsed:
        runs.add(rehearsed)
        await rehearsed.settled.wait()
        assert runs.answered == failed.record
    runs.remove(rehearsed)
    next_one.held["launch"] = anyio.Event()
    async with driven(next_one, record=a_deploy("d3")) as run:
        runs.add(run)
        await until_phase(run, Phase.LAUNCH)
        assert runs.answered == failed.record
        next_one.held["launch"].set()
        await run.settled.wait()
        assert runs.answered == run.record


async def test_a_deploy_that_has_switched_is_answered_so_though_its_revert_failed(
    tmp_path: Path,
) -> None:
    world = World()
    world.held["warm"] = anyio.Event()
    world.outcomes["revert"] = [FAIL]
    unused: Any = None  # the service asks the deploy at hand alone
    async with open_database(tmp_path / "atlas.db") as (database, _), driven(world) as run:
        runs = Runs()
        service = DeployService(
            settings=unused,
            slots=unused,
            executor=unused,
            recorder=unused,
            releases=unused,
            database=database,
            events=unused,
            state=unused,
            runs=runs,
            queries=unused,
            tasks=unused,
        )
        runs.add(run)
        world.when_ending["switch"] = lambda: run.offer(Event.STAGING_DIED, "ended by SIGKILL")
        deployed = await service.settled(run.record.deploy_id)
        assert deployed.result == "switched"
        assert "revert" in {each.source for each in world.journaled}
        with pytest.raises(RefusedError, match="the switch failed"):
            await service._done(
                run, Event.ROLLBACK_REQUESTED
            )  # the answer to the request for a rollback
        world.held["warm"].set()


async def test_a_rollback_is_refused_while_the_last_switch_is_not_written(tmp_path: Path) -> None:
    async with open_database(tmp_path / "atlas.db") as (database, _):
        for name in ("v0", "v1"):
            release = Release(name=name, path=tmp_path / name, version=name)
            await database.versions.push(SlotName.BLUE, release)

        async def broken() -> None:
            raise StoreError("disk is full")  # the switch to v2 is pending

        database.outbox.put(broken)
        releases = Releases(directory=tmp_path, releases_dir=tmp_path)
        with pytest.raises(StoreError, match="disk is full"):
            await launchable(database, releases)
