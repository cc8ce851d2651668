from __future__ import annotations

import asyncio
import contextlib
import socket
from contextlib import ExitStack

import pytest

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.system.tcp_info import queue_length
from atlas_supervisor.traffic import Endpoints, listeners
from atlas_supervisor.traffic.kernel_plane import KernelPlane
from atlas_supervisor.traffic.steering import SteeringPolicy
from tests.harness import eventually, free_ports
from tests.unit.supervisor.traffic.support import (
    BLUE,
    GREEN,
    foreign_listener,
    naming,
    open_files,
    opened,
    serving,
    who,
)


def some_endpoints(host: str = "127.0.0.1") -> Endpoints:
    public, blue, green = free_ports(3)
    return Endpoints(host, public, {BLUE: blue, GREEN: green})


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1"])
async def test_each_workers_sockets_reach_it_and_the_public_port_the_active_one(host: str) -> None:
    address = "127.0.0.1" if host in {"0.0.0.0", "::"} else host
    async with (
        opened(SocketPassing.ACTIVATION, host=host) as (plane, at),
        contextlib.AsyncExitStack() as s,
    ):
        assert plane.name == "kernel"
        for slot in (BLUE, GREEN):
            inherited = plane.inherited(slot)
            assert list(inherited.named) == ["public", "private"]
            for name, sock in inherited.named.items():
                await s.enter_async_context(serving(naming(f"{slot} {name}"), sock))
        assert plane.inherited(BLUE).spare == (plane.inherited(GREEN).named["public"],)
        for active in (BLUE, GREEN, BLUE):
            plane.steer(active)
            assert plane.active is active
            assert plane.policy.weights == {active.value: 1.0, active.other.value: 0.0}
            assert await who(at.public_port, address) == f"{active} public"
        for slot, port in at.slot_ports.items():
            assert await who(port) == f"{slot} private"
            assert plane.ports(slot) == {at.public_port, port}


@pytest.mark.parametrize("active", [BLUE, GREEN])
async def test_it_opens_with_the_slot_active_that_was_active(active: SlotName) -> None:
    async with opened(SocketPassing.ACTIVATION, active=active) as (plane, at):
        assert plane.active is active
        before = plane.queued(active)
        with socket.create_connection(("127.0.0.1", at.public_port), 2):
            assert plane.queued(active) == before + 1


async def test_a_switch_under_connections_loses_none() -> None:
    async with (
        opened(SocketPassing.ACTIVATION) as (plane, at),
        contextlib.AsyncExitStack() as stack,
    ):
        for slot in (BLUE, GREEN):
            public = plane.inherited(slot).named["public"]
            await stack.enter_async_context(serving(naming(slot.value), public))
        stop = asyncio.Event()

        async def clients() -> list[str]:
            answers: list[str] = []
            while not stop.is_set():
                answers.append(await who(at.public_port))
            return answers

        running = [asyncio.create_task(clients()) for _ in range(8)]
        for flip in range(200):
            plane.steer((GREEN, BLUE)[flip % 2])
            await asyncio.sleep(0)
        stop.set()
        answers = [answer for each in await asyncio.gather(*running) for answer in each]
        assert set(answers) <= {"blue", "green"}
        assert len(answers) >= 8


async def test_a_descriptor_worker_is_reached_on_its_own_port_through_the_public_socket() -> None:
    async with opened(SocketPassing.FD) as (plane, at), contextlib.AsyncExitStack() as stack:
        for slot in (BLUE, GREEN):
            inherited = plane.inherited(slot)
            assert list(inherited.named) == ["public"]
            await stack.enter_async_context(serving(naming(slot.value), inherited.named["public"]))
        for active in (BLUE, GREEN):
            plane.steer(active)
            assert await who(at.public_port) == active.value
            for slot, port in at.slot_ports.items():
                assert await who(port) == slot.value


@pytest.mark.parametrize("socket_passing", [SocketPassing.ACTIVATION, SocketPassing.FD])
async def test_a_dead_slots_queue_is_passed_on_to_the_living_one(
    socket_passing: SocketPassing,
) -> None:
    async with opened(socket_passing) as (plane, at), contextlib.AsyncExitStack() as stack:
        for sock in plane.inherited(GREEN).named.values():
            await stack.enter_async_context(serving(naming("living"), sock))
        waiting = [asyncio.create_task(who(at.public_port)) for _ in range(20)]
        await eventually(lambda: plane.queued(BLUE) == 20)
        plane.steer(GREEN)
        assert plane.rescued(BLUE) == 0
        plane.vacate(BLUE, GREEN)
        plane.vacate(BLUE, GREEN)  # a second time has no effect
        assert set(await asyncio.gather(*waiting)) == {"living"}
        assert plane.rescued(BLUE) == 20
        plane.occupy(BLUE)
        plane.occupy(BLUE)
        assert plane.rescued(BLUE) == 0
        plane.steer(BLUE)
        with socket.create_connection(("127.0.0.1", at.public_port)):
            await asyncio.sleep(0.05)
            assert plane.queued(BLUE) == 1  # it waits for the slot's own worker again


@pytest.mark.parametrize("socket_passing", [SocketPassing.ACTIVATION, SocketPassing.FD])
async def test_the_own_port_of_a_slot_without_a_worker_refuses_at_once(
    socket_passing: SocketPassing,
) -> None:
    async with opened(socket_passing) as (plane, at), contextlib.AsyncExitStack() as stack:
        for slot in (BLUE, GREEN):
            for sock in plane.inherited(slot).named.values():
                await stack.enter_async_context(serving(naming(slot.value), sock))
        assert await who(at.slot_ports[BLUE]) == "blue"
        await stack.aclose()
        plane.vacate(BLUE, GREEN)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(who(at.slot_ports[BLUE]), 5) == ""
        plane.occupy(BLUE)
        with pytest.raises(TimeoutError):  # requests now wait for the next worker
            await asyncio.wait_for(who(at.slot_ports[BLUE]), 0.2)


async def test_rescued_connections_outlive_the_rescue_and_end_with_the_plane() -> None:
    tasks = asyncio.all_tasks()
    async with opened(SocketPassing.ACTIVATION) as (plane, at):
        own = plane.inherited(GREEN).named["private"]
        async with serving(naming("living"), own):
            reader, writer = await asyncio.open_connection("127.0.0.1", at.public_port)
            plane.vacate(BLUE, GREEN)
            await eventually(lambda: plane.queued(BLUE) == 0)
            plane.occupy(BLUE)
            writer.write(b"?")
            assert await reader.readexactly(6) == b"living"
            await plane.close()
            writer.close()
    await eventually(lambda: asyncio.all_tasks() <= tasks)


async def test_refresh_restores_backlog_and_program_after_a_worker_changed_them() -> None:
    async with opened(SocketPassing.ACTIVATION) as (plane, at):
        inherited = plane.inherited(BLUE)
        for sock in inherited.named.values():
            sock.listen(1)
        listeners.attach(inherited.named["public"], SteeringPolicy(GREEN))
        plane.refresh(BLUE)
        before = {slot: plane.queued(slot) for slot in (BLUE, GREEN)}
        with ExitStack() as stack:
            for port in (at.public_port, at.slot_ports[BLUE]):
                for _ in range(20):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), 2))
            assert plane.queued(GREEN) == before[GREEN]
            assert plane.queued(BLUE) == before[BLUE] + 20
            assert queue_length(inherited.named["private"]) == 20


async def test_the_next_worker_gets_nonblocking_sockets_after_one_made_them_blocking() -> None:
    async with opened(SocketPassing.ACTIVATION) as (plane, _):
        for sock in plane.inherited(BLUE).named.values():
            sock.setblocking(True)
        assert not any(sock.getblocking() for sock in plane.inherited(BLUE).named.values())


@pytest.mark.parametrize("which", ["PUBLIC_PORT", "ACTIVE_PORT", "STAGING_PORT"])
async def test_a_port_that_is_taken_is_refused_naming_who_has_it(which: str) -> None:
    at = some_endpoints()
    ports = {
        "PUBLIC_PORT": at.public_port,
        "ACTIVE_PORT": at.slot_ports[BLUE],
        "STAGING_PORT": at.slot_ports[GREEN],
    }
    before = open_files()
    with foreign_listener(ports[which], reuse_port=True) as process:
        with pytest.raises(StartRefusedError, match=rf"{which}=.* taken: pid {process.pid} "):
            KernelPlane(at, SocketPassing.ACTIVATION).open(BLUE)
        assert process.poll() is None
    assert open_files() == before


async def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(StartRefusedError, match=r"no address 192\.0\.2\.1, which PUBLIC_PORT"):
        KernelPlane(some_endpoints("192.0.2.1"), SocketPassing.ACTIVATION).open(BLUE)


async def test_a_stray_listener_that_comes_later_is_named() -> None:
    async with opened(SocketPassing.ACTIVATION, host="0.0.0.0") as (plane, at):
        assert plane.foreign_listeners() == []
        with foreign_listener(at.public_port, "127.0.0.1", reuse_port=True) as process:
            (found,) = plane.foreign_listeners()
            assert f"pid {process.pid} " in found
            assert f"listens on 127.0.0.1:{at.public_port}" in found
        assert plane.foreign_listeners() == []


async def test_closing_leaves_nothing_open() -> None:
    before, tasks = open_files(), asyncio.all_tasks()
    async with opened(SocketPassing.FD) as (plane, at):
        plane.vacate(GREEN, BLUE)
        plane.steer(GREEN)
        with socket.create_connection(("127.0.0.1", at.public_port)):
            await eventually(lambda: plane.rescued(GREEN) == 1)
    await eventually(lambda: asyncio.all_tasks() <= tasks)
    await eventually(lambda: open_files() <= before)


async def test_locked_filters_stop_no_switch_and_leave_the_group_in_its_order() -> None:
    async with (
        opened(SocketPassing.ACTIVATION) as (plane, at),
        contextlib.AsyncExitStack() as stack,
    ):
        for slot in (BLUE, GREEN):
            public = plane.inherited(slot).named["public"]
            await stack.enter_async_context(serving(naming(slot.value), public))
        assert not plane.locked()
        for slot in (BLUE, GREEN):
            public = plane.inherited(slot).named["public"]
            public.setsockopt(socket.SOL_SOCKET, 44, 1)
        assert plane.locked()
        for active in (GREEN, BLUE, GREEN):
            plane.steer(active)
            assert [await who(at.public_port) for _ in range(8)] == [active.value] * 8
