"""A version that nothing reverts by itself once it has all the traffic."""

from __future__ import annotations

from pathlib import Path

import anyio

from atlas_supervisor.deploy.machine import Event, Phase, Plan
from atlas_supervisor.deploy.recovery import plan_of
from atlas_supervisor.model.deploy import Mode
from atlas_supervisor.model.release import VersionChange
from tests.unit.supervisor.deploy.fakes import FAIL, World, driven, until_phase
from tests.unit.supervisor.deploy.support import BLUE, left
from tests.unit.supervisor.store.support import a_deploy, moved


async def test_an_irreversible_version_keeps_the_traffic_and_a_complaint() -> None:
    world = World()
    world.outcomes["guard"] = [FAIL]
    world.held["warm"] = anyio.Event()
    async with driven(world, Plan(irreversible=True)) as run:
        await until_phase(run, Phase.WARM)
        assert run.offer(Event.ACTIVE_DIED, "it was ended by SIGKILL")  # and is restarted in place
        await run.settled.wait()
        world.held["warm"].set()
    assert (run.record.result, world.mode) == ("switched", "bluegreen")
    assert "revert" not in world.done
    assert world.audits.count(("rollback", "held")) == 2
    why = "not reverted, since release.toml says that it is irreversible"
    assert run.record.reason == f"warm: it was ended by SIGKILL; {why}"
    guard = run.record.steps[5]
    assert (guard.name, guard.ok) == ("guard", False)
    assert guard.detail["message"] == f"not good enough; {why}"
    assert world.versions[1] == VersionChange(complaint=f"not good enough; {why}")


async def test_an_operator_takes_the_traffic_away_from_an_irreversible_version() -> None:
    world = World()
    world.held["guard"] = anyio.Event()
    async with driven(world, Plan(irreversible=True)) as run:
        await until_phase(run, Phase.GUARD)
        assert run.offer(Event.ROLLBACK_REQUESTED, "by one")
        await run.settled.wait()
    assert run.record.result == "rolled_back"


async def test_a_revert_that_was_held_is_audited_though_the_daemon_was_killed_before_it(
    tmp_path: Path,
) -> None:
    async with left(tmp_path) as it:
        release = it.release("v2").model_copy(update={"irreversible": True})
        record = a_deploy(release="v2", version="v2", phase="warm", result="switched")
        await it.database.deploys.begin(record, auto_switch=True, release=release)
        await it.database.deploys.write_transition(*moved(record, source="guard", event="failed"))
        for _ in range(2):
            state, unfinished = await it.interrupted(BLUE)
            assert state.mode is Mode.BLUEGREEN
            assert unfinished is not None
            assert plan_of(unfinished).irreversible
            assert (await it.audited()).count(("rollback", "held")) == 1
