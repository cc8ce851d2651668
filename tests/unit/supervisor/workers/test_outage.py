"""What clients get while no worker comes up, and once one does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotState
from atlas_supervisor.traffic import listeners
from atlas_supervisor.workers import restarts
from atlas_supervisor.workers.restarts import RestartPolicy
from atlas_supervisor.workers.slots import Slots
from tests.harness import eventually
from tests.unit.supervisor.workers.support import (
    BLUE,
    GREEN,
    READY_AND_SLEEP,
    SLEEP,
    Bench,
    ask,
    bench,
    release,
    serving,
)


def gone(folder: Path) -> Release:
    """Return a release whose folder is not there."""
    return Release(name=None, path=folder / "gone", version="v1")


UNLESS_UP = "import os, sys\nif not os.path.exists('up'):\n    {}\n"
EXITS = UNLESS_UP.format("sys.exit(1)")
HANGS = UNLESS_UP.format("import time; time.sleep(600)")
BIND = """
import socket, sys
if len(sys.argv) > 1 and int(sys.argv[1]) > 3:
    server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    if server.fileno() != 3:
        os.dup2(server.fileno(), 3)
        server.close()
    else:
        server.detach()
"""
WAYS = {"activation": (), "fd": ("{fd}",), "port": ("{port}",)}
PATIENCE = 1.5
"""Seconds. A worker that begins to serve later is ended, with the clients that it has accepted."""


def is_refusal(answer: str) -> bool:
    head, _, body = answer.partition("\r\n\r\n")
    assert f"Content-Length: {len(body)}" in head or not head.startswith("HTTP/1.1 503"), answer
    return head.startswith("HTTP/1.1 503 ") and "\r\nRetry-After: " in head


def is_in(made: Bench, state: SlotState) -> bool:
    return made.blue.state is state


@pytest.fixture(autouse=True)
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RestartPolicy(delays_seconds=(0.0, 0.1))
    monkeypatch.setattr(restarts, "RestartPolicy", lambda: policy)


@pytest.fixture
def no_steering(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        raise OSError("not on this kernel")

    return lambda: monkeypatch.setattr(listeners, "prove_steering", forbid)


@pytest.mark.parametrize(
    ("broken", "way", "plane"),
    [
        (EXITS, "activation", "kernel"),
        (HANGS, "fd", "kernel"),
        (HANGS, "port", "relay"),
        (EXITS, "fd", "relay"),
    ],
)
async def test_clients_are_refused_while_no_worker_comes_up_and_served_as_soon_as_one_does(
    tmp_path: Path, broken: str, way: str, plane: str, no_steering: Callable[[], None]
) -> None:
    if plane == "relay":
        no_steering()
    command = (sys.executable, "app.py", *WAYS[way])
    settings: dict[str, Any] = {"worker_command": command, "ready_timeout_seconds": PATIENCE}
    async with bench(tmp_path, make_slots=Slots, **settings) as made:
        assert made.plane.name == plane
        port = made.settings.public_port
        loop = asyncio.get_running_loop()
        began = loop.time()
        made.tasks.start_soon(
            made.slots.start_active, release(tmp_path / "r", broken + BIND + serving())
        )
        waiting = await asyncio.gather(*(ask(port) for _ in range(5)))
        assert all(map(is_refusal, waiting)), waiting
        assert PATIENCE - 0.05 < loop.time() - began < PATIENCE + 5
        # New ones are refused at once, whatever the worker is doing.
        for state in (SlotState.BACKOFF, SlotState.STARTING):
            await eventually(partial(is_in, made, state))
            assert is_refusal(await asyncio.wait_for(ask(port), 5))
        (tmp_path / "r" / "up").touch()
        await until_served(made, port)


async def until_served(made: Bench, port: int) -> None:
    """Ask until there is an answer of the worker; none is lost before, and all are its own then."""
    served = 0
    async with asyncio.timeout(20):
        while not made.blue.serving or not served:
            answer = await ask(port)
            assert is_refusal(answer) or answer.startswith("HTTP/1.0 200"), answer
            served += answer.startswith("HTTP/1.0 200")
    assert made.blue.instance is not None
    for answer in await asyncio.gather(*(ask(port) for _ in range(20))):
        assert answer.endswith(made.blue.instance.name)


@pytest.mark.parametrize("broken", [EXITS, HANGS])
async def test_without_a_public_port_clients_of_the_active_port_are_refused(
    tmp_path: Path, broken: str
) -> None:
    async with bench(
        tmp_path, make_slots=Slots, public_port=0, ready_timeout_seconds=PATIENCE
    ) as made:
        assert made.plane.name == "none"
        port = made.settings.active_port
        made.tasks.start_soon(made.slots.start_active, release(tmp_path / "r", broken + serving()))
        assert is_refusal(await ask(port))
        await eventually(partial(is_in, made, SlotState.BACKOFF))
        assert is_refusal(await asyncio.wait_for(ask(port), 5))
        (tmp_path / "r" / "up").touch()
        await until_served(made, port)


async def test_a_short_restart_is_waited_for(tmp_path: Path) -> None:
    async with bench(tmp_path, make_slots=Slots, ready_timeout_seconds=20) as made:
        code = EXITS.replace("sys.exit(1)", "open('up', 'w'); sys.exit(1)") + serving()
        made.tasks.start_soon(made.slots.start_active, release(tmp_path / "r", code))
        answer = await ask(made.settings.public_port)
        assert answer.startswith("HTTP/1.0 200")
        assert made.blue.restarts == 1


async def test_clients_of_a_worker_that_speaks_tls_are_closed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"health_scheme": "https", "ready_timeout_seconds": 0.2}
    async with bench(tmp_path, make_slots=Slots, **settings) as made:
        made.tasks.start_soon(made.slots.start_active, release(tmp_path / "r", EXITS))
        for _ in range(2):
            with contextlib.suppress(ConnectionResetError):
                assert await ask(made.settings.public_port) == ""


async def test_a_release_that_is_gone_leaves_no_client_waiting(tmp_path: Path) -> None:
    async with bench(tmp_path, make_slots=Slots, ready_timeout_seconds=0.2) as made:
        made.tasks.start_soon(made.slots.start_active, gone(tmp_path))
        assert is_refusal(await ask(made.settings.public_port))


async def test_a_switch_away_from_a_slot_without_a_worker_ends_the_refusal(tmp_path: Path) -> None:
    async with bench(tmp_path, make_slots=Slots, ready_timeout_seconds=2) as made:
        made.tasks.start_soon(made.slots.start_active, gone(tmp_path))
        assert is_refusal(await ask(made.settings.public_port))
        await made.green.start(release(tmp_path / "r", serving()))
        assert is_refusal(await ask(made.settings.public_port))
        made.plane.steer(GREEN)
        made.slots.exchange()
        await made.slots.cancel_staging_restarts()  # an attempt would take its queue back
        made.slots.vacate_staging()
        assert (await ask(made.settings.public_port)).startswith("HTTP/1.0 200")
        made.plane.steer(BLUE)  # as for a connection whose handshake began before the switch
        assert (await ask(made.settings.public_port)).startswith("HTTP/1.0 200")


async def test_a_daemon_that_stops_begins_no_refusal(tmp_path: Path) -> None:
    async with bench(tmp_path, make_slots=Slots, ready_timeout_seconds=0.2) as made:
        made.tasks.start_soon(made.slots.start_active, gone(tmp_path))
        made.slots.begin_stop()
        waiting = asyncio.create_task(ask(made.settings.public_port))
        await asyncio.wait({waiting}, timeout=0.5)
        assert not waiting.done()
        waiting.cancel()


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        ("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", False),
        ("POST / HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n" + "x" * 3_000_000, True),
        ("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", True),
    ],
)
async def test_every_kind_of_request_is_refused_properly(
    tmp_path: Path, request_: str, body: bool
) -> None:
    async with bench(tmp_path, make_slots=Slots, ready_timeout_seconds=0.1) as made:
        made.tasks.start_soon(made.slots.start_active, gone(tmp_path))
        head, _, content = (await ask(made.settings.public_port, request_)).partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 503")
        assert bool(content) is body


async def test_a_worker_that_dies_while_its_clients_wait_long_is_followed_by_a_refusal(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path, make_slots=Slots, ready_timeout_seconds=PATIENCE) as made:
        await made.slots.start_active(release(tmp_path / "r", READY_AND_SLEEP))
        waiting = asyncio.create_task(ask(made.settings.public_port))
        await eventually(lambda: made.plane.queued(BLUE) == 1)
        release(tmp_path / "r", SLEEP)
        assert made.blue.instance is not None
        os.kill(made.blue.instance.pid, signal.SIGKILL)
        assert is_refusal(await waiting)
