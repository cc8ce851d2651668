"""Idempotency keys: kept for a day, and as long as the deploy that came of one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from atlas_supervisor.model.deploy import DeployEvent, Result
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.store import deploys, keys
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.keys import KEYS_KEPT, KeyRow
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import now
from tests.unit.supervisor.store.support import WHEN, a_deploy, a_step, moved


class Clock:
    def __init__(self) -> None:
        self.time = WHEN

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (deploys, keys):
        monkeypatch.setattr(module, "now", clock)
    return clock


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(tmp_path / "atlas.db") as (database, _):
        yield database


def a_key(value: str = "k1") -> IdempotencyKey:
    return IdempotencyKey(value, f"the request under {value}")


async def begin(database: Database, deploy_id: str, key: IdempotencyKey | None = None) -> None:
    await database.deploys.begin(a_deploy(deploy_id), auto_switch=True, key=key)
    await database.deploys.write_transition(
        *moved(a_deploy(deploy_id), source="preflight", event="passed", step=a_step())
    )


async def test_a_key_comes_back_with_the_deploy_that_it_started(database: Database) -> None:
    assert await database.keys.get("k1") is None
    await begin(database, "d1", a_key("k1"))
    await database.keys.add(a_key("k2"))
    assert await database.keys.get("k1") == KeyRow("the request under k1", "d1")
    assert await database.keys.get("k2") == KeyRow("the request under k2", None)
    await database.keys.forget(a_key("k1"))
    assert await database.keys.get("k1") is None


async def test_a_used_key_starts_no_second_deploy(database: Database) -> None:
    await begin(database, "d1", a_key("k1"))
    with pytest.raises(StoreError, match="UNIQUE"):
        await begin(database, "d2", a_key("k1"))
    assert await database.deploys.find("d2") is None
    assert await database.keys.get("k1") == KeyRow("the request under k1", "d1")


async def test_the_key_of_a_mode_is_kept_for_a_day(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploys, "DEPLOYS_KEPT", 1)
    await database.keys.add(a_key("k1"))
    clock.time += KEYS_KEPT - timedelta(seconds=1)
    await database.keys.add(a_key("k2"))
    assert await database.keys.get("k1") is not None
    clock.time += timedelta(seconds=1)
    await begin(database, "d1")
    assert await database.keys.get("k1") is None
    assert await database.keys.get("k2") is not None


async def test_a_clock_that_is_set_forth_forgets_no_recent_key(
    database: Database, clock: Clock
) -> None:
    await database.keys.add(a_key("k1"))
    clock.time += timedelta(days=400)
    await database.keys.add(a_key("k2"))
    await begin(database, "d1")
    assert await database.keys.get("k1") is not None


async def test_the_key_of_a_deploy_is_kept_as_long_as_its_record_and_for_a_day_at_least(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (deploys.DEPLOYS_KEPT, timedelta(hours=24)) == (1000, KEYS_KEPT)
    monkeypatch.setattr(deploys, "DEPLOYS_KEPT", 3)
    await begin(database, "d1", a_key("k1"))
    for number in range(2, 7):
        await begin(database, f"d{number}")
    # Beyond as many as are kept, but younger than a day: what the key stands for is there yet.
    assert await database.keys.get("k1") == KeyRow("the request under k1", "d1")
    record = await database.deploys.find("d1")
    assert record is not None
    assert len(record.steps) == 1
    assert await database.deploys.find("d2") is None
    clock.time += KEYS_KEPT
    await begin(database, "d7", a_key("k7"))
    assert (await database.keys.get("k1"), await database.deploys.find("d1")) == (None, None)
    # Older than a day, but its record is there.
    clock.time += 10 * KEYS_KEPT
    await begin(database, "d8")
    assert await database.keys.get("k7") == KeyRow("the request under k7", "d7")


async def test_a_request_that_the_last_daemon_did_not_carry_out_can_be_made_again(
    database: Database,
) -> None:
    for deploy_id, result in (("d1", Result.SWITCHED), ("d2", Result.ABORTED), ("d3", None)):
        await begin(database, deploy_id, a_key(f"begun-{deploy_id}"))
        await database.keys.add(
            a_key(f"abort-{deploy_id}"), deploy_id=deploy_id, asked=Result.ABORTED
        )
        await database.deploys.write_transition(
            *moved(a_deploy(deploy_id, result=result), source="health", event="x")
        )
    await database.keys.add(a_key("mode"))
    await database.keys.forget_undone()
    left = {name for name in ("abort-d1", "abort-d2", "abort-d3") if await database.keys.get(name)}
    assert left == {"abort-d2"}
    for name in ("begun-d1", "begun-d2", "begun-d3", "mode"):
        assert await database.keys.get(name) is not None


async def test_a_step_of_a_ramp_is_done_if_it_is_in_the_journal(database: Database) -> None:
    asked = "advance_requested"
    await begin(database, "d1")
    await database.keys.add(a_key("done"), deploy_id="d1", asked=asked)
    record = a_deploy("d1", result=None)
    stepped = DeployEvent.of(record, ts=now(), source="ramp", event=asked, cause="")
    await database.deploys.write_transition(record, stepped)
    await database.keys.add(a_key("lost"), deploy_id="d1", asked=asked)

    await database.keys.forget_undone()

    assert await database.keys.get("done") is not None
    assert await database.keys.get("lost") is None
