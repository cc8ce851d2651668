"""Real gunicorn with the kit's configuration, on inherited sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.worker.support import (
    Client,
    Worker,
    counted,
    end,
    first_counted,
    launch,
    listening_socket,
    make_counts_folder,
    port_of,
    until,
    write_state,
)

APP = """
import os, pathlib, time

def wait_for(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.005)

if os.environ.get("HOLD_SECOND"):
    try:
        pathlib.Path("first").touch(exist_ok=False)
    except FileExistsError:
        pathlib.Path("second").touch()
        wait_for("go")

def half():
    yield b"half"
    raise RuntimeError("as it is meant to")

def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        pathlib.Path("entered").touch()
        wait_for("go")
    if environ["PATH_INFO"] == "/fail":
        raise RuntimeError("as it is meant to")
    if environ["PATH_INFO"] == "/half":
        start_response("200 OK", [("Content-Length", "10")])
        return half()
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
OWN_CONFIG = """
from atlas_worker.gunicorn import *
from atlas_worker import gunicorn as kit

def post_worker_init(worker):
    open("mine", "w").close()
    kit.post_worker_init(worker)
"""
ROOT = Path(__file__).parents[3]
KIT = "python:atlas_worker.gunicorn"
READY = "READY=1\nX_ATLAS_KIT=1"


@contextlib.asynccontextmanager
async def stopped(pid: int) -> AsyncIterator[None]:
    tasks = Path(f"/proc/{pid}/task")
    os.kill(pid, signal.SIGSTOP)
    try:  # a thread that still runs could take the next signal
        await until(lambda: all("\nState:\tT" in s.read_text() for s in tasks.glob("*/status")))
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def has_pending(pid: int, number: int) -> bool:
    """Return whether the kernel holds the signal for a process that does not run."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = re.findall(r"^(?:SigPnd|ShdPnd):\t([0-9a-f]+)$", status, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in pending)


@dataclass
class Gunicorn(Worker):
    """A running gunicorn; `notify` is where it speaks to its supervisor."""

    notify: socket.socket = field(kw_only=True)

    async def ready(self) -> str:
        message = await asyncio.get_running_loop().sock_recv(self.notify, 4096)
        return message.decode()

    async def pid(self) -> int:
        """Return the pid of the worker process that answers a new connection."""
        async with Client.to(self.port) as client:
            return int((await client.get()).body)


@contextlib.asynccontextmanager
async def launched(
    tmp_path: Path,
    *options: str,
    config: str = KIT,
    grace: float = 0.3,
    environ: dict[str, str] | None = None,
) -> AsyncIterator[Gunicorn]:
    (tmp_path / "kit_app.py").write_text(APP)
    state_dir = tmp_path / "state"
    address = f"@atlas-test-{os.getpid()}-{time.monotonic_ns()}"
    with (
        listening_socket() as public,
        listening_socket() as private,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        notify.bind("\0" + address[1:])
        notify.setblocking(False)
        write_state(state_dir, port_of(private))
        process = await launch(
            ["-m", "gunicorn", "--config", config, *options, "kit_app:app"],
            [public, private],
            cwd=tmp_path,
            environ={
                "HOME": str(tmp_path),
                "LISTEN_FDS": "2",
                "LISTEN_FDNAMES": "public:private",
                "NOTIFY_SOCKET": address,
                "PYTHONPATH": f"{ROOT / 'worker'}:{tmp_path}",
                "ATLAS_PORT": str(port_of(private)),
                "ATLAS_STATE_DIR": str(state_dir),
                "ATLAS_DRAIN_TIMEOUT_SECONDS": "10",
                "ATLAS_IDLE_GRACE_SECONDS": str(grace),
                **(environ or {}),
            },
        )
        try:
            yield Gunicorn(process, public, private, state_dir, notify=notify)
            assert not (tmp_path / ".gunicorn").exists(), "it has made a control socket"
        finally:
            # First in peace: a killed arbiter leaves its workers. It kills those that hang itself,
            # after its drain time; gunicorn's own SIGQUIT does while a pool of threads grows.
            if process.returncode is None:
                process.send_signal(signal.SIGQUIT)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), 20)
            await end(process)


@contextlib.asynccontextmanager
async def gunicorn(
    tmp_path: Path, *options: str, config: str = KIT, grace: float = 0.3
) -> AsyncIterator[Gunicorn]:
    async with launched(tmp_path, *options, config=config, grace=grace) as worker:
        worker.notifications.append(await asyncio.wait_for(worker.ready(), 20))
        yield worker


async def test_ready_is_reported_once_when_every_process_is_up(tmp_path: Path) -> None:
    held = {"HOLD_SECOND": "1"}
    async with launched(tmp_path, "--workers", "2", environ=held) as worker:
        await until((tmp_path / "second").exists)
        first = await worker.pid()
        with pytest.raises(BlockingIOError):
            worker.notify.recv(4096)
        (tmp_path / "go").touch()
        assert await asyncio.wait_for(worker.ready(), 20) == READY

        os.kill(first, signal.SIGKILL)
        answering: set[int] = set()

        async def replaced() -> bool:
            answering.add(await worker.pid())
            return len(answering - {first}) == 2

        await until(replaced)
        with pytest.raises(BlockingIOError):
            worker.notify.recv(4096)


async def test_all_processes_shed_connections_and_answer_the_queue(
    tmp_path: Path,
) -> None:
    async with gunicorn(tmp_path, "--workers", "2") as worker:
        worker.retire()
        await worker.shed()
        worker.terminate()
        for _ in range(20):
            await worker.pid()
        assert await worker.exit_code() == 0


async def test_keep_alive_ends_on_retirement_and_returns_when_active(
    tmp_path: Path,
) -> None:
    async with gunicorn(tmp_path, grace=20) as worker, Client.to(worker.port) as client:
        assert not (await client.get()).closes
        worker.retire()
        await worker.shed()

        assert (await client.get()).closes
        assert await client.is_closed()
        worker.activate()
        await worker.kept()


async def test_an_instance_that_is_held_back_keeps_connections_once_earlier_clients_have_left(
    tmp_path: Path,
) -> None:
    async with gunicorn(tmp_path, grace=0.2) as worker, Client.to(worker.port) as client:
        assert not (await client.get()).closes
        worker.retire(staging_weight=0.1)
        await worker.shed()
        assert await asyncio.wait_for(client.is_closed(), 10)
        await worker.kept()
        worker.retire()  # the holdback ends
        await worker.shed()


async def test_an_idle_connection_of_a_retired_instance_is_closed_after_the_grace(
    tmp_path: Path,
) -> None:
    async with gunicorn(tmp_path) as worker, Client.to(worker.port) as client:
        await client.get()
        worker.retire()
        await worker.shed()

        assert await asyncio.wait_for(client.is_closed(), 10)
        assert await worker.pid() > 0


async def test_clients_that_ignore_the_announced_close_do_not_delay_the_exit(
    tmp_path: Path,
) -> None:
    async with gunicorn(tmp_path) as worker, contextlib.AsyncExitStack() as stubborn:
        worker.retire()
        await worker.shed()
        async with asyncio.timeout(2):  # gunicorn alone waits two seconds for each
            for _ in range(5):
                client = await stubborn.enter_async_context(Client.to(worker.port))
                assert (await client.get()).closes


@pytest.mark.parametrize("kind", ["gthread", "sync"])
async def test_current_and_queued_requests_are_answered_after_sigterm(
    tmp_path: Path, kind: str
) -> None:
    options = ("--worker-class", kind, "--threads", "1")
    async with gunicorn(tmp_path, *options) as worker, contextlib.AsyncExitStack() as clients:
        pid = await worker.pid()
        slow = await clients.enter_async_context(Client.to(worker.port))
        slow.send("/slow")
        await until((tmp_path / "entered").exists)
        asking = [slow]
        async with stopped(pid):  # so that no connection is accepted before the signal
            for _ in range(4):
                asking.append(await clients.enter_async_context(Client.to(worker.port)))
                asking[-1].send("/")
            worker.terminate()
            await until(lambda: has_pending(pid, signal.SIGTERM))
        (tmp_path / "go").touch()

        for client in asking:
            assert (await asyncio.wait_for(client.answer(), 10)).status == 200
            client.writer.close()
        assert await worker.exit_code() == 0


async def test_an_idle_connection_can_send_a_request_after_sigterm(
    tmp_path: Path,
) -> None:
    async with gunicorn(tmp_path, grace=20) as worker:
        async with Client.to(worker.port) as client:
            assert not (await client.get()).closes
            worker.terminate()
            await worker.shed()

            assert (await client.get()).closes
        assert await worker.exit_code() == 0


async def test_an_idle_connection_delays_the_exit_by_its_grace_only(
    tmp_path: Path,
) -> None:
    async with gunicorn(tmp_path) as worker, Client.to(worker.port) as client:
        await client.get()
        worker.terminate()

        assert await asyncio.wait_for(client.is_closed(), 5)
        assert await worker.exit_code() == 0


async def test_an_own_configuration_can_chain_the_hooks(tmp_path: Path) -> None:
    config = tmp_path / "own.conf.py"
    config.write_text(OWN_CONFIG)
    async with gunicorn(tmp_path, config=str(config)) as worker:
        assert worker.notifications == [READY]
        assert (tmp_path / "mine").exists()
        worker.retire()
        await worker.shed()


@pytest.mark.parametrize("options", [("--workers", "2"), ("--worker-class", "sync")])
async def test_requests_are_counted_by_the_process_that_serves_them(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    state_dir = make_counts_folder(tmp_path)
    instance = {"ATLAS_INSTANCE": "the-instance"}
    async with launched(tmp_path, *options, environ=instance) as worker:
        await asyncio.wait_for(worker.ready(), 20)
        for path, mark in (("/", ""), ("/", "X-Atlas-Probe"), ("/fail", ""), ("/half", "")):
            async with Client.to(worker.port) as client:
                client.send(path, headers={mark: "1"} if mark else None)
                await client.reader.readuntil(b"\r\n\r\n")
        expected = {"begun": 3, "2xx": 1, "5xx": 2, "latencies": 3}
        await until(lambda: counted(state_dir) == expected)
        assert first_counted(state_dir) == (3, 2, 3)
        async with Client.to(worker.port) as client:
            client.send("/slow")
            await until((tmp_path / "entered").exists)
            assert counted(state_dir) == {**expected, "begun": 4}
            (tmp_path / "go").touch()
            await client.answer()
        await until(lambda: counted(state_dir).get("2xx") == 2)
