"""The kernel's view of connections: which of them wait for an answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from atlas_supervisor.system import sockdiag
from atlas_supervisor.system.procfs import inode_of
from tests.harness import eventually


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
    (found,) = [each for each in sockdiag.connections() if each.inode == inode_of(server)]
    return found.busy(quiet_seconds=1)


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
