"""Deploys with their steps, in a real database: what is kept, and for how long."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.model.deploy import Result, StepName
from atlas_supervisor.store import deploys
from atlas_supervisor.store.database import open_database
from tests.unit.supervisor.store.support import WHEN, a_deploy, a_step, moved, rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "atlas.db"


async def test_a_deploy_comes_back_as_it_was_written(path: Path) -> None:
    async with open_database(path) as (database, aside):
        assert aside is None
        await database.deploys.begin(a_deploy(), auto_switch=False)
        (unfinished,) = await database.deploys.unfinished()
        assert unfinished.record == a_deploy()
        assert not unfinished.auto_switch
        steps = [a_step(), a_step(StepName.LAUNCH, output=["a", "ü\0\x1b"])]
        for count, phase in ((1, "launch"), (2, "smoke")):
            await database.deploys.write_transition(
                *moved(
                    a_deploy(phase=phase, version="v2"),
                    source="preflight",
                    event="passed",
                    cause="why",
                    step=steps[count - 1],
                )
            )
        assert await database.transitions.last("d1") == ("preflight", "passed")
        ended: dict[str, Any] = {
            "phase": "ended",
            "result": Result.FAILED,
            "reason": "it broke",
            "ended_ts": WHEN,
        }
        await database.deploys.write_transition(
            *moved(a_deploy(version="v2", **ended), source="smoke", event="failed")
        )
        assert await database.deploys.unfinished() == []
    async with open_database(path) as (database, _):
        found = await database.deploys.find("d1")
        assert found == a_deploy(version="v2", **ended, steps=steps)
        assert await database.deploys.latest(10) == [found]
        assert await database.deploys.find("d2") is None
        assert await database.transitions.last("d2") is None


async def test_the_latest_deploys_come_first(path: Path) -> None:
    async with open_database(path) as (database, _):
        for number in range(5):
            await database.deploys.begin(a_deploy(f"d{number}"), auto_switch=True)
        assert [each.deploy_id for each in await database.deploys.latest(3)] == ["d4", "d3", "d2"]


async def test_the_latest_answered_deploy_has_a_result_and_was_no_dry_run(path: Path) -> None:
    async with open_database(path) as (database, _):
        assert await database.deploys.latest_answered() is None
        for name, fields in (("d0", {}), ("d1", {"dry_run": True}), ("d2", {})):
            record = a_deploy(name, **fields)
            await database.deploys.begin(record, auto_switch=True)
            if name != "d2":
                ended = record.model_copy(update={"phase": "ended", "result": Result.FAILED})
                await database.deploys.write_transition(
                    *moved(ended, source="smoke", event="failed")
                )
        found = await database.deploys.latest_answered()
        assert found is not None
        assert found.deploy_id == "d0"


async def test_the_latest_deploy_is_the_last_one_written_after_the_clock_went_back(
    path: Path,
) -> None:
    async with open_database(path) as (database, _):
        for number in range(3):
            started = {"started_ts": WHEN - number * timedelta(days=1)}
            await database.deploys.begin(a_deploy(f"d{number}", **started), auto_switch=True)
        assert [each.deploy_id for each in await database.deploys.latest(3)] == ["d2", "d1", "d0"]
        assert (await database.deploys.last_by_release())["v2"].deploy_id == "d2"


async def test_the_oldest_deploys_are_forgotten_with_all_that_belongs_to_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploys, "DEPLOYS_KEPT", 3)
    async with open_database(path) as (database, _):
        for number in range(5):
            record = a_deploy(f"d{number}")
            await database.deploys.begin(record, auto_switch=True)
            await database.deploys.write_transition(
                *moved(record, source="launch", event="passed", step=a_step())
            )
        assert [each.deploy_id for each in await database.deploys.latest(10)] == ["d4", "d3", "d2"]
    assert rows(path, "SELECT count(DISTINCT deploy_id) FROM steps") == [(3,)]
    assert rows(path, "SELECT count(DISTINCT deploy_id) FROM transitions") == [(3,)]
