"""What a host follows of a rollout: all of it while its turn is near, else how far it is."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from atlas_supervisor.fleet import turn_watch
from atlas_supervisor.fleet.documents import (
    ROLLOUT,
    SEMAPHORE,
    Document,
    HostState,
    RolloutState,
)
from atlas_supervisor.fleet.situation import Situation
from atlas_supervisor.fleet.turn_watch import Pace, TurnWatch
from tests.harness import eventually
from tests.unit.supervisor.fleet.fakes import PlayedEngine
from tests.unit.supervisor.fleet.support import (
    RUN,
    fleet_of,
    results,
    rollout_of,
    slots_of,
    snapshot,
)

HOSTS = tuple(f"h{number:03}" for number in range(100))
PACE = Pace(glance=0.005, near_hosts=4)


def put(engine: PlayedEngine, documents: dict[str, Document]) -> None:
    for key, document in documents.items():
        engine.put(key, document.written())


@asynccontextmanager
async def followed(
    host: str, pace: Pace = PACE, **rollout: Any
) -> AsyncIterator[tuple[PlayedEngine, TurnWatch]]:
    """Let a host follow a rollout over a hundred hosts, of which the first has its slot."""
    engine = PlayedEngine()
    put(engine, rollout_of(*HOSTS, **rollout) | slots_of(h000=1))
    watch = TurnWatch(engine, host, pace)
    following = asyncio.create_task(watch.run())
    try:
        await eventually(lambda: watch.waiting() is not None)
        yield engine, watch
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
    assert not engine.watched


async def test_only_hosts_whose_turn_is_near_watch_the_semaphore() -> None:
    async with followed("h005") as (engine, watch):
        held = ("waits: 1 of 1 slots is held by h000", math.inf)
        await eventually(lambda: watch.waiting() == held)
        assert engine.watched == [ROLLOUT, SEMAPHORE]
    async with followed("h006") as (engine, watch):
        await eventually(lambda: (SEMAPHORE,) in engine.reads)
        assert engine.watched == [ROLLOUT]


async def test_a_host_notices_in_time_that_its_turn_comes_near() -> None:
    async with followed("h060") as (engine, watch):
        put(engine, slots_of(h050=51))
        await eventually(lambda: "held by h050" in str(watch.waiting()))
        assert engine.watched == [ROLLOUT]
        put(engine, slots_of(h055=56))
        await eventually(lambda: SEMAPHORE in engine.watched)
        put(engine, slots_of(h059=60))
        await eventually(lambda: "held by h059" in str(watch.waiting()))
        engine.remove(SEMAPHORE)
        await eventually(lambda: watch.waiting() is None)


async def test_a_host_with_a_slot_or_one_that_has_passed_follows_the_rollout_alone() -> None:
    async with followed("h001") as (engine, watch):
        await eventually(lambda: SEMAPHORE in engine.watched)
        with watch.using_slot():
            await eventually(lambda: engine.watched == [ROLLOUT])
        await eventually(lambda: SEMAPHORE in engine.watched)
        put(engine, slots_of(h001=2))
        await eventually(lambda: watch.waiting() is None)  # its slot, by an unanswered commit
        watch.note_passed(RUN)
        await eventually(lambda: engine.watched == [ROLLOUT])
        assert watch.waiting() == ("", math.inf)
        put(engine, rollout_of(*HOSTS, rollout_id="later"))
        await eventually(lambda: SEMAPHORE in engine.watched)


async def test_a_host_that_failed_follows_it_again_once_the_rollout_is_resumed() -> None:
    async with followed("h001", state=RolloutState.HALTED) as (engine, watch):
        documents = (fleet_of(*HOSTS), rollout_of(*HOSTS), results(h001=HostState.FAILED))
        watch.note(Situation.read(snapshot({**documents[0], **documents[1], **documents[2]})))
        await eventually(lambda: engine.watched == [ROLLOUT])
        put(engine, rollout_of(*HOSTS, state=RolloutState.RUNNING))
        await eventually(lambda: SEMAPHORE in engine.watched)


async def test_a_host_leaves_its_turn_to_those_before_it_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turn_watch, "_LEFT_SECONDS_PER_HOST", 1.0)
    async with followed("h003", max_unavailable=4) as (engine, watch):
        put(engine, slots_of(4, h000=1))
        await eventually(lambda: "1 of 100 hosts have begun" in str(watch.waiting()))
        waiting = watch.waiting()
        assert waiting is not None
        assert 100 < waiting.seconds <= 200  # h001 and h002 come before it
        monkeypatch.setattr(turn_watch, "_LEFT_SECONDS_PER_HOST", 0.0)
        assert watch.waiting() is None
