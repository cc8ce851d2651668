"""The middleware under plain uvicorn, which knows nothing of the kit."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.unit.worker.asgi_support import (
    RUNNER,
    appears,
    close_code,
    opened_websocket,
    running,
)
from tests.unit.worker.support import (
    Client,
    counted,
    first_counted,
    make_counts_folder,
    until,
)

UVICORN = ["-m", "uvicorn", "--fd", "3", "--no-access-log"]
KINDS = {
    "h11 on asyncio": ["--http", "h11", "--loop", "asyncio"],
    "httptools on uvloop": ["--http", "httptools", "--loop", "uvloop"],
}

H11, HTTPTOOLS = KINDS.values()


async def test_the_middleware_reports_ready_answers_probes_and_sheds_when_retired(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, [*UVICORN, *HTTPTOOLS, "asgi_apps:wrapped"]) as (worker, reports):
        assert reports.lines == ["READY=1", "X_ATLAS_KIT=1"]
        async with Client.to(worker.port) as client:
            answer = await client.get(headers={"X-Atlas-Probe": "1"})
            assert answer.headers["x-atlas-instance"] == "the-instance"
            assert not answer.closes
            worker.retire()
            await until(lambda: _sheds(worker.port))
            assert (await client.get()).closes
            assert await client.is_closed()


async def _sheds(port: int) -> bool:
    async with Client.to(port) as client:
        return (await client.get()).closes


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_the_servers_stop_is_delayed_until_clients_know(
    tmp_path: Path, kind: list[str]
) -> None:
    """uvicorn alone closes idle connections at once, and announces nothing."""
    environ = {"ATLAS_IDLE_GRACE_SECONDS": "1"}
    async with (
        running(tmp_path, [*UVICORN, *kind, "asgi_apps:wrapped"], environ=environ) as (
            worker,
            reports,
        ),
        Client.to(worker.port) as slow,
        Client.to(worker.port) as idle,
    ):
        await idle.get()
        slow.send("/slow")
        await appears(tmp_path / "slow-began")
        worker.terminate()
        await until(lambda: reports.has("STOPPING=1"))
        assert (await idle.get("/go")).closes
        assert (await slow.answer()).body == b"slowly"
        # uvicorn raises the signal again when it is done.
        assert await worker.exit_code() == -signal.SIGTERM
        assert (tmp_path / "lifespan-ended").exists()
        assert not reports.has("X_ATLAS_CUT")
        # It accepts until uvicorn stops: no instance may be launched beside it.
        assert not reports.has("X_ATLAS_ACCEPTING")


@pytest.mark.parametrize(
    ("kind", "replaced", "code"), [(HTTPTOOLS, True, 1012), (H11, False, 1001)]
)
async def test_a_websocket_is_closed_with_the_code_of_the_reason(
    tmp_path: Path, kind: list[str], replaced: bool, code: int
) -> None:
    environ = {"ATLAS_IDLE_GRACE_SECONDS": "0.1"}
    async with (
        running(tmp_path, [*UVICORN, *kind, "asgi_apps:wrapped"], environ=environ) as (worker, _),
        Client.to(worker.port) as client,
    ):
        await opened_websocket(client)
        if replaced:
            worker.retire()
        else:
            worker.terminate()
        assert await close_code(client) == code
        assert await appears(tmp_path / "websocket-code") == str(code)


async def test_server_sent_events_end_after_an_event(tmp_path: Path) -> None:
    environ = {"ATLAS_IDLE_GRACE_SECONDS": "2"}
    async with (
        running(tmp_path, [*UVICORN, *HTTPTOOLS, "asgi_apps:wrapped"], environ=environ) as (
            worker,
            reports,
        ),
        Client.to(worker.port) as client,
        Client.to(worker.port) as other,
    ):
        await other.get()
        client.writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.reader.readuntil(b"ha\r\n")
        worker.terminate()
        await until(lambda: reports.has("STOPPING=1"))
        await other.get("/go")
        assert await client.reader.readexactly(14) == b"4\r\nlf\n\n\r\n0\r\n\r\n"


async def test_a_second_sigterm_closes_all_streams_and_cuts_no_request(tmp_path: Path) -> None:
    environ = {"ATLAS_IDLE_GRACE_SECONDS": "2", "ATLAS_DRAIN_TIMEOUT_SECONDS": "40"}
    async with (
        running(tmp_path, [*UVICORN, *H11, "asgi_apps:wrapped"], environ=environ) as (
            worker,
            reports,
        ),
        Client.to(worker.port) as slow,
        Client.to(worker.port) as first,
        Client.to(worker.port) as second,
        Client.to(worker.port) as other,
    ):
        slow.send("/slow")
        await appears(tmp_path / "slow-began")
        await opened_websocket(first)
        await opened_websocket(second)
        await other.get()
        worker.terminate()
        await until(lambda: reports.has("STOPPING=1"))
        worker.terminate()
        async with asyncio.timeout(10):
            assert [await close_code(client) for client in (first, second)] == [1001, 1001]
        await other.get("/go")
        assert (await slow.answer()).body == b"slowly"


async def test_an_application_without_a_lifespan_drains(tmp_path: Path) -> None:
    arguments = [*UVICORN, *HTTPTOOLS, "asgi_apps:wrapped_without_lifespan"]
    environ = {"ATLAS_IDLE_GRACE_SECONDS": "2"}
    async with (
        running(tmp_path, arguments, environ=environ) as (worker, reports),
        Client.to(worker.port) as client,
    ):
        await client.get()
        worker.terminate()
        await until(lambda: reports.has("STOPPING=1"))
        assert (await client.get()).closes


SERVERS = {
    "the runner": [*RUNNER, "asgi_apps:plain"],
    "the middleware": [*UVICORN, *H11, "asgi_apps:wrapped"],
}


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
async def test_requests_are_counted_by_what_became_of_them(
    tmp_path: Path, server: list[str]
) -> None:
    state_dir = make_counts_folder(tmp_path)
    async with running(tmp_path, server) as (worker, _):
        for path, mark in (("/", ""), ("/", "X-Atlas-Probe"), ("/fail", ""), ("/half", "")):
            async with Client.to(worker.port) as client:
                client.send(path, headers={mark: "1"} if mark else None)
                await client.reader.readuntil(b"\r\n\r\n")
        async with Client.to(worker.port) as client:
            client.send("/until-left")
            await appears(tmp_path / "waits")
        expected = {"begun": 4, "2xx": 1, "5xx": 2, "left": 1, "latencies": 3}
        await until(lambda: counted(state_dir) == expected)

        # Of a WebSocket the handshake counts.
        async with Client.to(worker.port) as client:
            await opened_websocket(client)
            expected |= {"begun": 5, "1xx": 1, "latencies": 4}
            await until(lambda: counted(state_dir) == expected)
        # The runner knows connections, and a WebSocket's handshake is on one that was handed over.
        firsts = (4, 2, 4) if server == SERVERS["the runner"] else (0, 0, 0)
        assert first_counted(state_dir) == firsts
        # A stream counts when it has ended.
        async with Client.to(worker.port) as client, Client.to(worker.port) as other:
            client.send("/answer")
            await client.reader.readuntil(b"\n\n")
            await until(lambda: counted(state_dir).get("begun") == 6)
            assert counted(state_dir) == {**expected, "begun": 6}
            await other.get("/go")
            expected |= {"begun": 7, "2xx": 3, "latencies": 6}
            await until(lambda: counted(state_dir) == expected)
