"""The switch on real sockets, slots and files: done as a whole, or as if it had not been tried."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest

from atlas_supervisor.deploy import switch as switching
from atlas_supervisor.deploy.machine import Event
from atlas_supervisor.deploy.switch import Landing, LandingCheck
from atlas_supervisor.model.slot import SlotName, SlotState
from atlas_supervisor.store.state_keeper import sync_folder
from tests.harness import eventually
from tests.unit.supervisor.deploy.support import kill, ready
from tests.unit.supervisor.workers.support import SLEEP, release

BLUE, GREEN = SlotName.BLUE, SlotName.GREEN


async def test_a_switch_changes_everything_and_keeps_the_old_one_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        before = it.state.state.last_switch_ts
        assert (await it.switch.flip()).has_passed
        assert it.has(GREEN)
        assert (it.bench.green.state, it.bench.blue.state) == (SlotState.RUNNING, SlotState.WARM)
        assert it.state.state.last_switch_ts != before
        assert (await it.switch.flip()).has_passed
        assert it.has(BLUE)


async def test_a_file_that_can_not_be_written_leaves_everything_and_a_retry_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        in_the_way = tmp_path / ".deploy_state.json.new"
        in_the_way.mkdir()
        outcome = await it.switch.flip()
        assert outcome.event is Event.FAILED
        assert "the state file could not be written" in outcome.message
        assert it.has(BLUE)
        assert it.bench.blue.state is SlotState.RUNNING
        in_the_way.rmdir()
        assert (await it.switch.flip()).has_passed
        assert it.has(GREEN)


async def test_a_rename_that_can_not_be_made_durable_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        failures = iter([True])

        def fails_once(folder: Path) -> None:
            if next(failures, False):
                raise OSError(5, "Input/output error")
            sync_folder(folder)

        monkeypatch.setattr("atlas_supervisor.store.state_keeper.sync_folder", fails_once)
        assert not (await it.switch.flip()).has_passed
        assert it.has(BLUE)


async def test_a_kernel_that_refuses_leaves_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:

        def refuses(_slot: SlotName) -> None:
            raise OSError(1, "Operation not permitted")

        with monkeypatch.context() as during:
            during.setattr(it.bench.plane, "steer", refuses)
            outcome = await it.switch.flip()
        assert "the kernel refused the flip" in outcome.message
        assert it.has(BLUE)


async def test_traffic_that_the_kernel_does_not_give_back_at_once_is_given_back_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        steer, refusals = it.bench.plane.steer, iter([False, True, True, False])
        given_back = anyio.Event()

        def refuses_at_times(slot: SlotName) -> None:
            if next(refusals):
                raise OSError(12, "Cannot allocate memory")
            steer(slot)
            if slot is BLUE:
                given_back.set()

        async def wrong(*_: Any) -> LandingCheck:
            return LandingCheck(Landing.WRONG, "pid 1 accepted it")

        monkeypatch.setattr(switching, "check_landing", wrong)
        monkeypatch.setattr(switching, "_STEER_AGAIN_SECONDS", 0.01)
        monkeypatch.setattr(it.bench.plane, "steer", refuses_at_times)
        assert not (await it.switch.flip()).has_passed
        assert it.bench.plane.active is GREEN
        await given_back.wait()
        assert it.has(BLUE)


async def test_a_connection_that_arrives_at_a_foreign_listener_undoes_the_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:

        async def wrong(*_: Any) -> LandingCheck:
            return LandingCheck(Landing.WRONG, "pid 1 accepted it")

        monkeypatch.setattr(switching, "check_landing", wrong)
        outcome = await it.switch.flip()
        assert "wrong process: pid 1" in outcome.message
        assert it.has(BLUE)


async def test_a_bug_in_the_middle_leaves_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:

        async def breaks(*_: Any) -> LandingCheck:
            raise ZeroDivisionError

        monkeypatch.setattr(switching, "check_landing", breaks)
        with pytest.raises(ZeroDivisionError):
            await it.switch.flip()
        assert it.has(BLUE)


@pytest.mark.parametrize("moment", ["before", "landing", "write"])
async def test_an_instance_that_dies_in_the_middle_gets_no_traffic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        before, change = it.state.state.last_switch_ts, it.state.change

        async def dies_at_landing(*_: Any) -> LandingCheck:
            await kill(it.bench.green)
            return LandingCheck(Landing.UNSEEN, "not accepted")

        async def dies_at_write(**changes: Any) -> None:
            await change(**changes)
            if it.bench.green.alive:
                await kill(it.bench.green)

        if moment == "before":
            await kill(it.bench.green)
        elif moment == "landing":
            monkeypatch.setattr(switching, "check_landing", dies_at_landing)
        else:
            monkeypatch.setattr(it.state, "change", dies_at_write)
        outcome = await it.switch.flip()
        assert outcome.event is Event.STAGING_DIED
        assert it.has(BLUE)
        assert it.state.state.last_switch_ts == before


async def test_a_switch_to_a_dead_worker_that_can_not_be_undone_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        change = it.state.change

        async def dies_and_fills_the_disk(**changes: Any) -> None:
            await change(**changes)
            (tmp_path / ".deploy_state.json.new").mkdir()
            await kill(it.bench.green)

        monkeypatch.setattr(it.state, "change", dies_and_fills_the_disk)
        assert (await it.switch.flip()).has_passed
        assert it.has(GREEN)


async def test_a_worker_that_hangs_or_only_starts_gets_no_traffic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        instance = it.bench.green.instance
        assert instance is not None
        instance.expected_to_exit = True
        assert (await it.switch.flip()).event is Event.STAGING_DIED
        await it.bench.green.stop()
        starting = asyncio.create_task(it.bench.green.start(release(tmp_path / "slow", SLEEP)))
        await eventually(lambda: it.bench.green.alive)
        assert it.bench.green.state is SlotState.STARTING
        assert (await it.switch.flip()).event is Event.STAGING_DIED
        assert it.has(BLUE)
        starting.cancel()
        await asyncio.wait([starting])


async def test_after_a_switch_away_from_a_dead_worker_its_slot_is_not_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        await kill(it.bench.blue)
        assert (await it.switch.flip()).has_passed
        assert it.has(GREEN)
        assert it.bench.blue.state is not SlotState.WARM


async def test_a_switch_that_is_cancelled_is_finished_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(tmp_path, monkeypatch) as it:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await it.switch.flip()
        assert it.has(GREEN)
