"""Limits on size, time and number of requests, tested by misbehaving clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from atlas_supervisor.api import examples
from tests.unit.supervisor.api.support import (
    BEARER,
    TOKEN,
    MemoryControl,
    Server,
    parse,
    read_all,
    running,
)

SOON = 0.4  # seconds that a client has for a request here
IN_TIME = 2.0  # where nothing is sent late, and a busy machine must not make it so
LATE = 8.0  # by then it must be over; far above SOON, since the machine is shared


def post(server: Server, *lines: str) -> bytes:
    head = [
        "POST /deploy/mode HTTP/1.1",
        f"Host: {server.authority}",
        f"Authorization: Bearer {TOKEN}",
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode()


async def drip(server: Server, first: bytes, drop: bytes) -> bytes:
    """Send `first`, then `drop` again and again until the server has had enough."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.options.port)
    try:
        writer.write(first)
        reading = asyncio.create_task(read_all(reader))
        with contextlib.suppress(ConnectionError):
            while not reading.done():
                writer.write(drop)
                await writer.drain()
                await asyncio.wait([reading], timeout=0.02)
        return await reading
    finally:
        writer.close()


@pytest.mark.fault("Requests", "a huge body", "413, and it is not read")
async def test_a_body_over_the_limit_is_413_without_being_read(tmp_path: Path) -> None:
    async with running(tmp_path, receive_seconds=1.0) as server:
        answer = parse(await server.raw(post(server, "Content-Length: 99999999999")))
        assert (answer.status, answer.code) == (413, "body_too_large")
        body = b'{"release": "' + b"x" * (64 * 1024) + b'"}'
        answer = await server.tcp("POST", "/deploy/bluegreen", data=body, headers=BEARER)
        assert (answer.status, answer.code) == (413, "body_too_large")


async def test_a_body_of_just_the_limit_is_read(tmp_path: Path) -> None:
    body = b'{"mode": "single"}'.ljust(64 * 1024)
    headers = {**BEARER, "Content-Type": "application/json"}
    async with running(tmp_path) as server:
        assert (await server.tcp("POST", "/deploy/mode", data=body, headers=headers)).status == 200


async def test_a_body_in_chunks_over_the_limit_is_413(tmp_path: Path) -> None:
    async with running(tmp_path, receive_seconds=1.0) as server:
        chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        answer = parse(await drip(server, post(server, "Transfer-Encoding: chunked"), chunk))
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert server.control.asked == []


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n",
        b"GET /livez HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    ],
)
@pytest.mark.fault("Requests", "huge headers", "refused")
async def test_headers_over_any_limit_are_refused(tmp_path: Path, head: bytes) -> None:
    async with running(tmp_path) as server:
        answer = parse(await server.raw(head))
    assert (answer.status, answer.code) == (400, "bad_request")


async def test_a_connection_that_sends_nothing_is_closed(tmp_path: Path) -> None:
    async with running(tmp_path, receive_seconds=SOON) as server:
        async with asyncio.timeout(LATE):
            assert await server.raw(b"") == b""


@pytest.mark.fault("Requests", "slow headers", "cut off after 20 s")
async def test_dripped_headers_are_cut_off_with_408(tmp_path: Path) -> None:
    async with running(tmp_path, receive_seconds=SOON) as server:
        async with asyncio.timeout(LATE):
            answer = parse(await drip(server, b"GET /livez HTTP/1.1\r\nX: ", b"a"))
    assert (answer.status, answer.code) == (408, "too_slow")
    assert answer.headers["Connection"] == "close"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("framing", "drop"),
    [("Content-Length: 60000", b" "), ("Transfer-Encoding: chunked", b"1\r\n \r\n")],
)
@pytest.mark.fault("Requests", "a slow body", "cut off after 20 s")
async def test_a_dripped_body_is_cut_off_with_408(
    tmp_path: Path, framing: str, drop: bytes
) -> None:
    async with running(tmp_path, receive_seconds=SOON) as server:
        async with asyncio.timeout(LATE):
            answer = parse(await drip(server, post(server, framing), drop))
    assert (answer.status, answer.code) == (408, "too_slow")
    assert server.control.asked == []


async def test_a_content_length_beyond_the_body_is_408(tmp_path: Path) -> None:
    async with running(tmp_path, receive_seconds=SOON) as server:
        async with asyncio.timeout(LATE):
            answer = parse(await server.raw(post(server, "Content-Length: 100") + b"{}"))
    assert (answer.status, answer.code) == (408, "too_slow")
    assert server.control.asked == []


async def test_headers_and_body_share_one_deadline(tmp_path: Path) -> None:
    async with running(tmp_path, receive_seconds=1.0) as server:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.options.port)
        head = post(server, "Content-Length: 100")
        writer.write(head[:-2])
        loop.call_later(0.6, writer.write, head[-2:])
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        assert loop.time() - begun < 1.5  # 1.6 at least if the body had a time of its own
        writer.close()


async def test_the_body_of_a_refused_request_is_read_for_a_short_time_only(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, receive_seconds=SOON) as server:
        head = post(server, "Content-Length: 60000").replace(TOKEN.encode(), b"wrong")
        async with asyncio.timeout(LATE):
            answer = parse(await drip(server, head, b" "))
    assert (answer.status, answer.code) == (401, "token_wrong")


async def test_an_idle_connection_is_closed_and_a_used_one_kept(tmp_path: Path) -> None:
    async with running(tmp_path, receive_seconds=SOON) as server:
        request = f"GET /livez HTTP/1.1\r\nHost: {server.authority}\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.options.port)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while loop.time() < begun + 3 * SOON:  # each request is well in time, all are not
            writer.write(request)
            await reader.readuntil(b'{"status":"alive"}')
            await asyncio.sleep(SOON / 6)
        async with asyncio.timeout(LATE):
            assert await reader.read() == b""
        writer.close()


async def test_a_client_that_does_not_read_its_answers_is_disconnected(tmp_path: Path) -> None:
    async with running(tmp_path, receive_seconds=SOON) as server:
        request = f"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: {server.authority}\r\n\r\n"
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", server.options.port))
            await loop.sock_sendall(client, request.encode() * 20)
            async with asyncio.timeout(LATE):
                while True:  # not a byte is read; the reset shows in writing
                    try:
                        await loop.sock_sendall(client, b"\r\n")
                    except ConnectionError:
                        break
                    await asyncio.sleep(0.02)


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with running(tmp_path, MemoryControl(records={"d1": examples.FAILED})) as server:
        paths = ["/livez", "/deploy/d1", "/nope", "/readyz"] * 25
        wire = "".join(f"GET {path} HTTP/1.1\r\nHost: {server.authority}\r\n\r\n" for path in paths)
        last = f"GET /livez HTTP/1.1\r\nHost: {server.authority}\r\nConnection: close\r\n\r\n"
        data = await server.raw((wire + last).encode())
    statuses = [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 404, 200] * 25 + [200]


SMUGGLED = b"GET /deploy/smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize(
    "framing",
    [
        ["Content-Length: 0", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 0", "Content-Length: 54"],
        ["Content-Length: 0, 54"],
        ["Content-Length: +0"],
        ["Content-Length: -1"],
        ["Content-Length: 0x0"],
        ["Content-Length : 0"],
        ["Content-Length: 99999999999999999999999999"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding:\x0bchunked"],
        ["X: y\nTransfer-Encoding: chunked"],
        ["X: y\rContent-Length: 54"],
        ["X: \x00"],
        ["X\x00: y"],
        [" Content-Length: 0"],
    ],
)
async def test_ambiguous_requests_are_refused(tmp_path: Path, framing: list[str]) -> None:
    async with running(tmp_path, receive_seconds=IN_TIME) as server:
        async with asyncio.timeout(LATE):
            data = await server.raw(post(server, *framing) + b"0\r\n\r\n" + SMUGGLED)
    assert data.count(b"HTTP/1.") == 1, data
    answer = parse(data)
    assert (answer.status, answer.code) == (400, "bad_request")
    assert server.control.asked == []


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"2\n{}\n0\n\n",
        b"ffffffffffffffffff\r\n{}",
        b"2\r\n{}XX0\r\n\r\n",
    ],
)
async def test_a_broken_chunk_is_400(tmp_path: Path, chunks: bytes) -> None:
    async with running(tmp_path, receive_seconds=IN_TIME) as server:
        async with asyncio.timeout(LATE):
            data = await server.raw(post(server, "Transfer-Encoding: chunked") + chunks)
    assert parse(data).status == 400
    assert server.control.asked == []


@pytest.mark.parametrize(
    "wire",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET  /livez HTTP/1.1\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"FROB /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example:80\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http:/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nExpect: nonsense\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: \xff\r\nConnection: close\r\n\r\n",
    ],
)
async def test_invalid_http_is_4xx_in_the_common_shape(tmp_path: Path, wire: bytes) -> None:
    async with running(tmp_path, receive_seconds=IN_TIME) as server:
        async with asyncio.timeout(LATE):
            answer = parse(await server.raw(wire))
    assert 400 <= answer.status < 500
    assert set(answer.json["error"]) == {"code", "message", "hint"}
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_an_upgrade_request_is_ignored(tmp_path: Path) -> None:
    async with running(tmp_path, receive_seconds=IN_TIME) as server:
        lines = (
            "GET /livez HTTP/1.1",
            f"Host: {server.authority}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        )
        async with asyncio.timeout(LATE):
            answer = parse(await server.raw("\r\n".join([*lines, "", ""]).encode()))
    assert answer.status == 200
