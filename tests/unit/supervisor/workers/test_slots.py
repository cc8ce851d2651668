"""Both slots together: their roles, the restarts of the active one, and when staging is free."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import anyio
import pytest

from atlas_supervisor.model.slot import Role, SlotName, SlotState
from atlas_supervisor.traffic import Split
from atlas_supervisor.workers.adoption import Inherited
from atlas_supervisor.workers.slot import Slot
from atlas_supervisor.workers.slots import Slots
from tests.harness import eventually
from tests.unit.supervisor.workers.support import (
    ANSWER,
    BLUE,
    GREEN,
    READY_AND_SLEEP,
    Bench,
    ask,
    bench,
    release,
    serving,
)

DIES = "raise SystemExit(1)"
attended = partial(bench, make_slots=Slots)


async def both_running(made: Bench, folder: Path) -> None:
    for slot in made.slots:
        await slot.start(release(folder / slot.name, READY_AND_SLEEP))


def kill(slot: Slot) -> None:
    assert slot.instance is not None
    os.kill(slot.instance.pid, signal.SIGKILL)


async def backing_off(made: Bench, folder: Path) -> asyncio.Task[None]:
    """Let the active worker fail until its restart is delayed."""
    starting = asyncio.create_task(made.slots.start_active(release(folder / "dies", DIES)))
    await eventually(lambda: made.blue.restarts >= 1 and made.blue.state is SlotState.BACKOFF)
    return starting


async def test_a_switch_exchanges_the_roles_and_keeps_the_old_worker_warm(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        assert made.slots.ports() == (made.blue.port, made.green.port)
        made.slots.exchange()
        assert made.slots.active is made.green
        assert (made.green.state, made.blue.state) == (SlotState.RUNNING, SlotState.WARM)
        assert [view.role for view in made.slots.views()] == [Role.STAGING, Role.ACTIVE]
        made.slots.exchange()
        assert (made.blue.state, made.green.state) == (SlotState.RUNNING, SlotState.WARM)


async def test_an_active_worker_that_dies_is_restarted(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        await made.slots.start_active(release(tmp_path / "r", READY_AND_SLEEP))
        before = made.blue.instance
        kill(made.blue)
        await eventually(lambda: made.blue.serving and made.blue.instance is not before)
        assert made.down == [(BLUE, "it was ended by SIGKILL")]
        assert made.blue.restarts == 1


async def test_a_release_does_not_inherit_the_crashes_of_the_one_before(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        starting = await backing_off(made, tmp_path)
        await made.green.start(release(tmp_path / "v2", READY_AND_SLEEP))
        made.slots.exchange()
        with anyio.fail_after(10):
            await made.slots.drain_staging()
            await made.slots.free_staging()
            await starting
        assert made.blue.restarts == 0
        await made.blue.start(release(tmp_path / "v3", READY_AND_SLEEP))
        made.slots.exchange()
        before = made.blue.instance
        kill(made.blue)
        await eventually(lambda: made.blue.serving and made.blue.instance is not before)
        assert made.blue.restarts == 1
        assert made.blue.short_lives == 1  # the first one: no delay


async def test_a_staging_worker_that_dies_is_not_restarted_and_its_queue_is_passed_on(
    tmp_path: Path,
) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        kill(made.green)
        await eventually(lambda: made.green.state is SlotState.EMPTY)
        assert made.green.restarts == 0
        assert made.green.instance is None


async def test_a_staging_worker_that_a_deploy_takes_care_of_is_left_to_it(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        made.handled = True
        kill(made.green)
        await made.downs.wait()
        await asyncio.sleep(0.1)  # time to stop it in
        assert made.green.state is SlotState.RUNNING
        assert made.green.is_down


async def test_an_active_worker_is_restarted_though_a_deploy_could_not_revert(
    tmp_path: Path,
) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        made.handled = True
        before = made.blue.instance
        kill(made.blue)
        await eventually(lambda: made.blue.serving and made.blue.instance is not before)


async def test_nothing_is_restarted_once_the_daemon_stops(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        made.slots.begin_stop()
        kill(made.blue)
        await eventually(lambda: not made.blue.alive)
        await made.slots.stop()
        assert made.down == []
        assert [slot.state for slot in made.slots] == [SlotState.EMPTY, SlotState.EMPTY]


async def test_a_stop_lets_a_foreign_worker_answer_what_is_in_its_queue(tmp_path: Path) -> None:
    waits = "import time\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    async with attended(tmp_path) as made:
        made.slots.vacate_staging()
        await made.blue.start(release(tmp_path / "r", ANSWER + waits + serving()))
        client = asyncio.create_task(ask(made.settings.public_port))
        await eventually(lambda: made.plane.queued(BLUE) == 1)
        stop = asyncio.create_task(made.slots.stop())
        await asyncio.sleep(0)
        late = asyncio.create_task(ask(made.settings.public_port))  # it delays nothing
        await eventually(lambda: made.plane.queued(GREEN) == 1)
        (tmp_path / "r" / "go").touch()
        assert (await client).startswith("HTTP/1.0 200")
        await stop
        assert not late.done()
        late.cancel()


async def test_a_stop_beside_a_warm_worker_steers_nothing(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        assert not made.plane.stop_accepting()
        client = asyncio.create_task(ask(made.settings.public_port))
        await eventually(lambda: made.plane.queued(BLUE) == 1)
        client.cancel()


async def test_an_active_release_that_is_gone_is_tried_again_and_says_so(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        active = release(tmp_path / "r", READY_AND_SLEEP)
        active.path.rename(tmp_path / "aside")
        made.tasks.start_soon(made.slots.start_active, active)
        await eventually(lambda: made.blue.state is SlotState.BACKOFF)
        why = f"release v1 is gone: its folder {active.path} does not exist any more"
        assert made.blue.release_gone == why
        assert made.slots.active_worker().absence.endswith(f"the last time, {why}")
        (tmp_path / "aside").rename(active.path)
        await eventually(lambda: made.blue.serving)
        assert made.blue.release_gone is None


async def test_staging_is_free_at_once_before_the_first_switch(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        with anyio.fail_after(1):
            await made.slots.free_staging()
        assert not made.slots.staging_needed.is_set()


async def test_free_staging_stops_a_worker_that_a_failed_step_left(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        with anyio.fail_after(5):
            await made.slots.free_staging()
        assert made.green.state is SlotState.EMPTY
        assert made.blue.serving


async def test_staging_is_needed_and_not_free_until_the_version_before_is_drained(
    tmp_path: Path,
) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        made.slots.exchange()
        needed = made.slots.staging_needed
        freeing = asyncio.create_task(made.slots.free_staging())
        await asyncio.wait_for(needed.wait(), 5)
        assert not freeing.done()
        await made.slots.drain_staging()
        await asyncio.wait_for(freeing, 5)
        assert made.blue.state is SlotState.EMPTY
        assert not made.slots.staging_needed.is_set()


async def test_a_drain_that_is_cancelled_frees_staging(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        made.slots.exchange()
        draining = asyncio.create_task(made.slots.drain_staging())
        await eventually(lambda: made.blue.state is SlotState.DRAINING)
        draining.cancel()
        await asyncio.wait([draining])
        with anyio.fail_after(5):
            await made.slots.free_staging()
        assert made.blue.instance is None


async def test_an_earlier_drain_that_ends_late_does_not_free_a_slot_occupied_again(
    tmp_path: Path,
) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        made.slots.exchange()
        early = asyncio.create_task(made.slots.drain_staging())
        await eventually(lambda: made.blue.state is SlotState.DRAINING)
        made.slots._free.set()  # as a worker does that lingers: the slot is free, the drain goes on
        made.slots.exchange()
        await asyncio.wait([early])
        freeing = asyncio.create_task(made.slots.free_staging())
        done, _ = await asyncio.wait([freeing], timeout=0.3)
        assert not done
        freeing.cancel()
        await asyncio.wait([freeing])


async def test_a_dead_version_is_cleared_and_not_drained(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        made.slots.exchange()
        made.handled = True  # nothing but the drain stops it
        kill(made.blue)
        await made.downs.wait()
        how = await made.slots.drain_staging()
        assert (how["rescued"], "blue was dead" in how["message"]) == (0, True)
        assert made.blue.state is SlotState.EMPTY


async def test_a_slot_that_lost_the_traffic_is_restarted_no_more(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        await made.green.start(release(tmp_path / "green", READY_AND_SLEEP))
        starting = await backing_off(made, tmp_path)
        made.slots.exchange()
        assert made.slots.active is made.green
        assert made.blue.state is not SlotState.WARM
        await asyncio.wait_for(made.slots.drain_staging(), 5)
        await asyncio.wait_for(starting, 5)
        assert made.blue.state is SlotState.EMPTY


async def test_restarts_of_staging_end_when_a_deploy_needs_it(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        starting = await backing_off(made, tmp_path)
        made.slots._active = GREEN
        with anyio.fail_after(5):
            await made.slots.free_staging()
            await starting
        assert made.blue.state is SlotState.EMPTY


async def test_a_dying_staging_worker_loses_its_share_at_once(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        made.plane.split(Split(0.5))
        kill(made.green)
        with anyio.fail_after(5):
            await made.downs.wait()
        assert made.plane.policy.weights == {"blue": 1.0, "green": 0.0}


async def test_an_active_worker_is_not_started_once_the_daemon_stops(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        made.slots.begin_stop()
        await made.slots.start_active(release(tmp_path / "late", READY_AND_SLEEP))
        assert made.blue.state is SlotState.EMPTY
        assert not made.registry.entries


async def test_a_worker_that_keeps_the_traffic_is_not_drained_before_it_is_steered_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_supervisor.workers.slots._STEER_AGAIN_SECONDS", 0.05)
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        steered = made.plane.steer
        refusals = [OSError("refused")]

        def steer(name: SlotName) -> None:
            assert made.green.state is SlotState.RUNNING
            if refusals:
                raise refusals.pop()
            steered(name)

        monkeypatch.setattr(made.plane, "steer", steer)
        assert made.green.instance is not None
        made.slots._inherited = Inherited(serving=[made.green.instance])
        made.slots._replaced = False
        made.slots._replace_inherited()
        assert not refusals
        await eventually(lambda: made.green.state is SlotState.EMPTY)


async def test_an_adopted_worker_that_dies_at_the_start_is_restarted_once(tmp_path: Path) -> None:
    async with attended(tmp_path) as made:
        await both_running(made, tmp_path)
        assert made.blue.instance is not None
        first = made.blue.instance
        made.slots._inherited = Inherited(adopted={BLUE: first})
        kill(made.blue)
        await first.exited.wait()
        await made.slots.start_active(first.release)
        await eventually(lambda: made.blue.serving and made.blue.instance is not first)
        assert made.blue.restarts == 1


async def test_a_dying_earlier_worker_passes_the_traffic_on_once_no_other_earlier_one_accepts_it(
    tmp_path: Path,
) -> None:
    async with attended(tmp_path) as made:
        await made.green.start(release(tmp_path / "v1", READY_AND_SLEEP))
        assert made.green.instance is not None
        made.slots._inherited = Inherited(serving=[made.green.instance])
        made.slots._replaced = False
        made.plane.steer(GREEN)
        kill(made.green)
        await eventually(lambda: not made.green.alive)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        assert made.plane.active is GREEN
        made.slots._unshared.set()  # `_end_unwanted` has returned
        await eventually(lambda: made.plane.active is BLUE)
