"""New connections wait in the kernel during a hold, and are handed on in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.traffic import Endpoints, Plane, listeners, make_plane
from atlas_supervisor.traffic.steering import DIRECT_SOURCE
from tests.harness import eventually
from tests.unit.supervisor.traffic.support import BLUE, GREEN, naming, opened, serving, who

CLIENTS = 40
PASSINGS = list(SocketPassing)
KERNEL = [SocketPassing.ACTIVATION, SocketPassing.FD]


@asynccontextmanager
async def workers(plane: Plane, at: Endpoints, seen: list[bytes]) -> AsyncIterator[None]:
    """Serve both slots; each answers with its name, and notes what it is asked, in order."""

    async def serve(stack: AsyncExitStack, slot: SlotName) -> None:
        async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.read(16))
            writer.write(slot.value.encode())
            await writer.drain()

        named = plane.inherited(slot).named
        for sock in named.values():
            await stack.enter_async_context(serving(session, sock))
        if not named:
            await stack.enter_async_context(serving(session, port=at.slot_ports[slot]))

    async with AsyncExitStack() as stack:
        for slot in (BLUE, GREEN):
            await serve(stack, slot)
        yield


class Clients:
    """Clients of the public port; each asks with its number, once it is connected."""

    def __init__(self, at: Endpoints, address: str = "127.0.0.1") -> None:
        self._where = address, at.public_port
        self._streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def connect(self, count: int = CLIENTS) -> None:
        for _ in range(count):
            reader, writer = await asyncio.open_connection(*self._where)
            writer.write(f"{len(self._streams):02}".encode())
            self._streams.append((reader, writer))

    async def answers(self) -> list[str]:
        async with asyncio.timeout(10):
            found = [(await reader.read()).decode() for reader, _ in self._streams]
        for _, writer in self._streams:
            writer.close()
        return found


@pytest.mark.parametrize("socket_passing", PASSINGS)
async def test_connections_are_handed_on_in_order_to_the_slot_that_is_active_by_then(
    socket_passing: SocketPassing,
) -> None:
    seen: list[bytes] = []
    async with opened(socket_passing) as (plane, at), workers(plane, at, seen):
        assert await who(at.public_port) == "blue"
        seen.clear()
        clients = Clients(at)
        for _ in range(2):  # and once more
            plane.prepare_hold()
            plane.hold()
            assert plane.held
            await clients.connect()
            await eventually(lambda: plane.waiting == CLIENTS)
            plane.steer(GREEN)
            assert plane.held
            assert plane.waiting == CLIENTS
            assert seen == []
            plane.release()
            assert not plane.held
            assert set(await clients.answers()) == {"green"}
            assert seen == [f"{number:02}".encode() for number in range(CLIENTS)]
            assert await who(at.public_port) == "green"
            seen.clear()
            clients = Clients(at)
        plane.steer(BLUE)
        assert await who(at.public_port) == "blue"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1"])
async def test_a_hold_holds_either_family_and_leaves_the_direct_sources(host: str) -> None:
    seen: list[bytes] = []
    async with (
        opened(SocketPassing.ACTIVATION, host=host) as (plane, at),
        workers(plane, at, seen),
    ):
        plane.prepare_hold()
        plane.hold()
        families = {"0.0.0.0": ["127.0.0.1"], "::": ["127.0.0.1", "::1"], "::1": ["::1"]}[host]
        waiting = [Clients(at, address) for address in families]
        for each in waiting:
            await each.connect(3)
        await eventually(lambda: plane.waiting == 3 * len(families))
        if "127.0.0.1" in families:
            for slot, source in DIRECT_SOURCE.items():
                assert await who(at.public_port, source=str(source)) == slot
        plane.release()
        for each in waiting:
            assert await each.answers() == ["blue"] * 3


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("socket_passing", PASSINGS)
async def test_connections_that_wait_are_passed_on_to_the_next_daemon(
    socket_passing: SocketPassing, held: bool
) -> None:
    seen: list[bytes] = []
    async with opened(socket_passing) as (plane, at):
        plane.prepare_hold()
        plane.hold()
        clients, passed = Clients(at), PassedSockets()
        await clients.connect()
        assert plane.sockets().keys() <= plane.addresses.keys()
        for name, sock in plane.sockets().items():
            passed.put(name, sock.dup().detach())
        await plane.close()
        after = make_plane(at, socket_passing)
        taken = after.take_back([], passed)
        assert taken.complete
        after.open(BLUE, taken, held=held)
        try:
            assert after.held == held
            assert after.foreign_listeners() == []
            if held:
                assert after.waiting == CLIENTS
                after.release()
            async with workers(after, at, seen):
                assert set(await clients.answers()) == {"blue"}
                assert await who(at.public_port) == "blue"
        finally:
            await after.close()


async def test_the_group_is_in_its_order_again_after_a_worker_has_ended_a_listener() -> None:
    seen: list[bytes] = []
    async with (
        opened(SocketPassing.ACTIVATION) as (plane, at),
        workers(plane, at, seen),
    ):
        plane.prepare_hold()
        plane.hold()
        plane.release()
        for slot in (BLUE, GREEN):
            listeners.listen_last(plane.inherited(slot).named["public"])
            found = []
            for turned in (False, True):
                plane.restore(turned=turned)
                answers = {await who(at.public_port) for _ in range(4)}
                found.append(answers)
            assert {"blue"} in found
            plane.restore(turned=found.index({"blue"}) == 0)
            plane.hold()
            clients = Clients(at)
            await clients.connect()
            await eventually(lambda: plane.waiting == CLIENTS)
            plane.release()
            assert set(await clients.answers()) == {"blue"}


async def test_without_a_public_port_nothing_can_wait() -> None:
    async with opened(SocketPassing.ACTIVATION, public=False) as (plane, _):
        plane.prepare_hold()
        assert (plane.waiting, plane.held) == (0, False)


async def test_a_parked_listener_is_closed_where_its_group_is_gone() -> None:
    async with opened(SocketPassing.ACTIVATION) as (plane, at):
        plane.prepare_hold()
        passed = PassedSockets()
        passed.put("public-parked", plane.sockets()["public-parked"].dup().detach())
        await plane.close()
        after = make_plane(at, SocketPassing.ACTIVATION)
        after.open(BLUE, after.take_back([], passed), held=True)
        try:
            assert (after.held, list(after.sockets())[:2]) == (
                False,
                ["public-blue", "public-green"],
            )
            async with serving(naming("blue"), after.inherited(BLUE).named["public"]):
                assert await who(at.public_port) == "blue"
        finally:
            await after.close()
