"""Draining workers, played by a few lines that report what a worker with the kit reports.

Each holds the clients that it has accepted, accepts nothing more after SIGTERM, notes a second
one, and ends when the file `end` is in its folder.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.model.drain import DrainCounts
from atlas_supervisor.model.slot import SlotState
from atlas_supervisor.workers.drain import LINGERING_LIMIT, in_words
from atlas_supervisor.workers.process import WorkerProcess
from tests.harness import eventually
from tests.unit.supervisor.workers.support import ANSWER, BLUE, READY, Bench, bench, release

KIT = f"""{READY}
import json, select, signal, time
terms, held = [], []
def left(name, **counts):
    kinds = ("requests", "websockets", "event_streams", "idle")
    return name + "=" + json.dumps(dict.fromkeys(kinds, 0) | counts)
def term(*_):
    terms.append(1)
    if len(terms) == 1:
        notify("X_ATLAS_ACCEPTING=0\\n" + left("X_ATLAS_LEFT", **LEFT))
    else:
        open("hurried", "a").write("x")
        HURRY
signal.signal(signal.SIGTERM, term)
public = socket.socket(fileno=3)
notify("READY=1\\nX_ATLAS_KIT=1")
{ANSWER}
while not os.path.exists("end"):
    if select.select([public], [], [], 0.02)[0] and not terms:
        held.append(public.accept())
    time.sleep(0.02)
notify(left("X_ATLAS_CUT", websockets=1))
os._exit(0)
"""


def kit(left: str = "{'websockets': 1}", hurry: str = "pass") -> str:
    """Return a worker with these connections left, and what it does when it is hurried."""
    return KIT.replace("LEFT)", f"{left})").replace("HURRY", hurry)


class Street:
    """Workers that go through one slot, one after the other, each with a client."""

    def __init__(self, made: Bench, folder: Path) -> None:
        self.made = made
        self.folder = folder
        self.instances: list[WorkerProcess] = []
        self.clients: list[asyncio.StreamWriter] = []
        self.drains: list[asyncio.Task[dict[str, Any]]] = []
        self.freed: list[asyncio.Event] = []

    async def add(self, code: str) -> WorkerProcess:
        """Start the next worker in the empty slot, and connect a client to it."""
        number = len(self.instances)
        await self.made.blue.start(release(self.folder / str(number), code, f"v{number}"))
        instance = self.made.blue.instance
        assert instance is not None
        self.instances.append(instance)
        _, writer = await asyncio.open_connection("127.0.0.1", self.made.settings.public_port)
        self.clients.append(writer)
        await eventually(lambda: self.made.plane.queued(BLUE) == 0)
        return instance

    def drain(self) -> None:
        """Start to drain the worker in the slot."""
        freed = asyncio.Event()
        self.freed.append(freed)
        self.drains.append(asyncio.create_task(self.made.blue.drain(freed.set)))

    async def leave(self, code: str) -> WorkerProcess:
        """Let one more worker linger."""
        instance = await self.add(code)
        self.drain()
        await asyncio.wait_for(self.freed[-1].wait(), 5)
        return instance

    def hurried(self) -> list[int]:
        """Return how often each was hurried."""
        paths = [self.folder / str(number) / "hurried" for number in range(len(self.instances))]
        return [path.stat().st_size if path.exists() else 0 for path in paths]

    def end(self, number: int) -> None:
        """Let one of them end by itself."""
        (self.folder / str(number) / "end").touch()

    def names(self) -> list[str]:
        """Return the versions that the status shows as draining."""
        return [view.version for view in self.made.slots.drains.views()]


@asynccontextmanager
async def street(folder: Path, **settings: Any) -> AsyncIterator[Street]:
    async with bench(folder, **settings) as made:
        it = Street(made, folder)
        try:
            yield it
        finally:
            for writer in it.clients:
                writer.close()
            for instance in it.instances:
                await instance.kill()
            await asyncio.gather(*it.drains, return_exceptions=True)


async def test_a_fifth_drain_keeps_its_slot_until_the_oldest_was_hurried_and_ended(
    tmp_path: Path,
) -> None:
    async with street(tmp_path, drain_timeout_seconds=30) as it:
        for _ in range(LINGERING_LIMIT):
            await it.leave(kit(hurry='open("end", "w")'))
        assert it.made.blue.instance is None
        last = await it.add(kit())
        it.drain()
        await asyncio.wait_for(last.reported.not_accepting.wait(), 5)
        # No deploy needs the slot yet: it keeps its time, and no connection waits in its queues.
        _, late = await asyncio.open_connection("127.0.0.1", it.made.settings.public_port)
        it.clients.append(late)
        await eventually(lambda: it.made.plane.rescued(BLUE) == 1, what="passed on")
        assert not it.freed[-1].is_set()
        assert it.made.blue.state is SlotState.DRAINING
        assert it.hurried() == [0, 0, 0, 0, 0]
        assert it.names() == ["v0", "v1", "v2", "v3", "v4"]
        for _ in range(3):  # as a deploy that waits for the slot does
            it.made.slots.drains.hurry()
        await asyncio.wait_for(it.freed[-1].wait(), 5)
        assert it.hurried() == [1, 0, 0, 0, 0]
        assert it.names() == ["v1", "v2", "v3", "v4"]
        assert it.made.blue.instance is None
        it.end(4)
        how = await asyncio.wait_for(it.drains[4], 5)
        assert how["by_itself"]
        assert how["cut"]["websockets"] == 1  # reported at its very end
        gone = [name for what, name in it.made.registry.entries if what == "gone"]
        assert gone == [it.instances[0].name, last.name]
        assert it.made.down == []


async def test_a_worker_without_streams_is_not_hurried(tmp_path: Path) -> None:
    async with street(tmp_path) as it:
        instance = await it.leave(kit("{'requests': 1}"))
        assert not instance.hurry()
        assert it.hurried() == [0]


async def test_a_worker_is_not_hurried_before_its_drain(tmp_path: Path) -> None:
    async with street(tmp_path) as it:
        instance = await it.add(kit())
        assert not instance.hurry()
        it.made.slots.drains.hurry()
        assert instance.alive
        assert not instance.reported.not_accepting.is_set()


async def test_the_end_of_a_lingering_worker_does_not_affect_the_next_one_in_its_slot(
    tmp_path: Path,
) -> None:
    async with street(tmp_path, drain_timeout_seconds=6, stop_timeout_seconds=0.3) as it:
        killed, hung, _deaf = [await it.leave(kit()) for _ in range(3)]
        os.kill(killed.pid, signal.SIGKILL)
        os.kill(hung.pid, signal.SIGSTOP)
        following = await it.add(kit())
        died, *ended = await asyncio.wait_for(asyncio.gather(*it.drains), 30)
        assert "did not finish: it was ended by SIGKILL" in died["message"]
        for how in ended:
            assert not how["by_itself"]
            assert "had to be killed" in how["message"]
            assert "it still had 1 WebSocket" in how["message"]
        assert it.names() == []
        assert it.made.blue.instance is following
        assert it.made.blue.serving
        assert it.made.down == []
        assert [what for what, _ in it.made.registry.entries].count("gone") == 3


async def test_a_cancelled_wait_leaves_a_lingering_worker_its_time(tmp_path: Path) -> None:
    async with street(tmp_path) as it:
        instance = await it.leave(kit())
        it.drains[0].cancel()
        await asyncio.wait(it.drains)
        assert instance.alive
        assert it.names() == ["v0"]
        gone = asyncio.create_task(it.made.slots.drains.all_gone())
        it.end(0)
        await asyncio.wait_for(gone, 5)
        assert it.names() == []


def kinds(requests: int, websockets: int, event_streams: int) -> DrainCounts:
    return DrainCounts(
        requests=requests, websockets=websockets, event_streams=event_streams, idle=9
    )


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (None, ""),
        (kinds(0, 0, 0), ""),
        (kinds(1, 0, 0), "1 request"),
        (kinds(0, 2, 1), "2 WebSockets and 1 event stream"),
        (kinds(3, 1, 2), "3 requests, 1 WebSocket and 2 event streams"),
    ],
)
def test_counts_are_formatted_as_text(left: DrainCounts | None, words: str) -> None:
    assert in_words(left) == words
