"""Two who ask for the same, or for two things at once: what each of them waits for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from atlas_supervisor.deploy import errors
from atlas_supervisor.deploy.machine import Event, Phase, Plan
from atlas_supervisor.deploy.service import DeployService
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.store.database import open_database
from tests.unit.supervisor.deploy.fakes import FAIL, World, driven, to_the_end, until_phase

ABORT, SWITCH = Event.ABORT_REQUESTED, Event.SWITCH_REQUESTED


async def test_what_is_being_given_up_is_given_up_for_whoever_else_asks() -> None:
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


async def test_what_failed_can_not_be_given_up_while_it_is_tidied_up() -> None:
    world = World()
    world.held["unstage"] = anyio.Event()
    async with driven(world, Plan(dry_run=True)) as run:
        await until_phase(run, Phase.UNSTAGE)
        assert not run.offer(ABORT, "of a dry run that has passed")
        world.held["unstage"].set()
    assert run.record.result == "dry_run_passed"


async def test_a_switch_that_two_ask_for_is_one() -> None:
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


async def test_of_two_different_wishes_the_first_one_counts_and_the_other_one_is_told() -> None:
    for first, second, result in ((ABORT, SWITCH, "aborted"), (SWITCH, ABORT, "switched")):
        async with driven(World(), Plan(auto_switch=False)) as run:
            await run.settled.wait()
            assert run.offer(first, "by one")
            assert not run.offer(second, "by another")
            refused = str(errors.nothing_to("abort", run))
            assert f"the deploy is in awaiting_switch, and {first} came first" in refused
            await to_the_end(run)
        assert run.record.result == result


async def test_who_asks_while_the_last_probe_passes_is_told_how_it_came_out() -> None:
    world = World()
    async with driven(world) as run:
        taken: list[bool] = []

        def both_ask() -> None:
            taken.extend(run.offer(ABORT, by) for by in ("by one", "by another"))

        world.when_ending["health"] = both_ask
        await run.settled.wait()
        assert taken == [True, True]
        assert run.record.result == "switched"


async def test_a_deploy_that_has_switched_has_though_it_could_not_go_back(tmp_path: Path) -> None:
    world = World()
    world.held["warm"] = anyio.Event()
    world.outcomes["revert"] = [FAIL]
    unused: Any = None  # the service asks the deploy at hand alone
    async with open_database(tmp_path / "atlas.db") as (database, _), driven(world) as run:
        service = DeployService(
            settings=unused,
            switch=unused,
            plane=unused,
            activities=unused,
            releases=unused,
            database=database,
            events=unused,
            state=unused,
            canaries=unused,
            health_score=unused,
            tasks=unused,
        )
        service._runs[run.record.deploy_id] = run
        world.when_ending["switch"] = lambda: run.offer(Event.STAGING_DIED, "ended by SIGKILL")
        deployed = await service.settled(run.record.deploy_id)
        assert deployed.result == "switched"
        assert "revert" in {each.source for each in world.journaled}
        with pytest.raises(RefusedError, match="the switch failed"):
            await service._answer(run)  # the answer to the request for a rollback
        world.held["warm"].set()
