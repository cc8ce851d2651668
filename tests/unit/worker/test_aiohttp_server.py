"""The kit under aiohttp, as a real process with handed sockets and raw connections."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from tests.unit.worker.support import (
    Client,
    Worker,
    end,
    launch,
    listening_socket,
    port_of,
    running_worker,
    until,
)
from worker.kit.aiohttp_server import _Listening
from worker.kit.sockets import Listener, open_listener

GRACE = "0.6"
PATIENT = {"ATLAS_IDLE_GRACE_SECONDS": "60"}
BRIEF = {"ATLAS_IDLE_GRACE_SECONDS": GRACE}


async def test_ready_comes_with_the_kits_mark(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as worker:
        assert worker.notifications == ["READY=1\nX_ATLAS_KIT=1"]


async def test_both_handed_sockets_are_served_with_their_backlog(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as worker:
        for port in (worker.port, worker.own_port):
            async with Client.to(port) as client:
                assert (await client.get()).json()["instance"] == "the-instance"
        # More than asyncio's default of 100 and aiohttp's of 128 can wait.
        worker.process.send_signal(signal.SIGSTOP)
        async with AsyncExitStack() as stack:
            for _ in range(200):
                await stack.enter_async_context(Client.to(worker.port))
            queue = Listener("public", worker.public, handed=True)
            await until(lambda: queue.queue_length() == 200)
            worker.process.send_signal(signal.SIGCONT)
            await until(lambda: queue.queue_length() == 0)


async def test_a_probe_is_told_which_instance_answers(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as worker, Client.to(worker.own_port) as client:
        for path in ("/health", "/no/such/path"):
            probed = await client.get(path, headers={"X-Atlas-Probe": "1"})
            assert probed.headers["x-atlas-instance"] == "the-instance"
        assert "x-atlas-instance" not in (await client.get("/health")).headers


@pytest.mark.parametrize("active", [True, False])
async def test_an_active_or_staging_worker_keeps_connections_alive(
    tmp_path: Path, active: bool
) -> None:
    async with running_worker(tmp_path, active=active) as worker:
        if not active:
            worker.retire()  # somebody else is active, and this one never was
        async with Client.to(worker.port) as client:
            began = time.monotonic()
            while time.monotonic() < began + 0.3:
                assert not (await client.get()).closes


async def test_a_retired_worker_asks_its_clients_to_leave_and_stays(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=PATIENT) as worker:
        async with Client.to(worker.port) as client:
            assert not (await client.get()).closes
            worker.retire()
            await worker.shed()
            assert (await client.get()).closes
            assert await client.is_closed()
        async with Client.to(worker.port) as late:
            assert (await late.get()).closes
        assert worker.process.returncode is None


async def test_after_a_rollback_connections_are_kept_again(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker:
        worker.retire()
        await worker.shed()
        worker.activate()
        await worker.kept()
        async with Client.to(worker.port) as client:
            began = time.monotonic()
            while time.monotonic() < began + 2 * float(GRACE):
                assert not (await client.get()).closes
                await asyncio.sleep(0.1)  # a client's pause, not synchronisation


async def test_an_idle_connection_of_a_retired_worker_is_kept_for_the_grace_then_closed(
    tmp_path: Path,
) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker, Client.to(worker.port) as client:
        await client.get()
        began = time.monotonic()
        worker.retire()
        assert await client.is_closed()
        assert time.monotonic() - began >= float(GRACE)


async def test_a_connection_without_any_request_is_closed_after_the_grace(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker, Client.to(worker.port) as client:
        await worker.kept()
        began = time.monotonic()
        worker.terminate()
        assert await client.is_closed()
        assert time.monotonic() - began >= float(GRACE)
        assert await worker.exit_code() == 0


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


async def test_an_upload_in_flight_is_finished_after_sigterm(tmp_path: Path) -> None:
    body = os.urandom(64 * 1024)
    async with running_worker(tmp_path, environ=BRIEF) as worker, Client.to(worker.port) as client:
        client.writer.write(
            b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        worker.terminate()
        for start in range(0, len(body), 4096):
            client.writer.write(body[start : start + 4096])
            await asyncio.sleep(0.08)  # dripped, for longer than the grace
        answer = await client.answer()
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()
        assert answer.closes
        assert await worker.exit_code() == 0


async def test_a_head_that_has_begun_counts_as_a_request_in_flight(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker, Client.to(worker.port) as client:
        await client.get()
        worker.terminate()
        for piece in (b"GET / HT", b"TP/1.1\r\nHo", b"st: test\r\n", b"\r\n"):
            client.writer.write(piece)
            await asyncio.sleep(0.4)  # dripped, for longer than the grace
        assert (await client.answer()).status == 200
        assert await worker.exit_code() == 0


async def test_stray_line_ends_between_requests_do_not_hold_a_drain_up(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker, Client.to(worker.port) as client:
        await client.get()
        client.writer.write(b"\r\n")
        worker.terminate()
        assert await worker.exit_code(seconds=10) == 0


async def test_a_slow_answer_is_finished_after_sigterm(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker, Client.to(worker.port) as client:
        client.send("/slow?seconds=1.5")
        worker.terminate()
        answer = await client.answer()
        assert answer.json()["slept_seconds"] == 1.5
        assert await worker.exit_code() == 0


async def test_pipelined_requests_are_all_answered_before_the_connection_closes(
    tmp_path: Path,
) -> None:
    async with (
        running_worker(tmp_path, environ=PATIENT) as worker,
        Client.to(worker.port) as client,
    ):
        worker.retire()
        await worker.shed()
        # In one piece, so that the worker has all of them before it answers the first.
        client.writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" * 3)
        answers = [await client.answer() for _ in range(3)]
        assert [answer.closes for answer in answers] == [False, False, True]


async def test_queued_connections_are_accepted_after_sigterm(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker, AsyncExitStack() as stack:
        worker.process.send_signal(signal.SIGSTOP)
        clients = [await stack.enter_async_context(Client.to(worker.port)) for _ in range(50)]
        for client in clients:
            client.send("/")
        worker.terminate()
        worker.process.send_signal(signal.SIGCONT)
        answers = [await client.answer() for client in clients]
        assert all(answer.status == 200 and answer.closes for answer in answers)
        assert await worker.exit_code() == 0


async def test_connections_that_arrive_while_settling_are_served(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker:
        worker.terminate()
        began = time.monotonic()
        while time.monotonic() < began + 0.15:
            async with Client.to(worker.port) as client:
                assert (await client.get()).status == 200
        assert await worker.exit_code() == 0


async def test_the_handed_sockets_outlive_the_worker(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as worker:
        worker.terminate()
        assert await worker.exit_code() == 0
        # The queue still takes connections: a successor may serve them.
        with socket.create_connection(("127.0.0.1", worker.port), timeout=5):
            conn, _ = await asyncio.get_running_loop().sock_accept(worker.public)
            conn.close()


async def test_a_draining_worker_holds_the_handed_sockets_until_its_end(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker, Client.to(worker.port) as client:
        client.send("/slow?seconds=30")
        worker.terminate()
        queue = Listener("public", worker.public, handed=True)

        async def accepts_no_more() -> bool:
            with socket.create_connection(("127.0.0.1", worker.port)):
                await asyncio.sleep(0.05)
                return queue.queue_length() > 0

        await until(accepts_no_more)
        held = worker.open_files()
        for sock in (worker.public, worker.private):
            assert f"socket:[{os.fstat(sock.fileno()).st_ino}]" in held


async def test_a_connection_with_an_unread_request_is_not_closed() -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    assert runner.server is not None
    listener = open_listener("127.0.0.1", 0)
    listening = _Listening(runner.server, [listener])
    await listening.start()
    try:
        with socket.create_connection(listener.socket.getsockname()) as client:
            client.setblocking(False)
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
    finally:
        listening.stop_accepting()
        await runner.cleanup()


async def test_a_drain_without_connections_is_fast(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as worker:
        await worker.kept()
        began = time.monotonic()
        worker.terminate()
        assert await worker.exit_code() == 0
        # 0.25 s of settling and the interpreter's own end; the bound allows for a busy machine.
        assert time.monotonic() - began < 3


async def test_the_hard_deadline_ends_what_does_not_end_by_itself(tmp_path: Path) -> None:
    environ = {**PATIENT, "ATLAS_DRAIN_TIMEOUT_SECONDS": "0.5"}
    async with (
        running_worker(tmp_path, environ=environ) as worker,
        Client.to(worker.port) as slow,
        Client.to(worker.port) as idle,
    ):
        await idle.get()
        slow.send("/slow?seconds=30")
        began = time.monotonic()
        worker.terminate()
        assert await worker.exit_code() == 0
        assert 0.5 <= time.monotonic() - began < 5


async def test_a_second_sigterm_loses_nothing(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker, Client.to(worker.port) as client:
        client.send("/slow?seconds=1")
        worker.terminate()
        await worker.shed()
        worker.terminate()
        assert (await client.answer()).status == 200
        assert await worker.exit_code() == 0


async def test_a_second_interrupt_ends_the_drain_at_once(tmp_path: Path) -> None:
    async with (
        running_worker(tmp_path, environ=PATIENT) as worker,
        Client.to(worker.port) as client,
    ):
        await client.get()
        worker.process.send_signal(signal.SIGINT)
        await worker.shed()
        worker.process.send_signal(signal.SIGINT)
        assert await worker.exit_code(seconds=10) == 0


async def test_an_early_answer_to_an_upload_reaches_the_client(tmp_path: Path) -> None:
    body = b"x" * (5 * 1024 * 1024)
    async with running_worker(tmp_path) as worker, Client.to(worker.port) as client:
        client.send("/features/web", method="POST", body=body)
        assert (await client.answer()).status == 413


async def test_no_request_is_lost_while_the_role_goes_back_and_forth(tmp_path: Path) -> None:
    async with running_worker(tmp_path, environ=BRIEF) as worker:
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


async def test_without_a_state_file_the_worker_serves(tmp_path: Path) -> None:
    async with running_worker(tmp_path, active=False) as worker, Client.to(worker.port) as client:
        assert not (await client.get()).closes


async def test_content_that_is_encoded_is_echoed_as_it_was_sent(tmp_path: Path) -> None:
    async with running_worker(tmp_path) as worker, Client.to(worker.port) as client:
        client.send(
            "/echo", method="POST", body=b"not gzip at all", headers={"Content-Encoding": "gzip"}
        )
        answer = await client.answer()
        assert answer.body == b"not gzip at all"
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["x-atlas-version"] == "1.2.3"


async def test_a_worker_can_be_given_one_descriptor(tmp_path: Path) -> None:
    with listening_socket() as public:
        process = await launch(["-m", "worker", "--fd", "3"], [public], cwd=tmp_path, environ={})
        try:
            async with Client.to(port_of(public)) as client:
                assert (await client.get()).json()["status"] == "ok"
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 20) == 0
        finally:
            await end(process)
