from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from atlas_supervisor.system.tcp_info import queue_length
from atlas_supervisor.traffic import listeners, relay, relay_connection
from atlas_supervisor.traffic.relay import Relay, Target
from tests.harness import eventually, free_ports
from tests.unit.supervisor.traffic.support import (
    Session,
    echo,
    naming,
    open_files,
    reset,
    serving,
    who,
)


@asynccontextmanager
async def relaying(
    choose: Callable[[], Target | None], **more: Any
) -> AsyncIterator[tuple[Relay, int]]:
    (port,) = free_ports(1)
    with listeners.listen("127.0.0.1", port) as sock:
        running = Relay(sock, lambda _client: choose(), **more)
        running.start()
        try:
            yield running, port
        finally:
            await running.close()


@asynccontextmanager
async def relaying_to(session: Session) -> AsyncIterator[tuple[Relay, int]]:
    async with serving(session) as server_port:
        target = Target("127.0.0.1", server_port)
        async with relaying(lambda: target) as (running, port):
            yield running, port


async def test_bytes_go_both_ways_unchanged() -> None:
    sent = os.urandom(3_000_000)
    async with relaying_to(echo) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def send() -> None:
            writer.write(sent)
            await writer.drain()
            writer.write_eof()

        received, _ = await asyncio.gather(reader.read(), send())
        writer.close()
    assert received == sent


async def test_a_half_closed_connection_still_gets_its_answer() -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(len(await reader.read())).encode())

    async with relaying_to(count) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * 100_000)
        writer.write_eof()
        assert await reader.read() == b"100000"
        writer.close()


async def test_an_answer_ends_where_the_server_ends_it() -> None:
    async with relaying_to(naming("server")) as (running, port):
        assert await who(port) == "server"
        await eventually(lambda: running.open_connections == 0)


async def test_a_client_that_does_not_read_stops_the_server_and_fills_no_memory() -> None:
    written = 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            written += 65536

    async with relaying_to(flood) as (running, port):
        # The stream takes twice its limit by itself, and stops when it is not read.
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:  # until nothing moves any more
            before = written
            await asyncio.sleep(0.2)
            if written == before > 0:
                break
        (one,) = running._pairs
        assert 0 < len(one.client.unsent) <= len(relay_connection._BUFFER)
        assert not one.server.unsent
        writer.transport.abort()


async def test_a_stuck_connection_holds_up_no_other() -> None:
    async def stuck_or_not(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1) == b"s":
            while True:
                writer.write(bytes(65536))
                await writer.drain()
        writer.write(b"fine")

    async with relaying_to(stuck_or_not) as (_, port):
        _reader, stuck = await asyncio.open_connection("127.0.0.1", port)
        stuck.write(b"s")
        answers = await asyncio.wait_for(asyncio.gather(*(who(port) for _ in range(50))), 10)
        assert set(answers) == {"fine"}
        stuck.transport.abort()


async def test_a_reset_of_the_server_is_passed_on_as_a_reset() -> None:
    async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhalf of what")
        await writer.drain()
        await reader.read(1)  # the client has seen that much
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, relay_connection.RESET_ON_CLOSE)
        writer.transport.abort()

    async with relaying_to(half_an_answer) as (running, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"?")
        await reader.readuntil(b"half of what")
        writer.write(b"!")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await eventually(lambda: running.open_connections == 0)


async def test_a_client_that_resets_ends_the_servers_work() -> None:
    cut = asyncio.Event()

    async def works(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"begun")
        try:
            await reader.read()
        except ConnectionResetError:
            cut.set()

    async with relaying_to(works) as (running, port):
        client = socket.create_connection(("127.0.0.1", port))
        assert await asyncio.to_thread(client.recv, 5) == b"begun"
        reset(client)
        await asyncio.wait_for(cut.wait(), 5)
        await eventually(lambda: running.open_connections == 0)


async def test_the_end_of_a_long_answer_reaches_a_slow_reader_though_the_server_is_gone() -> None:
    answer = os.urandom(8_000_000)

    async def tell(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    async with relaying_to(tell) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        received = bytearray()
        while piece := await reader.read(100_000):
            received += piece
        writer.close()
    assert received == answer


async def test_a_client_that_never_closes_is_closed_some_time_after_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_connection, "_IDLE_SECONDS", 0.1)
    async with relaying_to(naming("server")) as (running, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"?")
        assert await reader.read() == b"server"
        await eventually(lambda: running.open_connections == 0)
        writer.close()


async def test_a_target_that_refuses_is_waited_for() -> None:
    (server_port,) = free_ports(1)
    async with relaying(lambda: Target("127.0.0.1", server_port)) as (_, port):
        waiting = [asyncio.create_task(who(port)) for _ in range(20)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"?")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        writer.close()
        async with serving(naming("restarted"), port=server_port):
            assert set(await asyncio.gather(*waiting)) == {"restarted"}


async def test_a_target_that_stays_unreachable_is_given_up() -> None:
    (closed,) = free_ports(1)
    before = open_files()
    target = Target("127.0.0.1", closed)
    async with relaying(lambda: target, patience_seconds=0.1) as (running, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await eventually(lambda: running.open_connections == 0)
    await eventually(lambda: open_files() <= before)


async def test_a_connection_without_a_target_is_closed_at_once() -> None:
    async with relaying(lambda: None) as (running, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await eventually(lambda: running.open_connections == 0)


async def test_each_connection_is_asked_for_once_and_stays_where_it_began() -> None:
    async with serving(echo) as first, serving(naming("second")) as second:
        current = first
        async with relaying(lambda: Target("127.0.0.1", current)) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
            current = second
            assert await who(port) == "second"
            writer.write(b"two")
            assert await reader.readexactly(3) == b"two"
            writer.close()


async def test_a_shortage_of_descriptors_makes_clients_wait_and_no_longer() -> None:
    async with relaying_to(naming("server")) as (running, port):
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        await eventually(lambda: running.open_connections == 3)
        late = socket.create_connection(("127.0.0.1", port))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        hoard: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 20, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    hoard.append(os.dup(0))
            for reader, writer in clients:  # those that are open go on
                writer.write(b"?")
                assert await reader.read() == b"server"
        finally:
            for number in hoard:
                os.close(number)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        late.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=late)
        writer.write(b"?")
        assert await asyncio.wait_for(reader.read(), 5) == b"server"
        for _, each in (*clients, (reader, writer)):
            each.close()


async def test_a_relay_that_was_stopped_in_a_shortage_does_not_begin_again() -> None:
    async with relaying_to(naming("server")) as (running, port):
        running._pause()
        running.stop()
        with socket.create_connection(("127.0.0.1", port)):
            await asyncio.sleep(relay._RETRY_SECONDS * 3)  # longer than the pause would have been
            assert running.accepted == 0


async def test_a_worker_that_made_the_shared_socket_blocking_does_not_block_the_daemon() -> None:
    async with serving(naming("server")) as server_port:
        (port,) = free_ports(1)
        with listeners.listen("127.0.0.1", port) as sock:
            running = Relay(sock, lambda _client: Target("127.0.0.1", server_port))
            running.start()
            sock.setblocking(True)
            assert await asyncio.wait_for(who(port), 5) == "server"
            await running.close()


async def test_a_stopped_relay_accepts_no_more_and_keeps_open_connections() -> None:
    async with relaying_to(echo) as (running, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        running.stop()
        with socket.create_connection(("127.0.0.1", port)):
            writer.write(b"two")
            assert await reader.readexactly(3) == b"two"
            assert running.accepted == 1
            assert queue_length(running.listener) == 1
            running.start()
            await eventually(lambda: running.accepted == 2)
        writer.close()


async def test_a_closed_relay_resets_open_connections_and_leaves_no_task() -> None:
    tasks = asyncio.all_tasks()
    async with relaying_to(echo) as (running, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        await running.close()
        with pytest.raises(ConnectionResetError):  # the answer is not whole, and says so
            await reader.read()
        writer.close()
    assert asyncio.all_tasks() == tasks


async def test_a_thousand_connections_leave_no_descriptor_behind() -> None:
    async with relaying_to(naming("server")) as (running, port):
        before = open_files()
        for _ in range(10):
            answers = await asyncio.gather(*(who(port) for _ in range(100)))
            assert set(answers) == {"server"}
        await eventually(lambda: running.open_connections == 0)
        await eventually(lambda: open_files() <= before)
        assert running.accepted == 1000


async def test_a_connection_comes_from_the_source_that_was_asked_for() -> None:
    async def tell_source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(writer.get_extra_info("peername")[0].encode())

    async with serving(tell_source) as server_port:
        target = Target("127.0.0.1", server_port, source="127.83.0.2")
        async with relaying(lambda: target) as (_, port):
            assert await who(port) == "127.83.0.2"


async def test_an_answer_to_an_upload_that_the_server_did_not_read_is_passed_on() -> None:
    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"too large")
        writer.write_eof()
        await asyncio.sleep(0.2)
        reset(writer.get_extra_info("socket").dup())
        writer.transport.abort()

    async with relaying_to(refuse) as (running, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(bytes(20_000_000))
        assert await asyncio.wait_for(reader.read(), 5) == b"too large"
        writer.write_eof()
        await writer.drain()  # the rest is dropped, and delays nothing
        await eventually(lambda: running.open_connections == 0)
        writer.close()


async def test_a_full_queue_is_waited_for_and_the_choice_is_made_anew() -> None:
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        stack.enter_context(socket.create_connection(full.getsockname(), 5))
        async with serving(naming("other")) as other:
            target = Target(*full.getsockname())
            async with relaying(lambda: target) as (running, port):
                asking = asyncio.create_task(who(port))
                await eventually(lambda: running.accepted == 1)
                target = Target("127.0.0.1", other)
                assert await asyncio.wait_for(asking, 5) == "other"
