from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from atlas_supervisor.errors import AtlasError
from atlas_supervisor.system.service_manager import ServiceManager


class Systemd:
    """The other end: what was sent to it, message by message."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(address)

    async def message(self) -> set[str]:
        """Return the next message's lines."""
        data = await asyncio.get_running_loop().sock_recv(self._socket, 4096)
        return set(data.decode().splitlines())

    async def until(self, *lines: str) -> set[str]:
        """Wait for a message with these lines, and return it."""
        async with asyncio.timeout(10):
            while not set(lines) <= (message := await self.message()):
                pass
        return message

    def close(self) -> None:
        self._socket.close()


async def fine() -> None:
    """Answer."""


class Reporting:
    """A daemon's side: its state, as it is reported."""

    def __init__(self, manager: ServiceManager) -> None:
        self.manager = manager
        self.serves = False

    async def run(self, answers: Callable[[], Awaitable[object]]) -> None:
        await self.manager.run(
            lambda: self.serves, lambda: "version 1 serves\non port 8791", answers
        )


@asynccontextmanager
async def reporting(
    folder: Path, answers: Callable[[], Awaitable[object]] = fine, watchdog: str = "60000"
) -> AsyncIterator[tuple[Reporting, Systemd]]:
    path = str(folder / "notify")
    systemd = Systemd(path)
    daemon = Reporting(ServiceManager({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": watchdog}))
    task = asyncio.create_task(daemon.run(answers))
    try:
        yield daemon, systemd
    finally:
        task.cancel()
        systemd.close()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_start_is_extended_until_it_is_ready_and_watched_from_then_on(
    tmp_path: Path,
) -> None:
    async with reporting(tmp_path) as (daemon, systemd):
        starting = await systemd.until("STATUS=version 1 serves on port 8791")
        assert "EXTEND_TIMEOUT_USEC=30000000" in starting
        assert not starting & {"READY=1", "WATCHDOG=1"}
        daemon.serves = True
        await systemd.until("READY=1", "STATUS=version 1 serves on port 8791")
        running = await systemd.until("READY=1", "WATCHDOG=1")
        assert not any(line.startswith("EXTEND") for line in running)
        daemon.serves = False  # it crashed, and is started again by the daemon
        assert "READY=1" in await systemd.until("WATCHDOG=1")


async def test_a_stop_is_announced_and_extended_while_it_lasts(tmp_path: Path) -> None:
    async with reporting(tmp_path) as (daemon, systemd):
        daemon.serves = daemon.manager.stopping = True
        stop = await systemd.until("STATUS=stopping; version 1 serves on port 8791")
        assert {"STOPPING=1", "EXTEND_TIMEOUT_USEC=30000000"} <= stop
        assert "READY=1" not in stop
        await systemd.until("STOPPING=1", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000")


async def test_a_reload_is_announced_and_ends_with_ready_from_this_daemon_or_the_next(
    tmp_path: Path,
) -> None:
    async with reporting(tmp_path) as (daemon, systemd):
        daemon.serves = True
        await systemd.until("READY=1")
        daemon.manager.reloading()
        message = await systemd.until("RELOADING=1", "WATCHDOG_USEC=60000000", "WATCHDOG=1")
        (moment,) = [line for line in message if line.startswith("MONOTONIC_USEC=")]
        assert 0 <= time.monotonic() * 1e6 - int(moment.partition("=")[2]) < 10e6
        daemon.manager.reload_ended()  # it could not be replaced
        await systemd.until("READY=1", "WATCHDOG_USEC=60000")
    environ = {"NOTIFY_SOCKET": str(tmp_path / "next"), "WATCHDOG_USEC": "60000"}
    manager = ServiceManager(environ, reloaded=True)
    systemd = Systemd(str(tmp_path / "next"))
    task = asyncio.create_task(manager.run(lambda: False, lambda: "no worker serves", fine))
    assert await systemd.message() == {"WATCHDOG_USEC=60000", "WATCHDOG=1"}
    await systemd.until("READY=1", "STATUS=no worker serves")  # as it had been ready before
    task.cancel()
    systemd.close()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_long_watchdog_time_extends_by_more_than_the_pause_between_two_messages(
    tmp_path: Path,
) -> None:
    async with reporting(tmp_path, watchdog="300000000") as (_, systemd):
        await systemd.until("EXTEND_TIMEOUT_USEC=30000000")


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_database_that_fails_or_hangs_withholds_the_watchdog_and_not_the_status(
    tmp_path: Path, hangs: bool
) -> None:
    asked = asyncio.Event()

    async def broken() -> None:
        asked.set()
        if hangs:
            await asyncio.Event().wait()
        raise AtlasError("the database could not be read: disk I/O error")

    async with reporting(tmp_path, broken) as (daemon, systemd):
        await asked.wait()
        daemon.serves = True
        assert "WATCHDOG=1" not in await systemd.until("READY=1")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):  # ten times the pause
                await systemd.until("WATCHDOG=1")


async def test_without_a_service_manager_nothing_is_reported() -> None:
    async def never() -> None:
        raise AssertionError("nothing is to be asked")

    manager = ServiceManager({})
    manager.refused("a port is taken")
    await manager.run(lambda: True, str, never)


async def test_a_service_manager_that_is_gone_delays_nothing(tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "x"})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await manager.run(lambda: True, str, fine)


async def test_a_watchdog_for_another_process_is_not_ours() -> None:
    name = f"atlas-test-{os.getpid()}"
    systemd = Systemd(f"\0{name}")
    environ = {
        "NOTIFY_SOCKET": f"@{name}",
        "WATCHDOG_USEC": "3",
        "WATCHDOG_PID": "1",
    }
    manager = ServiceManager(environ)
    manager.refused("a port\nis taken")
    assert await systemd.message() == {"STATUS=a port is taken"}
    assert manager._beat_seconds == 10
    systemd.close()


def test_sockets_are_stored_by_name_after_what_is_of_no_use_was_removed(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        socket.create_server(("127.0.0.1", 0)) as blue,
        socket.create_server(("127.0.0.1", 0)) as green,
    ):
        systemd.bind(address)
        manager = ServiceManager({"NOTIFY_SOCKET": address})
        assert manager.present
        manager.store({"public-blue": blue, "public-green": green}, {"public"})
        data, descriptors, _, _ = socket.recv_fds(systemd, 4096, 8)
        assert (data.splitlines(), descriptors) == ([b"FDSTOREREMOVE=1", b"FDNAME=public"], [])
        for name, sock in ((b"public-blue", blue), (b"public-green", green)):
            data, (descriptor,), _, _ = socket.recv_fds(systemd, 4096, 8)
            assert data.splitlines() == [b"FDSTORE=1", b"FDNAME=" + name, b"FDPOLL=0"]
            with socket.socket(fileno=descriptor) as stored:
                assert stored.getsockname() == sock.getsockname()


async def test_a_barrier_waits_until_systemd_has_closed_its_end(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        manager = ServiceManager({"NOTIFY_SOCKET": address})
        waiting = asyncio.create_task(asyncio.to_thread(manager.barrier))
        received = await asyncio.to_thread(socket.recv_fds, systemd, 4096, 8)
        data, (end,) = received[:2]
        assert data == b"BARRIER=1"
        assert not waiting.done()
        os.close(end)
        async with asyncio.timeout(0.9):  # before it gives up
            await waiting


def test_a_socket_that_systemd_does_not_take_is_logged_and_delays_nothing(tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with socket.create_server(("127.0.0.1", 0)) as sock, capture_logs() as logs:
        manager.store({"public": sock}, ())
        manager.barrier()
    assert [(each["event"], each["name"]) for each in logs] == [("socket_not_stored", "public")]
