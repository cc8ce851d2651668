from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.traffic import Endpoints
from atlas_supervisor.traffic.proxy_protocol import LOCAL, header
from atlas_supervisor.traffic.relay_plane import RelayPlane
from tests.harness import free_ports
from tests.unit.supervisor.traffic.support import BLUE, GREEN, reset, serving

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")  # of the protocol's document


@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [
        (("192.0.2.1", 4660), ("127.0.0.1", 80), "2111000cc00002017f00000112340050"),
        (("::ffff:192.0.2.1", 4660), ("::ffff:127.0.0.1", 80), "2111000cc00002017f00000112340050"),
        (("2001:db8::1", 1), ("::1", 2), f"2121002420010db8{'0' * 23}1{'0' * 31}100010002"),
        (("fe80::1%lo", 1), ("::1", 2), f"21210024fe80{'0' * 27}1{'0' * 31}100010002"),
        (("192.0.2.1", 1), ("::1", 2), f"21210024{'0' * 20}ffffc0000201{'0' * 31}100010002"),
    ],
)
def test_the_header_has_both_addresses(
    client: tuple[str, int], server: tuple[str, int], expected: str
) -> None:
    assert header(client, server) == SIGNATURE + bytes.fromhex(expected)


def test_the_header_of_the_daemon_s_own_connections_has_no_address() -> None:
    assert SIGNATURE + bytes.fromhex("20000000") == LOCAL


async def echo_header(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer a request with the header that came before it."""
    received = await reader.readexactly(16)
    received += await reader.readexactly(struct.unpack("!H", received[14:])[0])
    assert await reader.readexactly(1) == b"?"
    writer.write(received)


@asynccontextmanager
async def opened(
    host: str, socket_passing: SocketPassing = SocketPassing.PORT, *, public: bool = True
) -> AsyncIterator[tuple[RelayPlane, Endpoints]]:
    public_port, blue, green = free_ports(3)
    at = Endpoints(
        host, public_port if public else 0, {BLUE: blue, GREEN: green}, proxy_protocol=True
    )
    plane = RelayPlane(at, socket_passing)
    plane.open(BLUE)
    try:
        yield plane, at
    finally:
        await plane.close()


async def ask(host: str, port: int) -> tuple[tuple[str, int], bytes]:
    """Return the client's own address, and the answer."""
    reader, writer = await asyncio.open_connection(host, port)
    own = writer.get_extra_info("sockname")[:2]
    writer.write(b"?")
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return own, answer


@pytest.mark.parametrize(
    ("host", "client"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("::", "::1")],
)
async def test_a_worker_gets_the_client_s_address_before_its_request(
    host: str, client: str
) -> None:
    async with opened(host) as (_, at), serving(echo_header, port=at.slot_ports[BLUE]):
        own, received = await ask(client, at.public_port)
        assert received == header(own, (client, at.public_port))


async def test_a_worker_that_starts_late_gets_the_header_too() -> None:
    async with opened("127.0.0.1") as (_, at):
        waiting = asyncio.create_task(ask("127.0.0.1", at.public_port))
        await asyncio.sleep(0.02)
        async with serving(echo_header, port=at.slot_ports[BLUE]):
            own, received = await waiting
            assert received == header(own, ("127.0.0.1", at.public_port))


async def test_the_daemon_s_own_requests_are_marked_as_local_on_both_slots() -> None:
    async with opened("127.0.0.1") as (plane, at):
        for slot in (BLUE, GREEN):
            assert plane.probe_port(at.slot_ports[slot]) != at.slot_ports[slot]
            with contextlib.suppress(ConnectionResetError):  # closed at once: no worker yet
                assert (await ask("127.0.0.1", plane.probe_port(at.slot_ports[slot])))[1] == b""
            async with serving(echo_header, port=at.slot_ports[slot]):
                assert (await ask("127.0.0.1", plane.probe_port(at.slot_ports[slot])))[1] == LOCAL


async def test_a_client_that_has_left_before_it_was_accepted_does_no_harm() -> None:
    async with opened("127.0.0.1") as (_, at), serving(echo_header, port=at.slot_ports[BLUE]):
        for _ in range(10):
            reset(socket.create_connection(("127.0.0.1", at.public_port)))
        assert (await ask("127.0.0.1", at.public_port))[1].startswith(SIGNATURE)


@pytest.mark.parametrize(
    ("socket_passing", "public"),
    [(SocketPassing.PORT, False), (SocketPassing.ACTIVATION, True), (SocketPassing.FD, True)],
)
async def test_only_a_worker_of_a_port_behind_the_relay_gets_a_header(
    socket_passing: SocketPassing, public: bool
) -> None:
    async def echo_byte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(1))

    async with opened("127.0.0.1", socket_passing, public=public) as (plane, at):
        assert plane.probe_port(at.slot_ports[BLUE]) == at.slot_ports[BLUE]
        if public:
            async with serving(echo_byte, plane.inherited(BLUE).named["public"]):
                assert (await ask("127.0.0.1", at.public_port))[1] == b"?"
