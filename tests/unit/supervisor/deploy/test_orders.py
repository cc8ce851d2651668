"""An order at every moment of a deploy: what is accepted is done, and nothing else answers 2xx.

The service and the runner are the real ones; slots, database and disk are in memory. The moments
are the turns of the event loop, so every point is tried at which an order can be handled: before,
during and after each activity, in its last turn, and while a transition is written.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import structlog

from atlas_supervisor.deploy.machine import Plan
from atlas_supervisor.deploy.recorder import Runs
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.deploy.service import DeployService
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.deploy import DeployRecord, Mode
from atlas_supervisor.model.release import Release, Version
from atlas_supervisor.model.slot import SlotName
from tests.unit.supervisor.deploy.fakes import (
    BLUE,
    FAIL,
    GREEN,
    LIMIT_SECONDS,
    RELEASE,
    World,
    to_the_end,
)
from tests.unit.supervisor.store.support import a_deploy

MANUAL = Plan(auto_switch=False)
PLANS = (Plan(), MANUAL, Plan(rollback=True))
TURNS_AFTER = 6
"""Turns that are tried besides, after a deploy has ended or waits: by then all is written."""
OPERATOR = Actor(name="uid:1", origin="unix")
BEFORE = Release(name="v1", path=Path("releases/v1"), version="1")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


class Scene:
    """A deploy in memory, with the service that steers it."""

    def __init__(self, world: World, plan: Plan, tasks: Any) -> None:
        self.world, self.runs = world, Runs()
        self.run = DeployRun(a_deploy(), plan, RELEASE, effects=world, transitions=world)
        self.audits: list[tuple[str, str]] = []
        database: Any = SimpleNamespace(
            audit=SimpleNamespace(record=self._record_audit),
            outbox=world.outbox,
            versions=SimpleNamespace(served=self._versions),
            keys=SimpleNamespace(find=_no_key),
        )
        anything: Any = SimpleNamespace
        self.service = DeployService(
            settings=anything(auto_switch_on_health=True, deploy_mode=Mode.BLUEGREEN),
            slots=self._slots(),
            executor=anything,
            recorder=anything,
            releases=anything(unchanged=lambda before: before),
            database=database,
            events=anything(close=lambda: None),
            state=anything,
            runs=self.runs,
            queries=anything,
            tasks=tasks,
        )
        self.service._executor = world  # type: ignore[assignment]  # its activities are in memory
        self.service._recorder = anything(begin=_no_write, write=world.write)
        self.service._start(self.run)

    def _slots(self) -> Any:
        world = self.world

        class Slots:
            @property
            def active(self) -> Any:
                return SimpleNamespace(port=world.active)

            @property
            def staging(self) -> Any:
                return SimpleNamespace(can_serve=world.staging in world.serving)

            def ports(self) -> tuple[int, int]:
                return world.active, world.staging

        return Slots()

    async def _record_audit(self, _actor: Actor, action: str, outcome: str, **_: Any) -> None:
        self.audits.append((action, outcome))

    async def _versions(self) -> list[Version]:
        first = Version(SlotName.BLUE, BEFORE)
        return [first] if self.world.active == BLUE else [Version(SlotName.GREEN, RELEASE), first]

    async def die(self, port: int) -> bool:
        """Let the worker on this port die; return whether the deploy deals with it."""
        self.world.serving.discard(port)
        log: Any = SimpleNamespace(last_lines=list)
        slot: Any = SimpleNamespace(port=port, log=log)
        return await self.service.worker_down(slot, "it was ended by SIGKILL")


async def _no_key(_key: object) -> None:
    return None


async def _no_write(*_: object, **_more: object) -> None:
    return None


@asynccontextmanager
async def scene(world: World, plan: Plan | None = None) -> AsyncIterator[Scene]:
    """Run a deploy in this world, and end it afterwards."""
    with anyio.fail_after(LIMIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.outbox.run)
            deploying = Scene(world, plan or Plan(), tasks)
            yield deploying
            for run in deploying.runs:
                await to_the_end(run)
            tasks.cancel_scope.cancel()


async def turns(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def moments(faults: dict[str, Any], plan: Plan) -> range:
    """Return the turns at which something can happen to a deploy in such a world."""
    count = TURNS_AFTER
    async with scene(worlds(faults), plan) as deploying:
        while not (deploying.run.ended.is_set() or deploying.run.waits):
            await turns(1)
            count += 1
    return range(count)


Order = Callable[[Scene], Coroutine[Any, Any, DeployRecord]]

ORDERS: dict[str, Order] = {
    "rollback": lambda scene: scene.service.rollback(OPERATOR),
    "abort": lambda scene: scene.service.abort(OPERATOR),
    "switch": lambda scene: scene.service.switch(OPERATOR),
}
EFFECTS: dict[str, tuple[int, set[str]]] = {
    "rollback": (BLUE, {"rolled_back", "switched"}),
    "abort": (BLUE, {"aborted"}),
    "switch": (GREEN, {"switched"}),
}


async def obeyed(scene: Scene, order: str) -> bool:
    """Give the order; return whether it was done. What is answered must be true."""
    try:
        record = await ORDERS[order](scene)
    except RefusedError:
        return False
    active, results = EFFECTS[order]
    if record.result not in results:
        return False  # the API refuses it with the record: the deploy went otherwise
    assert scene.world.active == active
    return True


def worlds(faults: dict[str, Any]) -> World:
    world = World()
    world.outcomes = {name: [outcome] for name, outcome in faults.items()}
    return world


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "faults",
    [{}, {"guard": FAIL}, {"health": FAIL}, {"switch": FAIL}, {"revert": FAIL}],
    ids=lambda faults: "".join(faults) or "none",
)
async def test_an_order_at_any_moment_is_done_or_refused(
    order: str, faults: dict[str, Any]
) -> None:
    for plan in PLANS:
        done = 0
        for moment in await moments(faults, plan):
            async with scene(worlds(faults), plan) as deploying:
                await turns(moment)
                run = deploying.run
                switched = run.record.result == "switched" and not run.in_progress
                done += await obeyed(deploying, order)
                if order == "rollback" and switched and not {"guard", "revert"} & set(faults):
                    assert deploying.world.active == BLUE, (plan, moment)
        switches = plan != MANUAL and not {"health", "switch"} & set(faults)
        if order == "abort" or (order == "rollback" and switches and "revert" not in faults):
            assert done, "it was never possible"


OTHERS: dict[str, Callable[[Scene], Coroutine[Any, Any, object]]] = {
    "the old version dies": lambda scene: scene.die(BLUE),
    "the new version dies": lambda scene: scene.die(GREEN),
    "a second rollback": lambda scene: obeyed(scene, "rollback"),
    "an abort": lambda scene: obeyed(scene, "abort"),
    "a switch": lambda scene: obeyed(scene, "switch"),
    "the daemon stops": lambda scene: scene.service.stop(),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("order", ORDERS)
async def test_an_order_is_done_or_refused_though_something_else_happens_beside_it(
    order: str, other: str
) -> None:
    faults: list[dict[str, Any]] = [{}, {"revert": FAIL}] if order == "rollback" else [{}]
    plan = MANUAL if order == "switch" else Plan()
    for fault in faults:
        for first in await moments(fault, plan):
            async with scene(worlds(fault), plan) as deploying:
                await turns(first)
                async with anyio.create_task_group() as both:
                    both.start_soon(obeyed, deploying, order)
                    await turns(first % 4)
                    both.start_soon(OTHERS[other], deploying)


@pytest.mark.parametrize("fault", [{}, {"switch": FAIL}, {"guard": FAIL}, {"revert": FAIL}])
async def test_a_death_at_any_moment_is_dealt_with_by_the_deploy_or_left_to_the_slot(
    fault: dict[str, Any],
) -> None:
    cases = [(plan, await moments(fault, plan)) for plan in PLANS]
    every = ((plan, moment) for plan, tried in cases for moment in tried)
    for (plan, moment), dies in product(every, (BLUE, GREEN)):
        async with scene(worlds(fault), plan) as deploying:
            await turns(moment)
            world, run = deploying.world, deploying.run
            before = world.active
            can_go_back = dies in world.serving and {BLUE, GREEN} - {dies} <= world.serving
            dealt_with = await deploying.die(dies)
            if can_go_back and before == dies == GREEN and "revert" not in fault:
                assert dealt_with, (plan, run.phase)
                assert world.active == BLUE
            if dies == world.active:  # then its slot starts it again
                world.serving.add(dies)
            assert world.active in world.serving, (plan, moment, dies, run.phase)
