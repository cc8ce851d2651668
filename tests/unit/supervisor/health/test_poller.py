"""One look at a time, for ever, whatever a look does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from atlas_supervisor.health.poller import Poller
from tests.harness import eventually


@asynccontextmanager
async def running(
    look: Callable[[], Awaitable[int]], interval: float = 60
) -> AsyncIterator[Poller[int]]:
    looker = Poller(look, interval=interval)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(looker.run)
        yield looker
        tasks.cancel_scope.cancel()


def counting() -> Callable[[], Awaitable[int]]:
    looks = iter(range(1, 1000))

    async def look() -> int:
        return next(looks)

    return look


async def test_it_looks_again_after_the_interval() -> None:
    async with running(counting(), interval=0.01) as looker:
        assert looker.last is None
        with anyio.fail_after(5):
            while looker.last != 3:
                await looker.next()


async def test_asked_again_it_does_not_wait_for_the_interval() -> None:
    async with running(counting()) as looker:
        with anyio.fail_after(5):
            await looker.next()
            looker.again()
            await looker.next()
    assert looker.last == 2


async def test_a_look_under_way_is_given_up_for_the_next_one() -> None:
    begun = anyio.Event()

    async def look() -> int:
        if not begun.is_set():
            begun.set()
            await anyio.sleep_forever()
        return 7

    async with running(look) as looker:
        await begun.wait()
        assert looker.last is None
        looker.again()
        with anyio.fail_after(5):
            await looker.next()
    assert looker.last == 7


async def test_it_tells_for_how_long_a_look_goes_on() -> None:
    begun = anyio.Event()

    async def look() -> int:
        begun.set()
        await anyio.sleep_forever()
        return 0

    async with running(look) as looker:
        assert looker.waiting_seconds == 0
        await begun.wait()
        await eventually(lambda: looker.waiting_seconds > 0.02)
