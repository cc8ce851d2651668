"""The kernel's view of connections: which of them wait for an answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from atlas_supervisor.system import sockdiag
from atlas_supervisor.system.procfs import inode_of
from atlas_supervisor.traffic.listeners import listen
from tests.harness import eventually, free_ports


@contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected pair: the client's end and the server's."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        yield client, server


def busy(server: socket.socket) -> bool:
    (found,) = sockdiag.connections({server.getsockname()[1]})
    assert found.inode == inode_of(server)
    return found.busy(quiet_seconds=1)


@contextmanager
def server_ends(host: str, address: str, count: int) -> Iterator[list[socket.socket]]:
    """The servers' ends of connections to `address`, each to a listener of its own on `host`."""
    with ExitStack() as stack:
        ends = []
        for port in free_ports(count):
            listener = stack.enter_context(listen(host, port))
            stack.enter_context(socket.create_connection((address, port), 2))
            ends.append(stack.enter_context(listener.accept()[0]))
        yield ends


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("::", "::1")],
)
@pytest.mark.parametrize("wanted", range(4))
def test_connections_on_the_asked_ports_are_found_and_no_others(
    host: str, address: str, wanted: int
) -> None:
    with server_ends(host, address, 4) as ends:
        asked = {end.getsockname()[1]: inode_of(end) for end in ends[:wanted]}
        found = {each.port: each.inode for each in sockdiag.connections(asked)}
        assert found == asked


@pytest.mark.parametrize("other", [-1, 1])
def test_a_neighbouring_port_has_neither_its_connections_nor_its_listener(other: int) -> None:
    with server_ends("127.0.0.1", "127.0.0.1", 1) as (end,):
        port = end.getsockname()[1]
        assert sockdiag.connections({port + other, 1, 65535}) == []
        assert port not in {each.port for each in sockdiag.listeners(port + other)}
        assert {each.port for each in sockdiag.listeners(port)} == {port}


def test_a_client_s_end_is_on_another_local_port() -> None:
    with connection() as (client, server):
        ports = {client.getsockname()[1], server.getsockname()[1]}
        assert {each.inode for each in sockdiag.connections(ports)} == {
            *(inode_of(client), inode_of(server))
        }


def test_an_unused_connection_is_busy_for_a_moment_only() -> None:
    with connection() as (_, server):
        assert busy(server)
        deadline = time.monotonic() + 10
        while busy(server):
            assert time.monotonic() < deadline


def test_a_connection_with_an_unread_request_is_busy() -> None:
    with connection() as (client, server):
        client.sendall(b"GET")
        assert busy(server)


async def test_a_connection_is_busy_until_its_request_is_answered() -> None:
    with connection() as (client, server):
        client.sendall(b"GET")
        assert server.recv(3) == b"GET"
        with pytest.raises(AssertionError):
            await eventually(lambda: not busy(server), within=1.5)


async def test_an_answer_counts_as_given_once_nothing_more_comes_for_a_while() -> None:
    with connection() as (client, server):
        client.sendall(b"GET")
        assert server.recv(3) == b"GET"
        server.sendall(b"200")
        assert client.recv(3) == b"200"
        assert busy(server)
        await eventually(lambda: not busy(server), within=3)
        client.sendall(b"GET")
        assert busy(server)


def test_an_answer_that_its_client_does_not_take_is_not_given() -> None:
    with connection() as (_, server):
        server.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                server.send(bytes(1 << 16))
        assert busy(server)
