"""The clients of WebSockets and server-sent events: each way of spoiling a stream is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from tests.acceptance.support import serving, until
from tests.loadclient import EventTraffic, Kind, Load, Reason, Report, WebSocketTraffic

WEBSOCKET = WebSocketTraffic("stream", 2, think=(0.0, 0.002), timeout=1.0)
EVENTS = EventTraffic("stream", 2, timeout=1.0)

Talk = Callable[[ServerConnection], Awaitable[None]]
Writer = asyncio.StreamWriter


@asynccontextmanager
async def talking(talk: Talk) -> Any:
    """Serve WebSockets that behave in this way."""
    async with serve(talk, "127.0.0.1", 0, close_timeout=0.2) as server:
        yield next(iter(server.sockets)).getsockname()[1]


async def found(port: int, kind: Kind) -> Report:
    """Run one kind of stream until something was lost, or some streams were told to go."""
    async with Load("127.0.0.1", port, [kind]) as load:
        tally = load.report.kinds[kind.name]
        await until(lambda: bool(tally.losses) or tally.goodbyes.total() >= 6)
        report = await load.stop()
    assert tally.sent == tally.answered + len(tally.losses)
    return report


def echo(message: str | bytes) -> str:
    return json.dumps({"message": message, "version": "v1"})


async def some(connection: ServerConnection, count: int = 3) -> None:
    for _ in range(count):
        await connection.send(echo(await connection.recv()))


async def says(code: int, connection: ServerConnection) -> None:
    await some(connection)
    await connection.close(code)


async def without_a_word(connection: ServerConnection) -> None:
    await some(connection)
    connection.transport.close()


async def resets(connection: ServerConnection) -> None:
    await some(connection)
    connection.transport.abort()


async def somebody_elses(connection: ServerConnection) -> None:
    await some(connection)
    await connection.send(echo("t99999"))
    await connection.wait_closed()


async def another_process(connection: ServerConnection) -> None:
    await some(connection)
    await connection.send(json.dumps({"message": await connection.recv(), "version": "v2"}))
    await connection.wait_closed()


async def silence(connection: ServerConnection) -> None:
    await some(connection)
    await connection.wait_closed()


async def keeps_an_answer(connection: ServerConnection) -> None:
    await some(connection)
    await connection.recv()
    await asyncio.sleep(0.4)  # it had the message all this time
    await connection.close(1012)


async def no_websocket_frames(connection: ServerConnection) -> None:
    await some(connection)
    connection.transport.write(b"\xff\xff not a frame")
    await connection.wait_closed()


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (lambda connection: says(1000, connection), Reason.WRONG_GOODBYE),
        (lambda connection: says(1011, connection), Reason.WRONG_GOODBYE),
        (without_a_word, Reason.NO_GOODBYE),
        (resets, Reason.NO_GOODBYE),
        (somebody_elses, Reason.WRONG_BODY),
        (another_process, Reason.WRONG_BODY),
        (silence, Reason.TIMEOUT),
        (keeps_an_answer, Reason.UNANSWERED),
        (no_websocket_frames, Reason.MALFORMED),
    ],
)
async def test_a_spoilt_websocket_is_a_loss(talk: Talk, reason: Reason) -> None:
    async with talking(talk) as port:
        report = await found(port, WEBSOCKET)
    assert {loss.reason for loss in report.losses} == {reason}
    assert report.total().answered >= 3


@pytest.mark.parametrize("code", [1001, 1012])
async def test_a_websocket_that_is_told_to_go_comes_back_and_nothing_is_lost(code: int) -> None:
    async with talking(lambda connection: says(code, connection)) as port:
        report = await found(port, WEBSOCKET)
    total = report.total()
    assert not report.losses
    assert total.goodbyes.keys() == {code}
    assert total.connections >= 6


async def test_a_server_that_knows_no_websocket_is_a_loss() -> None:
    async def plain(_reader: asyncio.StreamReader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with serving(plain) as port:
        report = await found(port, WEBSOCKET)
    assert {loss.reason for loss in report.losses} == {Reason.HANDSHAKE}


# Server-sent events: what a server does after three right ones.

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def event(number: int) -> bytes:
    return f'id: {number}\ndata: {{"version": "v1"}}\n\n'.encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (lambda _: b"", Reason.TRUNCATED),  # the connection ends, the answer does not
        (lambda following: chunk(event(following)[:-1]) + END, Reason.TRUNCATED),
        (lambda following: chunk(event(following))[:-9], Reason.TRUNCATED),
        (lambda following: chunk(event(following + 1)) + END, Reason.OUT_OF_ORDER),
        (lambda following: chunk(event(following - 1)) + END, Reason.OUT_OF_ORDER),
        (lambda _: chunk(b"data: no number\n\n") + END, Reason.WRONG_BODY),
        (lambda _: b"no chunk\r\n", Reason.MALFORMED),
    ],
)
async def test_a_spoilt_event_stream_is_a_loss(
    spoilt: Callable[[int], bytes], reason: Reason
) -> None:
    async with serving(lambda r, w: stream(r, w, spoilt)) as port:
        report = await found(port, EVENTS)
    assert {loss.reason for loss in report.losses} == {reason}
    assert report.total().answered >= 3


async def test_an_event_stream_that_ends_properly_is_resumed_and_nothing_is_lost() -> None:
    async with serving(lambda r, w: stream(r, w, lambda _: END)) as port:
        report = await found(port, EVENTS)
    total = report.total()
    assert not report.losses
    assert total.goodbyes.keys() == {0}
    assert total.answered >= 18


async def test_a_server_that_forgets_where_a_client_was_is_noticed() -> None:
    async with serving(lambda r, w: stream(r, w, lambda _: END, forgets=True)) as port:
        report = await found(port, EVENTS)
    assert {loss.reason for loss in report.losses} == {Reason.OUT_OF_ORDER}


async def stream(
    reader: asyncio.StreamReader,
    writer: Writer,
    then: Callable[[int], bytes],
    *,
    forgets: bool = False,
) -> None:
    """Answer with three numbered events, from where the client was, and then with `then`."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        last = 0 if forgets else int(head.partition("Last-Event-ID: ")[2].split("\r\n")[0] or 0)
        writer.write(HEAD + chunk(b": hello\n\n"))
        for number in range(last + 1, last + 4):
            writer.write(chunk(event(number)))
        writer.write(then(last + 4))
        await writer.drain()
    writer.close()
