"""The kit under aiohttp, as a real process with inherited sockets and raw connections."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web

from atlas_worker.aiohttp import _Listening
from atlas_worker.sockets import Listener, open_listener
from tests.unit.worker.support import (
    LONGEST_BACKLOG,
    Client,
    Worker,
    backlog_of,
    end,
    first_counted,
    launch,
    listening_socket,
    make_counts_folder,
    port_of,
    running_worker,
    until,
)

GRACE = "0.6"
PATIENT = {"ATLAS_IDLE_GRACE_SECONDS": "60"}
BRIEF = {"ATLAS_IDLE_GRACE_SECONDS": GRACE}


async def test_both_sockets_are_served_and_left_unchanged(tmp_path: Path) -> None:
    state_dir = make_counts_folder(tmp_path)
    async with running_worker(tmp_path) as worker:
        assert worker.notifications == ["READY=1\nX_ATLAS_KIT=1"]
        for sock in (worker.public, worker.private):
            assert backlog_of(sock) == LONGEST_BACKLOG
            async with Client.to(port_of(sock)) as client:
                assert (await client.get()).json()["instance"] == "the-instance"
                for path in ("/health", "/no/such/path"):
                    probed = await client.get(path, headers={"X-Atlas-Probe": "1"})
                    assert probed.headers["x-atlas-instance"] == "the-instance"
                assert "x-atlas-instance" not in (await client.get("/health")).headers
        # Of a connection by the public socket, the first request is evidence.
        assert first_counted(state_dir) == (1, 0, 1)
        await _echoes_what_is_encoded(worker)
        await _answers_early(worker)
        await worker.kept()
        began = time.monotonic()
        worker.terminate()
        while (
            time.monotonic() < began + 0.15
        ):  # connections that arrive while it settles are served
            async with Client.to(worker.port) as client:
                assert (await client.get()).status == 200
        assert await worker.exit_code() == 0
        # 0.25 s of settling and the interpreter's own end; the bound allows for a busy machine.
        assert time.monotonic() - began < 3
        # The queue still takes connections: a successor may serve them.
        with socket.create_connection(("127.0.0.1", worker.port), timeout=5):
            conn, _ = await asyncio.get_running_loop().sock_accept(worker.public)
            conn.close()


async def _echoes_what_is_encoded(worker: Worker) -> None:
    async with Client.to(worker.port) as client:
        client.send(
            "/echo", method="POST", body=b"not gzip at all", headers={"Content-Encoding": "gzip"}
        )
        answer = await client.answer()
        assert answer.body == b"not gzip at all"
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["x-atlas-version"] == "1.2.3"


async def _answers_early(worker: Worker) -> None:
    async with Client.to(worker.port) as client:
        client.send("/features/web", method="POST", body=b"x" * (5 * 1024 * 1024))
        assert (await client.answer()).status == 413


async def test_a_worker_that_was_never_active_keeps_connections(tmp_path: Path) -> None:
    async with (
        running_worker(tmp_path, active=False, environ=BRIEF) as worker,
        Client.to(worker.port) as client,
    ):
        assert not (await client.get()).closes  # there is no state file yet
        worker.retire()  # another instance is active
        began = time.monotonic()
        while time.monotonic() < began + 0.3:
            assert not (await client.get()).closes


async def test_a_worker_keeps_connections_until_it_is_retired_and_when_active_again(
    tmp_path: Path,
) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker:
        async with Client.to(worker.port) as client:
            for _ in range(20):
                assert not (await client.get()).closes
            began = time.monotonic()
            worker.retire()
            async with Client.to(worker.port) as busy:
                await worker.shed()
                # In one piece, so that the worker has all of them before it answers the first.
                busy.writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" * 3)
                answers = [await busy.answer() for _ in range(3)]
                assert [answer.closes for answer in answers] == [False, False, True]
                assert await busy.is_closed()
            assert await client.is_closed()
            assert time.monotonic() - began >= float(GRACE)
        worker.activate()
        await worker.kept()
        async with Client.to(worker.port) as client:
            began = time.monotonic()
            while time.monotonic() < began + 1.5 * float(GRACE):
                assert not (await client.get()).closes
                await asyncio.sleep(0.1)  # a client's pause, not synchronisation
        done = asyncio.Event()
        loops = [asyncio.create_task(_keep_asking(worker, done)) for _ in range(8)]
        for _ in range(3):
            worker.retire()
            await worker.shed()
            worker.activate()
            await worker.kept()
        done.set()
        counts = await asyncio.gather(*loops)
        assert all(count > 0 for count in counts)


async def test_requests_in_progress_are_answered_after_sigterm(tmp_path: Path) -> None:
    """All of it at once: a slow answer, a dripped upload, a dripped head, and the queue."""
    async with running_worker(tmp_path, environ=BRIEF) as worker, AsyncExitStack() as stack:
        slow, upload, head, silent, stray = [
            await stack.enter_async_context(Client.to(worker.port)) for _ in range(5)
        ]
        for client in (head, stray):
            await client.get()
        stray.writer.write(b"\r\n")  # begins nothing
        slow.send("/slow?seconds=1.5")
        body = os.urandom(64 * 1024)
        upload.writer.write(
            b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        await worker.kept()
        worker.process.send_signal(signal.SIGSTOP)
        queued = [await stack.enter_async_context(Client.to(worker.port)) for _ in range(50)]
        for client in queued:
            client.send("/")
        began = time.monotonic()
        worker.terminate()
        worker.process.send_signal(signal.SIGCONT)
        quarter = len(body) // 4
        for number, piece in enumerate((b"GET / HT", b"TP/1.1\r\nHo", b"st: test\r\n", b"\r\n")):
            head.writer.write(piece)
            upload.writer.write(body[number * quarter : (number + 1) * quarter])
            await asyncio.sleep(0.3)  # dripped, for longer than the grace
        answers = [await client.answer() for client in (*queued, head, upload, slow)]
        assert all(answer.status == 200 and answer.closes for answer in answers)
        assert hashlib.sha256(answers[-2].body).digest() == hashlib.sha256(body).digest()
        assert answers[-1].json()["slept_seconds"] == 1.5
        assert await silent.is_closed()
        assert await stray.is_closed()
        assert time.monotonic() - began >= float(GRACE)
        assert await worker.exit_code(seconds=10) == 0


async def test_a_request_within_the_grace_is_answered_after_sigterm(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=PATIENT) as worker:
        async with Client.to(worker.port) as client:
            await client.get()
            worker.terminate()
            await worker.shed()
            answer = await client.get()
            assert answer.status == 200
            assert answer.closes
            assert await client.is_closed()
        assert await worker.exit_code() == 0


async def test_a_connection_with_an_unwritten_response_is_not_idle() -> None:
    async def large(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * 16_000_000)

    app = web.Application()
    app.add_routes([web.get("/", large)])
    async with _listening(app) as (listening, client):
        loop = asyncio.get_running_loop()
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        (connection,) = await until(listening.connections)
        await until(lambda: connection.transport and connection.transport.get_write_buffer_size())
        assert connection.idle_since() is None
        taken = b""
        while b"\r\n\r\n" not in taken:
            taken += await loop.sock_recv(client, 1)
        left = 16_000_000
        while left:
            left -= len(await loop.sock_recv(client, 1_000_000))
        await until(connection.idle_since)


async def test_a_connection_with_an_unread_request_is_not_closed() -> None:
    async with _listening(web.Application()) as (listening, client):
        await until(lambda: any(c.idle_since() for c in listening.connections()))
        (connection,) = listening.connections()
        # In the kernel's buffer, and this loop had no chance yet to read it.
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        connection.close_if_unread()
        answer = await asyncio.get_running_loop().sock_recv(client, 4096)
        assert answer.startswith(b"HTTP/1.1 404 ")
        await until(connection.idle_since)
        connection.close_if_unread()
        assert await asyncio.get_running_loop().sock_recv(client, 4096) == b""


@asynccontextmanager
async def _listening(app: web.Application) -> AsyncIterator[tuple[_Listening, socket.socket]]:
    """Serve in the test's own loop; gives a client's socket that is connected."""
    runner = web.AppRunner(app)
    await runner.setup()
    assert runner.server is not None
    listener = open_listener("127.0.0.1", 0)
    listening = _Listening(runner.server, [listener], {})
    await listening.start()
    try:
        with socket.create_connection(listener.socket.getsockname()) as client:
            client.setblocking(False)
            yield listening, client
    finally:
        listening.stop_accepting()
        await runner.cleanup()


async def test_the_hard_deadline_cuts_requests_that_do_not_end(tmp_path: Path) -> None:
    environ = {**PATIENT, "ATLAS_DRAIN_TIMEOUT_SECONDS": "1"}
    async with (
        running_worker(tmp_path, environ=environ) as worker,
        Client.to(worker.port) as slow,
        Client.to(worker.port) as idle,
    ):
        await idle.get()
        slow.send("/slow?seconds=30")
        began = time.monotonic()
        worker.terminate()
        queue = Listener("public", worker.public, inherited=True)

        async def accepts_no_more() -> bool:
            with socket.create_connection(("127.0.0.1", worker.port)):
                await asyncio.sleep(0.02)
                return queue.queue_length() > 0

        await until(accepts_no_more)
        # They are open here only: the group that they belong to must not shrink.
        held = worker.open_files()
        for sock in (worker.public, worker.private):
            assert f"socket:[{os.fstat(sock.fileno()).st_ino}]" in held
        assert await worker.exit_code() == 0
        assert 1 <= time.monotonic() - began < 5


async def test_a_second_sigterm_loses_nothing(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker, Client.to(worker.port) as client:
        client.send("/slow?seconds=1")
        worker.terminate()
        await worker.shed()
        worker.terminate()
        assert (await client.answer()).status == 200
        assert await worker.exit_code() == 0


async def test_a_second_sigint_ends_the_drain_at_once(tmp_path: Path) -> None:
    async with (
        running_worker(tmp_path, environ=PATIENT) as worker,
        Client.to(worker.port) as client,
    ):
        await client.get()
        worker.process.send_signal(signal.SIGINT)
        await worker.shed()
        worker.process.send_signal(signal.SIGINT)
        assert await worker.exit_code(seconds=10) == 0


async def _keep_asking(worker: Worker, done: asyncio.Event) -> int:
    """Ask on one connection, on a new one after each close; any loss raises."""
    count = 0
    while not done.is_set():
        async with Client.to(worker.port) as client:
            closes = False
            while not closes and not done.is_set():
                body = os.urandom(16 * 1024)
                client.send("/echo", method="POST", body=body)
                answer = await client.answer()
                assert answer.body == body
                closes = answer.closes
                count += 1
    return count


async def test_one_inherited_descriptor_is_served(tmp_path: Path) -> None:
    with listening_socket() as public:
        process = await launch(
            ["-m", "atlas_worker", "--fd", "3"], [public], cwd=tmp_path, environ={}
        )
        try:
            async with Client.to(port_of(public)) as client:
                assert (await client.get()).json()["status"] == "ok"
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 20) == 0
        finally:
            await end(process)
