"""Who gets a place, and who loses one: attacked by clients that take places and do nothing."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from structlog.testing import capture_logs

from atlas_supervisor.api import acceptor, examples, security
from atlas_supervisor.model.deploy import DeployRecord
from tests.unit.supervisor.api.support import (
    BEARER,
    MemoryControl,
    Server,
    eventually,
    running,
)

LATE = 8.0
GET = "GET /livez HTTP/1.1"
ALIVE = b'{"status":"alive"}'
RESET = struct.pack("ii", 1, 0)
ASSET = "/docs/swagger-ui-bundle.js"


def head(server: Server, *lines: str) -> bytes:
    return "\r\n".join([lines[0], f"Host: {server.authority}", *lines[1:], "", ""]).encode()


@contextmanager
def connected(server: Server, data: bytes = b"") -> Iterator[socket.socket]:
    """Connect, send this, and read nothing."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.options.port))
        sock.sendall(data)
        sock.setblocking(False)
        yield sock


@contextmanager
def many(server: Server, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connected(server, data)) for _ in range(count)]


Kept = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def kept(server: Server, count: int, *lines: str) -> AsyncIterator[list[Kept]]:
    """Have connections that were answered once and are idle."""
    found = []
    async with AsyncExitStack() as stack:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.options.port)
            stack.callback(writer.close)
            writer.write(head(server, GET, *lines))
            await reader.readuntil(ALIVE)
            found.append((reader, writer))
        yield found


async def ended(sock: socket.socket) -> None:
    """Wait until the other end has ended the connection."""
    try:
        while await asyncio.get_running_loop().sock_recv(sock, 65536):
            pass
    except ConnectionResetError:
        pass


async def test_the_oldest_idle_connection_makes_room_for_a_new_one(tmp_path: Path) -> None:
    async with running(tmp_path, max_connections=3) as server, kept(server, 3) as idle:
        assert (await server.tcp("GET", "/livez")).status == 200
        async with asyncio.timeout(LATE):
            with pytest.raises(ConnectionResetError):
                await idle[0][0].read()
        assert not idle[2][0].at_eof()


async def test_busy_connections_are_not_closed_for_new_ones(tmp_path: Path) -> None:
    control = MemoryControl()
    control.go_on.clear()
    async with running(tmp_path, control, max_connections=2) as server:
        working = [
            asyncio.create_task(server.tcp("POST", "/deploy/switch", headers=BEARER))
            for _ in range(2)
        ]
        async with asyncio.timeout(LATE):
            await eventually(lambda: len(control.asked) == 2)
            assert await server.raw(head(server, GET)) == b""  # full: closed at once
            assert (await server.unix("GET", "/livez")).status == 200  # a bound of its own
        control.go_on.set()
        assert [answer.status for answer in await asyncio.gather(*working)] == [200, 200]


@pytest.mark.parametrize(
    "opening",
    [
        [],
        ["GET /livez HTTP/1.1", "X: unfinished"],
        [GET, "Content-Length: 100"],
        [GET, "Transfer-Encoding: chunked"],
        ["POST /deploy/mode HTTP/1.1", "Content-Length: 60000"],
        [f"GET {ASSET} HTTP/1.1"],
    ],
    ids=["silent", "half a head", "no body", "no chunk", "refused body", "unread answer"],
)
async def test_connections_that_wait_for_their_client_keep_no_one_out(
    tmp_path: Path, opening: list[str]
) -> None:
    async with running(tmp_path, max_connections=8) as server:
        data = head(server, *opening) if opening else b""
        data = data.removesuffix(b"\r\n") if opening[1:] == ["X: unfinished"] else data
        with many(server, 40, data):
            async with asyncio.timeout(LATE):
                for _ in range(5):
                    assert (await server.tcp("GET", "/livez")).status == 200
                    answer = await server.tcp("GET", "/deploy/status", headers=BEARER)
                    assert answer.status == 200


async def test_an_idle_connection_of_a_caller_with_the_token_is_kept_in_a_flood(
    tmp_path: Path,
) -> None:
    token = f"Authorization: {BEARER['Authorization']}"
    async with (
        running(tmp_path, max_connections=8) as server,
        kept(server, 1, token) as [(reader, writer)],
        asyncio.timeout(LATE),
    ):
        with many(server, 40, head(server, GET)) as flood:
            await ended(flood[0])
            writer.write(head(server, GET, token))
            assert await reader.readuntil(ALIVE)


async def test_a_quarter_of_the_places_is_for_callers_with_the_token(tmp_path: Path) -> None:
    async with (
        running(tmp_path, max_connections=8) as server,
        kept(server, 6) as idle,
        asyncio.timeout(LATE),
    ):
        answers = [server.tcp("GET", "/livez", headers=BEARER) for _ in range(2)]
        assert [each.status for each in await asyncio.gather(*answers)] == [200, 200]
        assert not any(reader.at_eof() for reader, _ in idle)
        assert (await server.tcp("GET", "/livez")).status == 200
        with pytest.raises(ConnectionResetError):
            await idle[0][0].read()


async def test_a_wrong_token_gives_no_place_of_its_own(tmp_path: Path) -> None:
    wrong = "Authorization: Bearer wrong"
    async with (
        running(tmp_path, max_connections=4) as server,
        kept(server, 3, wrong) as idle,
        asyncio.timeout(LATE),
    ):
        assert (await server.tcp("GET", "/livez", headers={"Authorization": "Bearer x"})).status
        with pytest.raises(ConnectionResetError):
            await idle[0][0].read()


async def what_is_left(sock: socket.socket) -> int:
    """Return how much there was to read until the connection was reset."""
    loop, size = asyncio.get_running_loop(), 0
    while True:
        try:
            data = await loop.sock_recv(sock, 65536)
        except ConnectionResetError:
            return size
        assert data, "it ended properly"
        size += len(data)


async def has_answer(sock: socket.socket) -> None:
    """Wait until the beginning of an answer has arrived, and leave it there."""
    await eventually(lambda: bool(select.select([sock], [], [], 0)[0]))


async def test_a_connection_that_lost_its_place_is_reset_without_the_rest_of_its_answer(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, max_connections=2) as server, asyncio.timeout(LATE):
        with connected(server, head(server, f"GET {ASSET} HTTP/1.1")) as stuck:
            await has_answer(stuck)
            async with kept(server, 2):
                assert await what_is_left(stuck) < 300_000  # of more than a million


async def test_answers_that_are_not_read_end_the_oldest_beyond_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = examples.SWITCHED.model_copy(update={"reason": "x" * 1_000_000})
    monkeypatch.setattr(security, "MOST_UNSENT", 2_500_000)
    async with (
        running(tmp_path, MemoryControl(records={"d1": record})) as server,
        asyncio.timeout(LATE),
    ):
        request = head(server, "GET /deploy/d1 HTTP/1.1")
        with connected(server, request) as first:
            await has_answer(first)
            with connected(server, request) as second:
                await has_answer(second)
                answer = await server.tcp("GET", "/deploy/d1")  # makes room for itself
                assert await what_is_left(first) < 300_000
    assert len(answer.body) > 1_000_000


async def test_streams_without_the_token_leave_room_for_those_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "MAX_STREAMS", 3)
    async with running(tmp_path) as server, asyncio.timeout(LATE):
        watching = head(server, "GET /deploy/events HTTP/1.1")
        with many(server, 5, watching):
            await eventually(lambda: sum(not feed.closed for feed in server.control.feeds) == 3)
            assert (await server.tcp("GET", "/deploy/events")).code == "too_many_streams"
            token = f"Authorization: {BEARER['Authorization']}"
            with many(server, 3, head(server, "GET /deploy/events HTTP/1.1", token)):
                await eventually(lambda: sum(not feed.closed for feed in server.control.feeds) == 6)
                answer = await server.tcp("GET", "/deploy/events", headers=BEARER)
                assert answer.code == "too_many_streams"


async def test_the_oldest_arrival_makes_room_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "MAX_ARRIVALS", 3)
    async with running(tmp_path) as server, asyncio.timeout(LATE):
        with many(server, 4) as silent:
            await ended(silent[0])
            assert (await server.tcp("GET", "/livez")).status == 200


async def test_a_flood_of_refused_requests_is_a_line_a_second(tmp_path: Path) -> None:
    async with running(tmp_path) as server, asyncio.timeout(LATE):
        with capture_logs() as lines:
            request = head(server, "POST /deploy/abort HTTP/1.1")
            last = head(server, "POST /deploy/abort HTTP/1.1", "Connection: close")
            for _ in range(5):
                assert (await server.raw(request * 30 + last)).count(b"token_required") == 31
            await eventually(lambda: sum(line.get("count", 1) for line in lines) == 5 * 31)
    refused = [line for line in lines if line["event"] == "api_refused"]
    assert refused[0]["code"] == "token_required"
    assert len(refused) < 10


async def test_each_refused_request_of_a_caller_with_the_token_is_logged(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        with capture_logs() as lines:
            for _ in range(3):
                answer = await server.tcp("GET", "/livez", params={"x": "1"}, headers=BEARER)
                assert answer.status == 400
    assert [line["event"] for line in lines if line["event"] == "api_refused"] == [
        "api_refused"
    ] * 3


async def test_requests_with_the_token_overtake_those_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "PAUSE_SECONDS", 0.5)
    async with running(tmp_path) as server, asyncio.timeout(LATE):
        with many(server, 30, head(server, GET) * 2):
            begun = asyncio.get_running_loop().time()
            assert (await server.tcp("GET", "/livez", headers=BEARER)).status == 200
            assert (await server.unix("GET", "/livez")).status == 200
            assert asyncio.get_running_loop().time() - begun < 0.5
            waiting = asyncio.create_task(server.tcp("GET", "/livez"))
            _, pending = await asyncio.wait([waiting], timeout=0.1)
            assert pending  # it waits for its turn
            waiting.cancel()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are for one alone."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.needs_root
async def test_another_users_connections_on_the_unix_socket_do_not_keep_the_daemons_user_out(
    open_folder: Path,
) -> None:
    async with running(open_folder, max_connections=4) as server, asyncio.timeout(LATE):
        server.options.socket_path.chmod(0o666)
        with ExitStack() as stack:
            os.seteuid(65534)
            try:
                for _ in range(20):
                    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                    sock.connect(str(server.options.socket_path))
                    sock.sendall(head(server, GET, "Content-Length: 100"))
            finally:
                os.seteuid(0)
            for _ in range(5):
                assert (await server.unix("GET", "/livez")).status == 200


async def test_long_histories_are_read_one_at_a_time_without_the_token(tmp_path: Path) -> None:
    control = Slow()
    async with running(tmp_path, control) as server, asyncio.timeout(LATE):
        anonymous = [asyncio.create_task(server.tcp("GET", "/deploy/history")) for _ in range(8)]
        await eventually(lambda: control.reading == 1)
        known = asyncio.create_task(server.tcp("GET", "/deploy/history", headers=BEARER))
        await eventually(lambda: control.reading == 2)
        assert (await server.tcp("GET", "/livez")).status == 200
        assert control.reading == 2
        control.may_end.set()
        answers = await asyncio.gather(known, *anonymous)
    assert [each.status for each in answers] == [200] * 9


@dataclass
class Slow(MemoryControl):
    """Its history takes until the test lets it end."""

    reading: int = 0
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    async def history(self, limit: int) -> list[DeployRecord]:
        self.reading += 1
        await self.may_end.wait()
        self.reading -= 1
        return []


async def test_a_client_that_leaves_without_its_body_is_no_error(tmp_path: Path) -> None:
    async with running(tmp_path) as server, asyncio.timeout(LATE):
        with capture_logs() as lines:
            for number in range(40):
                with connected(server, head(server, GET, "Content-Length: 100")) as sock:
                    if number % 2:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            counted = server.metrics.counted
            await eventually(lambda: len(counted) >= 20)
            assert (await server.tcp("GET", "/livez")).status == 200
    assert [line for line in lines if line["log_level"] == "error"] == []
    assert {status for _, _, status, _ in counted} == {200, 499}
