"""The event stream: its format, its end, and its limits."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from atlas_supervisor.api import acceptor, events
from atlas_supervisor.deploy.errors import stopping
from atlas_supervisor.errors import AtlasError
from tests.unit.supervisor.api.support import (
    MemoryControl,
    MemoryFeed,
    Server,
    eventually,
    parse,
    read_all,
    running,
)

LATE = 5.0
OPENING = b"retry: 1000\nid: 7\n\n"
END = b"0\r\n\r\n"


@asynccontextmanager
async def stream(
    server: Server, target: str = "/deploy/events", *lines: str
) -> AsyncIterator[asyncio.StreamReader]:
    """Open a stream as a client does that reads; its headers are read already."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.options.port)
    try:
        writer.write(request(server, target, *lines))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        yield reader
    finally:
        writer.close()


def request(server: Server, target: str = "/deploy/events", *lines: str) -> bytes:
    head = [f"GET {target} HTTP/1.1", f"Host: {server.authority}", *lines]
    return "\r\n".join([*head, "", ""]).encode()


async def part(reader: asyncio.StreamReader) -> bytes:
    """Return the next part that was sent."""
    async with asyncio.timeout(LATE):
        size = int(await reader.readline(), 16)
        return (await reader.readexactly(size + 2))[:-2]


async def deaf(server: Server) -> socket.socket:
    """Return a client that asks for events and never reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", server.options.port))
    await loop.sock_sendall(client, request(server))
    return client


def floods(feed: MemoryFeed) -> None:
    """Put more into a feed than any socket holds."""
    for number in range(300):
        feed.tell(number, cause="x" * 64 * 1024)


async def test_each_event_is_sent_with_its_id_as_one_line_of_json(tmp_path: Path) -> None:
    async with running(tmp_path) as server, stream(server) as reader:
        assert await part(reader) == OPENING
        (feed,) = server.control.feeds
        feed.tell(8, cause="two\nlines")
        feed.tell(None)
        lines = (await part(reader)).split(b"\n")
        assert lines[:2] == [b"id: 8", b"event: transition"]
        assert lines[3:] == [b"", b""]
        assert json.loads(lines[2].removeprefix(b"data: "))["cause"] == "two\nlines"
        assert (await part(reader)).startswith(b"event: transition\ndata: {")


async def test_a_stream_has_its_content_type_and_closes_the_connection(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as server:
        answer = await server.head("HEAD /deploy/events HTTP/1.1", f"Host: {server.authority}")
        assert answer.status == 200
        assert answer.body == b""
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Connection"] == "close"
        assert server.control.feeds[0].closed


async def test_a_silent_stream_sends_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "SILENCE_SECONDS", 0.05)
    async with running(tmp_path) as server, stream(server) as reader:
        assert await part(reader) == OPENING
        assert await part(reader) == b": still here\n\n"
        assert await part(reader) == b": still here\n\n"
        server.control.feeds[0].tell(8)
        assert (await part(reader)).startswith(b"id: 8\n")


async def test_a_feed_that_can_not_resume_sends_a_reset_with_an_id(tmp_path: Path) -> None:
    def reset(feed: MemoryFeed) -> None:
        feed.reset = 'event 9 is "gone"'

    control = MemoryControl(prepare=reset)
    async with running(tmp_path, control) as server, stream(server) as reader:
        message = json.dumps({"message": 'event 9 is "gone"'}).encode()
        assert await part(reader) == OPENING + b"id: 7\nevent: reset\ndata: " + message + b"\n\n"


async def test_the_last_event_id_header_wins_over_the_query(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        for target, lines in (
            ("/deploy/events", ()),
            ("/deploy/events?after=3&deploy_id=d1", ()),
            ("/deploy/events?after=3", ("Last-Event-ID: 5",)),
            ("/deploy/events", ("Last-Event-ID: 0",)),
        ):
            async with stream(server, target, *lines) as reader:
                await part(reader)
    asked = [(feed.after, feed.deploy_id) for feed in server.control.feeds]
    assert asked == [(None, None), (3, "d1"), (5, None), (0, None)]


@pytest.mark.parametrize(
    ("target", "lines", "code", "field"),
    [
        ("?after=-1", [], "invalid_query", "after"),
        ("?after=x", [], "invalid_query", "after"),
        ("?after=9223372036854775808", [], "invalid_query", "after"),
        ("?deploy_id=", [], "invalid_query", "deploy_id"),
        ("?deploy_id=a%00b", [], "invalid_query", "deploy_id"),
        ("?since=1", [], "invalid_query", "since"),
        ("", ["Last-Event-ID: x"], "invalid_header", "Last-Event-ID"),
        ("", ["Last-Event-ID: -1"], "invalid_header", "Last-Event-ID"),
        ("", ["Last-Event-ID: 9223372036854775808"], "invalid_header", "Last-Event-ID"),
        ("", ["Last-Event-ID: 1", "Last-Event-ID: 1"], "invalid_header", "Last-Event-ID"),
    ],
)
async def test_an_invalid_value_is_400_and_named(
    tmp_path: Path, target: str, lines: list[str], code: str, field: str
) -> None:
    async with running(tmp_path) as server:
        answer = parse(
            await server.raw(
                request(server, f"/deploy/events{target}", "Connection: close", *lines)
            )
        )
    assert (answer.status, answer.code) == (400, code)
    assert answer.json["error"]["field"] == field
    assert server.control.feeds == []


async def test_a_refusal_comes_before_the_stream_starts(tmp_path: Path) -> None:
    async with running(tmp_path, MemoryControl(refusal=stopping())) as server:
        answer = await server.tcp("GET", "/deploy/events")
    assert (answer.status, answer.code) == (503, "stopping")


@pytest.mark.parametrize("error", [AtlasError("the disk is gone"), ValueError("a bug")])
async def test_an_error_ends_the_stream_without_an_answer_in_it(
    tmp_path: Path, error: Exception
) -> None:
    async with running(tmp_path) as server, stream(server) as reader:
        await part(reader)
        server.control.feeds[0].waiting.put_nowait(error)
        async with asyncio.timeout(LATE):
            assert await reader.read() == END
        assert server.control.feeds[0].closed


async def test_a_stream_whose_feed_ends_is_ended_properly(tmp_path: Path) -> None:
    async with running(tmp_path) as server, stream(server) as reader:
        await part(reader)
        server.control.feeds[0].tell(8)
        server.control.feeds[0].waiting.put_nowait(None)
        async with asyncio.timeout(LATE):
            rest = await reader.read()
    assert b"id: 8\n" in rest
    assert rest.endswith(END)


async def test_a_client_that_leaves_ends_its_feed(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        async with stream(server) as reader:
            await part(reader)
            assert not server.control.feeds[0].closed
        async with asyncio.timeout(LATE):
            await eventually(lambda: server.control.feeds[0].closed)


async def test_only_a_client_that_does_not_read_is_disconnected(tmp_path: Path) -> None:
    async with running(tmp_path, receive_seconds=0.4) as server, stream(server) as reader:
        await part(reader)
        server.control.prepare = floods
        with await deaf(server):
            async with asyncio.timeout(LATE):
                await eventually(lambda: len(server.control.feeds) == 2)
                await eventually(lambda: server.control.feeds[1].closed)
        server.control.feeds[0].tell(8)
        assert (await part(reader)).startswith(b"id: 8\n")


async def test_a_silent_stream_outlives_the_request_timeout(tmp_path: Path) -> None:
    async with running(tmp_path, receive_seconds=0.1) as server, stream(server) as reader:
        await part(reader)
        for number in range(5):
            await asyncio.sleep(0.1)  # the time is what is tested
            server.control.feeds[0].tell(number)
            assert (await part(reader)).startswith(b"id: %d\n" % number)


async def test_streams_do_not_use_up_connections_for_requests(tmp_path: Path) -> None:
    async with (
        running(tmp_path, max_connections=1) as server,
        stream(server) as one,
        stream(server) as two,
    ):
        await part(one)
        await part(two)
        assert (await server.tcp("GET", "/livez")).status == 200
        server.control.feeds[0].tell(8)
        assert (await part(one)).startswith(b"id: 8\n")


async def test_streams_are_counted_and_one_too_many_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "MAX_STREAMS", 1)
    async with running(tmp_path) as server:
        async with stream(server) as reader:
            await part(reader)
            answer = await server.tcp("GET", "/deploy/events")
            assert (answer.status, answer.code) == (503, "too_many_streams")
            assert len(server.control.feeds) == 1  # nothing was read for it
        async with asyncio.timeout(LATE):
            await eventually(lambda: server.control.feeds[0].closed)
        async with stream(server) as reader:
            assert await part(reader) == OPENING


async def test_stopping_the_daemon_ends_streams_properly_and_soon(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as clients, AsyncExitStack() as daemon:
        server = await daemon.enter_async_context(running(tmp_path, shutdown_seconds=4.0))
        reader = await clients.enter_async_context(stream(server))
        await part(reader)
        server.control.prepare = floods
        clients.enter_context(await deaf(server))
        async with asyncio.timeout(LATE):
            await eventually(lambda: len(server.control.feeds) == 2)
            await eventually(lambda: server.control.feeds[1].waiting.qsize() < 299)
        begun = loop.time()
        await daemon.aclose()
        assert loop.time() - begun < 2.0  # a client that does not read has half a second
        assert await read_all(reader) == END
        assert all(feed.closed for feed in server.control.feeds)
