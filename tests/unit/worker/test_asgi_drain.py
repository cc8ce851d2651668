"""The ASGI runner as a process: it takes sockets, serves, retires and leaves."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from tests.apps.asgi_apps import LARGE
from tests.unit.worker.asgi_support import (
    KINDS,
    RUNNER,
    appears,
    close_code,
    opened_websocket,
    running,
)
from tests.unit.worker.support import LONGEST_BACKLOG, Client, backlog_of, port_of, until

PLAIN = [*RUNNER, "asgi_apps:plain"]

# Reading a connection differs between the two; what does not read one is tried under one of them.
both_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
H11, HTTPTOOLS = KINDS.values()


@both_kinds
async def test_both_sockets_are_served_and_the_kit_is_reported(
    tmp_path: Path, kind: list[str]
) -> None:
    async with running(tmp_path, [*PLAIN, *kind]) as (worker, reports):
        assert reports.lines == ["READY=1", "X_ATLAS_KIT=1"]
        for sock in (worker.public, worker.private):
            assert backlog_of(sock) == LONGEST_BACKLOG
            async with Client.to(port_of(sock)) as client:
                answer = await client.get(headers={"X-Atlas-Probe": "1"})
                assert (answer.status, answer.body) == (200, b"plain")
                assert answer.headers["x-atlas-instance"] == "the-instance"
                assert not answer.closes
                assert "x-atlas-instance" not in (await client.get()).headers
        # The queue is served until it is empty.
        worker.process.send_signal(signal.SIGSTOP)
        clients = [await asyncio.open_connection("127.0.0.1", worker.port) for _ in range(20)]
        for _, writer in clients:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        worker.terminate()
        worker.process.send_signal(signal.SIGCONT)
        for reader, writer in clients:
            assert (await Client(reader, writer).answer()).closes
            writer.close()
        assert await worker.exit_code() == 0
        assert (tmp_path / "lifespan-ended").exists()
        assert reports.has("X_ATLAS_ACCEPTING=0")
        assert not reports.has("X_ATLAS_CUT")


@both_kinds
async def test_a_retired_instance_sheds_connections_until_it_is_active_again(
    tmp_path: Path, kind: list[str]
) -> None:
    async with (
        running(tmp_path, [*PLAIN, *kind], environ={"ATLAS_IDLE_GRACE_SECONDS": "1"}) as (
            worker,
            _,
        ),
        Client.to(worker.port) as busy,
        Client.to(worker.port) as idle,
        Client.to(worker.port) as slow_reader,
        Client.to(worker.port) as upload,
    ):
        for client in (busy, idle):
            assert not (await client.get()).closes
        slow_reader.send("/large")
        await slow_reader.reader.readuntil(b"\r\n\r\n")
        worker.retire()
        await worker.shed()
        answer = await busy.get()
        assert answer.closes
        assert answer.headers["connection"] == "close"
        assert await busy.is_closed()
        # An answer before the whole body came: a close would be a reset that takes it back.
        size = 2_000_000
        upload.writer.write(
            f"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        assert (await upload.answer()).body == b"too large"
        upload.writer.write(b"x" * size)
        await upload.writer.drain()
        assert (await upload.get()).closes
        assert await idle.is_closed()
        # The grace is over for this one too; but its answer was not yet taken.
        assert len(await slow_reader.reader.readexactly(LARGE)) == LARGE
        worker.activate()
        await worker.kept()


@both_kinds
async def test_current_and_pipelined_requests_are_answered_after_sigterm(
    tmp_path: Path, kind: list[str]
) -> None:
    async with (
        running(tmp_path, [*PLAIN, *kind]) as (worker, reports),
        Client.to(worker.port) as slow,
        Client.to(worker.port) as other,
    ):
        await other.get()
        slow.send("/slow")
        slow.send("/one")
        slow.send("/two")
        await appears(tmp_path / "slow-began")
        worker.terminate()
        await until(lambda: reports.has("STOPPING=1"))
        assert (await other.get("/go")).closes
        answers = [await slow.answer() for _ in range(3)]
        assert [answer.body for answer in answers] == [b"slowly", b"plain", b"plain"]
        assert [answer.closes for answer in answers] == [False, False, True]
        assert await slow.is_closed()
        assert await worker.exit_code() == 0


@both_kinds
async def test_a_partial_request_head_is_waited_for(tmp_path: Path, kind: list[str]) -> None:
    async with (
        running(tmp_path, [*PLAIN, *kind], environ={"ATLAS_IDLE_GRACE_SECONDS": "0.05"}) as (
            worker,
            _,
        ),
        Client.to(worker.port) as half,
        Client.to(worker.port) as idle,
    ):
        assert not (await half.get()).closes
        half.writer.write(b"GET / HTTP/1.1\r\nHost: te")
        await idle.get()
        worker.terminate()
        assert await idle.is_closed()
        half.writer.write(b"st\r\n\r\n")
        assert (await half.answer()).closes
        assert await worker.exit_code() == 0


async def test_background_work_after_the_response_is_waited_for(tmp_path: Path) -> None:
    async with (
        running(tmp_path, [*PLAIN, *HTTPTOOLS]) as (worker, reports),
        Client.to(worker.port) as client,
        Client.to(worker.port) as other,
    ):
        await other.get()
        worker.terminate()
        await until(lambda: reports.has("STOPPING=1"))
        assert (await client.get("/afterwards")).closes
        assert await client.is_closed()
        assert (await other.get("/go")).closes
        assert await worker.exit_code() == 0
        assert (tmp_path / "afterwards-done").exists()


async def test_a_message_is_answered_before_its_websocket_is_closed(tmp_path: Path) -> None:
    environ = {"ATLAS_IDLE_GRACE_SECONDS": "2"}
    async with (
        running(tmp_path, [*PLAIN, *HTTPTOOLS], environ=environ) as (worker, reports),
        Client.to(worker.port) as client,
        Client.to(worker.port) as other,
    ):
        await opened_websocket(client)
        await other.get()
        client.writer.write(b"\x81\x84\0\0\0\0work")
        await appears(tmp_path / "socket-works")
        worker.terminate()
        await until(lambda: reports.has("STOPPING=1"))
        await other.get("/go")
        assert await client.reader.readexactly(6) == b"\x81\x04work"
        assert await close_code(client) == 1001
        assert await worker.exit_code() == 0


@pytest.mark.parametrize(
    ("kind", "replaced", "code"), [(H11, True, 1012), (HTTPTOOLS, False, 1001)]
)
async def test_a_websocket_is_closed_with_the_code_of_the_reason(
    tmp_path: Path, kind: list[str], replaced: bool, code: int
) -> None:
    async with (
        running(tmp_path, [*PLAIN, *kind]) as (worker, reports),
        Client.to(worker.port) as client,
    ):
        await opened_websocket(client)
        if replaced:
            worker.retire()
        else:
            worker.terminate()
        assert await close_code(client) == code
        assert await appears(tmp_path / "websocket-code") == str(code)
        worker.terminate()
        assert await worker.exit_code() == 0
        assert not reports.has("X_ATLAS_CUT")


async def test_server_sent_events_end_after_an_event_and_never_within_one(tmp_path: Path) -> None:
    async with (
        running(tmp_path, [*PLAIN, *H11]) as (worker, reports),
        Client.to(worker.port) as client,
        Client.to(worker.port) as other,
    ):
        await other.get()
        client.writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await client.reader.readuntil(b"ha\r\n")
        assert b"connection: close" not in head
        worker.terminate()
        await until(
            lambda: reports.has('X_ATLAS_LEFT={"requests": 0, "websockets": 0, "event_streams": 1')
        )
        assert (await other.get("/go")).closes
        rest = await client.reader.read()
        assert rest == b"4\r\nlf\n\n\r\n0\r\n\r\n"
        assert await worker.exit_code() == 0


async def test_a_second_sigterm_closes_all_streams_and_cuts_no_request(tmp_path: Path) -> None:
    async with (
        running(tmp_path, [*PLAIN, *HTTPTOOLS]) as (worker, reports),
        Client.to(worker.port) as slow,
        Client.to(worker.port) as other,
        Client.to(worker.port) as first,
        Client.to(worker.port) as second,
        Client.to(worker.port) as head,
    ):
        await other.get()
        slow.send("/slow")
        # Its client has the response, but the application still runs.
        head.send("/events", method="HEAD")
        await head.answer()
        await appears(tmp_path / "slow-began")
        await opened_websocket(first)
        await opened_websocket(second)
        worker.terminate()
        await until(lambda: reports.has("STOPPING=1"))
        worker.terminate()
        # By the spread alone the last would be closed after ten seconds.
        async with asyncio.timeout(5):
            assert [await close_code(client) for client in (first, second)] == [1001, 1001]
        await other.get("/go")
        assert (await slow.answer()).body == b"slowly"
        assert await worker.exit_code() == 0
        assert not reports.has("X_ATLAS_CUT")


@both_kinds
async def test_exchanges_cut_at_the_hard_deadline_are_reported(
    tmp_path: Path, kind: list[str]
) -> None:
    """A handler that does not end, and two clients that read nothing, their buffers full."""
    environ = {"ATLAS_DRAIN_TIMEOUT_SECONDS": "1.5"}
    async with (
        running(tmp_path, [*PLAIN, *kind], environ=environ) as (worker, reports),
        Client.to(worker.port) as stuck,
        Client.to(worker.port) as websocket,
        Client.to(worker.port) as events,
        Client.to(worker.port) as other,
    ):
        stuck.send("/stuck")
        await appears(tmp_path / "stuck-began")
        await opened_websocket(websocket, "/ws-flood")
        events.send("/events-flood")
        await appears(tmp_path / "ws-flood-is-stuck")
        await appears(tmp_path / "events-flood-is-stuck")
        await other.get()
        worker.terminate()
        await until(lambda: reports.has("STOPPING=1"))
        assert (await other.get()).closes
        assert (await stuck.answer()).status == 500
        assert await worker.exit_code(seconds=5) == 0
        assert reports.has("X_ATLAS_CUT=")
        (cut,) = [line for line in reports.lines if line.startswith("X_ATLAS_CUT=")]
        assert json.loads(cut.partition("=")[2]) == {
            "requests": 1,
            "websockets": 1,
            "event_streams": 1,
            "idle": 0,
        }
        assert (tmp_path / "lifespan-ended").exists()


async def test_events_in_response_to_a_post_are_not_closed(tmp_path: Path) -> None:
    async with (
        running(tmp_path, [*PLAIN, *HTTPTOOLS], environ={"ATLAS_IDLE_GRACE_SECONDS": "1"}) as (
            worker,
            reports,
        ),
        Client.to(worker.port) as client,
        Client.to(worker.port) as other,
    ):
        await other.get()
        client.writer.write(b"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await client.reader.readuntil(b"1\n\n\r\n")
        worker.terminate()
        await until(lambda: reports.has('X_ATLAS_LEFT={"requests": 1, "websockets": 0'))
        await other.get("/go")
        assert await client.reader.readuntil(b"\r\n0\r\n\r\n") == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"
        assert await worker.exit_code() == 0
