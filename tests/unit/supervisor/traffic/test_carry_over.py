"""Relayed connections that go on in the next program: no byte is lost, none comes twice."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest

from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.traffic.carry_over import pass_on, taken_from
from atlas_supervisor.traffic.relay import Target
from atlas_supervisor.traffic.relay_connection import RelayConnection, RelayCounters

TARGET = Target("127.0.0.1", 8791, "127.0.0.9")
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LONG = os.urandom(1024) * 2048


class Ends(NamedTuple):
    """A connection that is relayed, and the sockets at its far ends."""

    pair: RelayConnection
    client: socket.socket
    server: socket.socket


@contextmanager
def relayed() -> Iterator[Ends]:
    with ExitStack() as stack:
        client, near_client = socket.socketpair()
        server, near_server = socket.socketpair()
        for sock in (client, server, near_client, near_server):
            sock.setblocking(False)
            stack.enter_context(sock)
        pair = RelayConnection(near_client, near_server, lambda _pair: None, RelayCounters())
        pair.start()
        yield Ends(pair, client, server)
        pair.abort()


@contextmanager
def executed(ends: Ends) -> Iterator[RelayConnection]:
    """Pass the connection on as an exec does: the old sockets are gone, their copies are open."""
    passed, loop = PassedSockets(), asyncio.get_running_loop()
    for name, descriptor in pass_on([(ends.pair, TARGET)]).items():
        passed.put(name, os.dup(descriptor))
        loop.remove_reader(descriptor)
        loop.remove_writer(descriptor)
        os.close(descriptor)
    ends.pair.client.sock.detach()
    ends.pair.server.sock.detach()
    (carried,) = taken_from(passed)
    assert passed.close() == frozenset()
    assert carried.target == TARGET
    pair = RelayConnection(carried.client, carried.server, lambda _pair: None, RelayCounters())
    pair.resume(carried.state)
    try:
        yield pair
    finally:
        pair.abort()


async def received(sock: socket.socket, length: int) -> bytes:
    data = b""
    async with asyncio.timeout(10):
        while len(data) < length:
            piece = await asyncio.get_running_loop().sock_recv(sock, 65536)
            assert piece, f"it ended after {len(data)} bytes"
            data += piece
    return data


async def until_stuck(pair: RelayConnection) -> None:
    async with asyncio.timeout(10):
        while not pair.client.unsent:  # noqa: ASYNC110  # there is no event
            await asyncio.sleep(0.001)


async def test_requests_and_answers_go_on_and_their_framing_is_known() -> None:
    with relayed() as ends:
        ends.client.send(REQUEST)
        assert await received(ends.server, len(REQUEST)) == REQUEST
        ends.server.send(ANSWER)
        assert await received(ends.client, len(ANSWER)) == ANSWER
        ends.client.send(REQUEST)  # during the exec
        with executed(ends) as pair:
            assert await received(ends.server, len(REQUEST)) == REQUEST
            assert pair.pending
            ends.server.send(ANSWER)
            assert await received(ends.client, len(ANSWER)) == ANSWER
            assert not pair.pending


async def test_bytes_that_were_read_and_not_sent_on_yet_arrive_in_order() -> None:
    with relayed() as ends:
        loop = asyncio.get_running_loop()
        sending = asyncio.create_task(loop.sock_sendall(ends.server, LONG))
        await until_stuck(ends.pair)
        with executed(ends):
            assert await received(ends.client, len(LONG)) == LONG
            await sending


async def test_an_answer_that_was_in_progress_is_of_unknown_framing_and_arrives_whole() -> None:
    with relayed() as ends:
        ends.client.send(REQUEST)
        await received(ends.server, len(REQUEST))
        ends.server.send(ANSWER[:20])
        await received(ends.client, 20)
        with executed(ends) as pair:
            ends.server.send(ANSWER[20:])
            assert await received(ends.client, len(ANSWER) - 20) == ANSWER[20:]
            assert pair.pending is None


@pytest.mark.parametrize("before", [True, False], ids=["before the exec", "after it"])
async def test_the_end_of_a_stream_is_passed_on_once_all_before_it_is_sent(before: bool) -> None:
    loop = asyncio.get_running_loop()
    with relayed() as ends:
        sending = asyncio.create_task(loop.sock_sendall(ends.server, LONG))
        await until_stuck(ends.pair)
        if before:
            ends.client.shutdown(socket.SHUT_WR)
            assert await loop.sock_recv(ends.server, 1) == b""
        with executed(ends):
            if not before:
                ends.client.shutdown(socket.SHUT_WR)
                assert await loop.sock_recv(ends.server, 1) == b""
            assert await received(ends.client, len(LONG)) == LONG
            await sending
            ends.server.shutdown(socket.SHUT_WR)
            assert await loop.sock_recv(ends.client, 1) == b""


async def test_without_connections_nothing_is_passed_on() -> None:
    assert pass_on([]) == {}
    assert list(taken_from(PassedSockets())) == []
