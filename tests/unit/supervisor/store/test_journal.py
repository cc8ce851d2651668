from __future__ import annotations

from pathlib import Path

from atlas_supervisor.model.deploy import BEGUN, Result
from atlas_supervisor.store.database import Database, open_database
from tests.unit.supervisor.store.support import a_deploy, a_step, moved


async def a_story(database: Database, deploy_id: str = "d1") -> None:
    """Write a deploy that waits for its switch and is switched then."""
    await database.deploys.begin(a_deploy(deploy_id, requested="asked for"), auto_switch=True)
    step = a_step()
    waiting = a_deploy(
        deploy_id, phase="awaiting_switch", result=Result.AWAITING_SWITCH, steps=[step]
    )
    await database.deploys.write_transition(
        *moved(waiting, source="health", event="passed", cause="well", step=step, duration_ms=12.5)
    )
    done = waiting.model_copy(update={"phase": "ended", "result": Result.SWITCHED})
    await database.deploys.write_transition(*moved(done, source="switch", event="passed"))


async def test_the_journal_keeps_each_transition_as_it_was_then(tmp_path: Path) -> None:
    async with open_database(tmp_path / "atlas.db") as (database, _):
        await a_story(database)
        begun, passed, switched = await database.transitions.after(0, deploy_id=None, limit=9)
        assert [begun.id, passed.id, switched.id] == [1, 2, 3]
        assert (begun.event.source, begun.event.event) == (None, BEGUN)
        assert (begun.event.cause, begun.event.target) == ("asked for", "preflight")
        assert (passed.event.result, passed.event.duration_ms) == (Result.AWAITING_SWITCH, 12.5)
        assert passed.event.step == a_step()
        assert (switched.event.result, switched.event.step) == (Result.SWITCHED, None)


async def test_the_journal_is_read_from_an_id_on_for_all_or_for_one(tmp_path: Path) -> None:
    async with open_database(tmp_path / "atlas.db") as (database, _):
        assert await database.transitions.newest() == 0
        await a_story(database)
        await a_story(database, "d2")
        assert await database.transitions.newest() == 6
        after = await database.transitions.after(2, deploy_id=None, limit=2)
        assert [each.id for each in after] == [3, 4]
        after = await database.transitions.after(0, deploy_id="d2", limit=9)
        assert [each.id for each in after] == [4, 5, 6]
        assert await database.transitions.knows(6)
        assert not await database.transitions.knows(7)


async def test_the_transitions_of_a_deploy_are_listed(tmp_path: Path) -> None:
    async with open_database(tmp_path / "atlas.db") as (database, _):
        await a_story(database)
        story = await database.transitions.of_deploy("d1")
        assert [(each.source, each.event, each.target) for each in story] == [
            (None, BEGUN, "preflight"),
            ("health", "passed", "awaiting_switch"),
            ("switch", "passed", "ended"),
        ]
        assert await database.transitions.last("d1") == ("switch", "passed")
        assert await database.transitions.of_deploy("none") == []


async def test_ids_go_on_over_a_restart(tmp_path: Path) -> None:
    for expected in (3, 6):
        async with open_database(tmp_path / "atlas.db") as (database, _):
            await a_story(database, f"d{expected}")
            assert await database.transitions.newest() == expected
