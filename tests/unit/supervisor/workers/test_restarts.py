from __future__ import annotations

import asyncio
from pathlib import Path

import anyio

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


async def test_one_that_starts_is_started_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        await Restarter(made.blue, wanted=lambda: True).start(
            release(tmp_path / "r", READY_AND_SLEEP)
        )
        assert made.blue.serving
        assert made.blue.restarts == 0


async def test_one_that_dies_at_first_is_started_until_it_lives(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        keeper = Restarter(made.blue, wanted=lambda: True, policy=QUICK)
        await keeper.start(release(tmp_path / "r", DIES_TWICE + READY_AND_SLEEP))
        assert made.blue.serving
        assert made.blue.restarts == 2


async def test_one_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        keeper = Restarter(made.blue, wanted=lambda: True, policy=QUICK)
        with anyio.fail_after(20):
            await keeper.start(release(tmp_path / "r", DIES))
        assert made.blue.state is SlotState.FAILED
        assert made.blue.restarts == 3
        assert made.blue.instance is None


async def test_it_waits_between_lives_and_says_so(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        keeper = Restarter(made.blue, wanted=lambda: True, policy=NEVER_ENDS)
        reviving = asyncio.create_task(
            keeper.revive(release(tmp_path / "r", READY_AND_SLEEP), lived_seconds=1)
        )
        await eventually(lambda: made.blue.state is SlotState.BACKOFF)
        assert made.ledger.entries == []
        reviving.cancel()


async def test_one_that_lived_long_is_started_again_at_once(tmp_path: Path) -> None:
    policy = RestartPolicy(delays_seconds=(0.0, 3600.0), stable_seconds=30)
    async with bench(tmp_path) as made:
        keeper = Restarter(made.blue, wanted=lambda: True, policy=policy)
        good = release(tmp_path / "r", READY_AND_SLEEP)
        for _ in range(3):
            with anyio.fail_after(10):
                await keeper.revive(good, lived_seconds=30)
            await made.blue.stop()
        assert made.blue.restarts == 3


async def test_one_that_is_no_longer_wanted_is_not_started(tmp_path: Path) -> None:
    wanted = True
    policy = RestartPolicy(delays_seconds=(0.2,))
    async with bench(tmp_path) as made:
        keeper = Restarter(made.blue, wanted=lambda: wanted, policy=policy)
        reviving = asyncio.create_task(
            keeper.revive(release(tmp_path / "r", READY_AND_SLEEP), lived_seconds=0)
        )
        await eventually(lambda: made.blue.state is SlotState.BACKOFF)
        wanted = False
        await asyncio.wait_for(reviving, 5)
        assert made.blue.state is SlotState.EMPTY
        assert made.ledger.entries == []


async def test_a_slot_that_somebody_else_has_begun_to_use_is_left_to_them(tmp_path: Path) -> None:
    policy = RestartPolicy(delays_seconds=(0.5,))
    async with bench(tmp_path) as made:
        good = release(tmp_path / "r", READY_AND_SLEEP)
        keeper = Restarter(made.blue, wanted=lambda: True, policy=policy)
        reviving = asyncio.create_task(keeper.revive(good, lived_seconds=0))
        await eventually(lambda: made.blue.state is SlotState.BACKOFF)
        await made.blue.start(good)
        instance = made.blue.instance
        await asyncio.wait_for(reviving, 5)
        assert made.blue.instance is instance
        assert made.blue.state is SlotState.RUNNING
        assert [what for what, _ in made.ledger.entries] == ["launched"]


async def test_a_full_disk_is_tried_again_like_a_crash(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        made.blue.log.path.mkdir()  # its log can't be opened
        keeper = Restarter(made.blue, wanted=lambda: True, policy=QUICK)
        with anyio.fail_after(10):
            await keeper.start(release(tmp_path / "r", READY_AND_SLEEP))
        assert made.blue.state is SlotState.FAILED


async def test_let_go_it_tries_no_more_and_the_slot_is_free(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        keeper = Restarter(made.blue, wanted=lambda: True, policy=NEVER_ENDS)
        reviving = asyncio.create_task(
            keeper.revive(release(tmp_path / "r", READY_AND_SLEEP), lived_seconds=1)
        )
        await eventually(lambda: made.blue.state is SlotState.BACKOFF)
        await asyncio.wait_for(keeper.let_go(), 5)
        await asyncio.wait_for(reviving, 5)
        assert made.blue.state is SlotState.EMPTY
        await keeper.let_go()  # nothing is under way


async def test_let_go_while_it_starts_one_nothing_of_that_is_left(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        keeper = Restarter(made.blue, wanted=lambda: True)
        starting = asyncio.create_task(keeper.start(release(tmp_path / "r", SLEEP)))
        await eventually(lambda: made.ledger.entries != [])
        await asyncio.wait_for(keeper.let_go(), 10)
        await asyncio.wait_for(starting, 5)
        assert made.blue.instance is None
        assert [what for what, _ in made.ledger.entries] == ["launched", "gone"]


async def test_one_that_starts_too_late_to_be_wanted_is_ended_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        keeper = Restarter(made.blue, wanted=lambda: False)
        await keeper.start(release(tmp_path / "r", READY_AND_SLEEP))
        assert made.blue.instance is None
        assert made.blue.state is SlotState.EMPTY
