"""The API stops in order: what has arrived is answered, and what comes later waits in the queue."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from atlas_supervisor.system.passed_sockets import PassedSockets
from tests.unit.supervisor.api.support import (
    BEARER,
    MemoryControl,
    Server,
    eventually,
    free_port,
    parse,
    read_all,
    running,
)

LATE = 8.0
HEAD = "GET /livez HTTP/1.1\r\nHost: {}\r\n"


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def client(server: Server) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.options.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answered(reader: asyncio.StreamReader) -> tuple[int, str | None]:
    """Return the status of the one answer on a connection, and what it says of the next."""
    async with asyncio.timeout(LATE):
        answer = parse(await read_all(reader))
    return answer.status, answer.headers.get("Connection")


async def test_a_request_that_arrives_while_the_api_stops_is_answered_and_the_last_one(
    tmp_path: Path,
) -> None:
    control = MemoryControl()
    control.go_on.clear()
    runs = running(tmp_path, control)
    server = await runs.__aenter__()
    async with client(server) as half, client(server) as silent, client(server) as kept:
        kept[1].write(f"{HEAD}\r\n".format(server.authority).encode())
        await kept[0].readuntil(b'"alive"}')
        half[1].write(HEAD.format(server.authority).encode())
        long = asyncio.create_task(server.tcp("POST", "/deploy/switch", headers=BEARER))
        await control.started.wait()

        stopping = asyncio.create_task(runs.__aexit__(None, None, None))
        await asyncio.sleep(0)  # it has begun
        half[1].write(b"\r\n")
        silent[1].write(f"{HEAD}\r\n".format(server.authority).encode())
        kept[1].write(f"{HEAD}\r\n".format(server.authority).encode())
        control.go_on.set()

        assert await answered(half[0]) == (200, "close")
        assert await answered(silent[0]) == (200, "close")
        assert await answered(kept[0]) == (200, "close")
        answer = await long
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        await stopping


async def test_a_stream_ends_properly_and_can_be_resumed(tmp_path: Path) -> None:
    runs = running(tmp_path)
    server = await runs.__aenter__()
    url = f"http://{server.authority}/deploy/events"
    async with aiohttp.ClientSession() as session, session.get(url, headers=BEARER) as response:
        await eventually(lambda: bool(server.control.feeds))
        await runs.__aexit__(None, None, None)
        async with asyncio.timeout(LATE):
            assert (await response.read()).startswith(b"retry: ")  # and no error at its end


@pytest.mark.parametrize("moved", [False, True], ids=["same port", "another port"])
async def test_clients_of_a_stopped_api_wait_for_the_next_one_that_gets_its_sockets(
    tmp_path: Path, moved: bool
) -> None:
    waiting: list[asyncio.Task[int]] = []
    passed = PassedSockets()

    async def ask(way: str) -> int:
        send = server.unix if way == "unix" else server.tcp
        return (await send("GET", "/livez")).status

    async def hand_over() -> None:
        for name, sock in server.sockets.items():
            passed.put(name, os.dup(sock.fileno()))
        ways = ["unix"] if moved else ["unix", "tcp"]
        waiting.extend(asyncio.create_task(ask(way)) for way in ways)
        await asyncio.sleep(0.05)  # they have connected
        server.options.socket_path.rename(tmp_path / "kept")  # an exec does not remove it

    async with running(tmp_path) as server:
        server.stopped = hand_over
    (tmp_path / "kept").rename(server.options.socket_path)
    port = free_port() if moved else server.options.port
    async with running(tmp_path, passed=passed, port=port) as server, asyncio.timeout(LATE):
        assert await asyncio.gather(*waiting) == [200] * len(waiting)
        assert (await server.tcp("GET", "/livez")).status == 200
        assert (await server.unix("GET", "/livez")).status == 200
    assert passed.close() == frozenset()


async def test_a_passed_unix_socket_without_its_name_is_replaced(tmp_path: Path) -> None:
    passed = PassedSockets()

    async def hand_over() -> None:
        passed.put("control-unix", os.dup(server.sockets["control-unix"].fileno()))

    async with running(tmp_path) as server:
        server.stopped = hand_over
    async with running(tmp_path, passed=passed) as server:
        assert (await server.unix("GET", "/livez")).status == 200
