"""One check at a time, again and again, even if a check hangs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from atlas_supervisor.health.monitor import Poller
from tests.harness import eventually


@asynccontextmanager
async def running(
    check: Callable[[], Awaitable[int]], interval: float = 60
) -> AsyncIterator[Poller[int]]:
    poller = Poller(check, interval=interval)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(poller.run)
        yield poller
        tasks.cancel_scope.cancel()


def counting() -> Callable[[], Awaitable[int]]:
    results = iter(range(1, 1000))

    async def check() -> int:
        return next(results)

    return check


async def test_it_checks_again_after_the_interval() -> None:
    async with running(counting(), interval=0.01) as poller:
        assert poller.last is None
        with anyio.fail_after(5):
            while poller.last != 3:
                await poller.next()


async def test_a_restart_does_not_wait_for_the_interval() -> None:
    async with running(counting()) as poller:
        with anyio.fail_after(5):
            await poller.next()
            poller.restart()
            await poller.next()
    assert poller.last == 2


async def test_a_restart_cancels_the_check_in_progress() -> None:
    begun = anyio.Event()

    async def check() -> int:
        if not begun.is_set():
            begun.set()
            await anyio.sleep_forever()
        return 7

    async with running(check) as poller:
        await begun.wait()
        assert poller.last is None
        poller.restart()
        with anyio.fail_after(5):
            await poller.next()
    assert poller.last == 7


async def test_it_knows_how_long_a_check_has_been_running() -> None:
    begun = anyio.Event()

    async def check() -> int:
        begun.set()
        await anyio.sleep_forever()
        return 0

    async with running(check) as poller:
        assert poller.running_seconds == 0
        await begun.wait()
        await eventually(lambda: poller.running_seconds > 0.02)
