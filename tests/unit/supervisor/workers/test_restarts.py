from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest

from atlas_supervisor.model.slot import SlotState
from atlas_supervisor.workers.restarts import Restarter, RestartPolicy
from tests.harness import eventually
from tests.unit.supervisor.workers.support import READY_AND_SLEEP, SLEEP, bench, release

QUICK = RestartPolicy(delays_seconds=(0.0, 0.05, 0.1))
NEVER_ENDS = RestartPolicy(delays_seconds=(3600.0,))
DIES = "raise SystemExit(1)"
DIES_TWICE = """
import pathlib, sys
count = pathlib.Path("count")
lives = len(count.read_text()) if count.exists() else 0
count.write_text("x" * (lives + 1))
if lives < 2:
    sys.exit(1)
"""


async def test_a_worker_that_starts_is_started_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await Restarter(made.blue, wanted=lambda: True).start(
            release(tmp_path / "r", READY_AND_SLEEP)
        )
        assert made.blue.serving
        assert made.blue.restarts == 0


async def test_a_worker_that_crashes_at_first_is_restarted_until_it_runs(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        restarter = Restarter(made.blue, wanted=lambda: True, policy=QUICK)
        await restarter.start(release(tmp_path / "r", DIES_TWICE + READY_AND_SLEEP))
        assert made.blue.serving
        assert made.blue.restarts == 2


async def test_a_worker_that_keeps_crashing_is_never_given_up(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        restarter = Restarter(made.blue, wanted=lambda: True, policy=QUICK)
        restarting = asyncio.create_task(restarter.start(release(tmp_path / "r", DIES)))
        await eventually(lambda: made.blue.restarts > len(QUICK.delays_seconds))
        assert made.blue.state in {SlotState.BACKOFF, SlotState.STARTING}
        release(tmp_path / "r", READY_AND_SLEEP)  # what was missing is there again
        await asyncio.wait_for(restarting, 10)
        assert made.blue.serving


async def test_a_restart_is_delayed_and_the_slot_is_in_backoff(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        restarter = Restarter(made.blue, wanted=lambda: True, policy=NEVER_ENDS)
        restarting = asyncio.create_task(
            restarter.restart(release(tmp_path / "r", READY_AND_SLEEP), lived_seconds=1)
        )
        await eventually(lambda: made.blue.state is SlotState.BACKOFF)
        assert made.registry.entries == []
        restarting.cancel()


async def test_a_worker_that_lived_long_is_restarted_at_once(tmp_path: Path) -> None:
    policy = RestartPolicy(delays_seconds=(0.0, 3600.0), stable_seconds=30)
    async with bench(tmp_path) as made:
        restarter = Restarter(made.blue, wanted=lambda: True, policy=policy)
        good = release(tmp_path / "r", READY_AND_SLEEP)
        for _ in range(3):
            with anyio.fail_after(10):
                await restarter.restart(good, lived_seconds=30)
            await made.blue.stop()
        assert made.blue.restarts == 3


async def test_a_worker_that_is_no_longer_wanted_is_not_started(tmp_path: Path) -> None:
    wanted = True
    policy = RestartPolicy(delays_seconds=(0.2,))
    async with bench(tmp_path) as made:
        restarter = Restarter(made.blue, wanted=lambda: wanted, policy=policy)
        restarting = asyncio.create_task(
            restarter.restart(release(tmp_path / "r", READY_AND_SLEEP), lived_seconds=0)
        )
        await eventually(lambda: made.blue.state is SlotState.BACKOFF)
        wanted = False
        await asyncio.wait_for(restarting, 5)
        assert made.blue.state is SlotState.EMPTY
        assert made.registry.entries == []


async def test_a_restart_leaves_a_slot_alone_that_a_deploy_has_begun_to_use(tmp_path: Path) -> None:
    policy = RestartPolicy(delays_seconds=(0.5,))
    async with bench(tmp_path) as made:
        good = release(tmp_path / "r", READY_AND_SLEEP)
        restarter = Restarter(made.blue, wanted=lambda: True, policy=policy)
        restarting = asyncio.create_task(restarter.restart(good, lived_seconds=0))
        await eventually(lambda: made.blue.state is SlotState.BACKOFF)
        await made.blue.start(good)
        instance = made.blue.instance
        await asyncio.wait_for(restarting, 5)
        assert made.blue.instance is instance
        assert made.blue.state is SlotState.RUNNING
        assert [what for what, _ in made.registry.entries] == ["launched"]


async def test_a_launch_that_fails_is_retried_like_a_crash(tmp_path: Path) -> None:
    extra = tmp_path / "worker.env"
    extra.write_bytes(b"\xff")
    async with bench(tmp_path, worker_env_file=extra) as made:
        restarter = Restarter(made.blue, wanted=lambda: True, policy=QUICK)
        restarting = asyncio.create_task(restarter.start(release(tmp_path / "r", READY_AND_SLEEP)))
        await eventually(lambda: made.blue.restarts >= 2)
        extra.write_bytes(b"")
        await asyncio.wait_for(restarting, 10)
        assert made.blue.serving


async def test_a_cancelled_restart_leaves_the_slot_empty(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        restarter = Restarter(made.blue, wanted=lambda: True, policy=NEVER_ENDS)
        restarting = asyncio.create_task(
            restarter.restart(release(tmp_path / "r", READY_AND_SLEEP), lived_seconds=1)
        )
        await eventually(lambda: made.blue.state is SlotState.BACKOFF)
        await asyncio.wait_for(restarter.cancel(), 5)
        await asyncio.wait_for(restarting, 5)
        assert made.blue.state is SlotState.EMPTY
        await restarter.cancel()  # nothing is in progress


async def test_a_restart_cancelled_during_a_launch_leaves_no_process(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        restarter = Restarter(made.blue, wanted=lambda: True)
        starting = asyncio.create_task(restarter.start(release(tmp_path / "r", SLEEP)))
        await eventually(lambda: made.registry.entries != [])
        await asyncio.wait_for(restarter.cancel(), 10)
        await asyncio.wait_for(starting, 5)
        assert made.blue.instance is None
        assert [what for what, _ in made.registry.entries] == ["launched", "gone"]


async def test_a_worker_that_is_ready_too_late_is_ended_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        restarter = Restarter(made.blue, wanted=lambda: False)
        await restarter.start(release(tmp_path / "r", READY_AND_SLEEP))
        assert made.blue.instance is None
        assert made.blue.state is SlotState.EMPTY


POLICY = RestartPolicy(delays_seconds=(0.0, 1.0, 5.0), stable_seconds=10.0)


def test_each_short_life_in_a_row_has_a_longer_delay_up_to_the_last() -> None:
    crashes, delays = 0, []
    for _ in range(5):
        crashes = POLICY.short_lives_after(crashes, 0.1)
        delays.append(POLICY.delay_seconds(crashes))
    assert delays == [0.0, 1.0, 5.0, 5.0, 5.0]


@pytest.mark.parametrize("short_lives", [1, 3, 100])
def test_a_long_life_begins_a_new_row(short_lives: int) -> None:
    after = POLICY.short_lives_after(short_lives, 10.0)
    assert after == 1
    assert POLICY.delay_seconds(after) == 0.0


def test_the_first_start_has_no_delay() -> None:
    assert POLICY.delay_seconds(0) == 0.0


def test_the_default_delays_begin_at_zero_and_grow_to_a_minute() -> None:
    policy = RestartPolicy()
    assert policy.delays_seconds[0] == 0.0
    assert list(policy.delays_seconds) == sorted(policy.delays_seconds)
    assert policy.delay_seconds(1000) == 60.0
