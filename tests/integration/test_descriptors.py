"""Clients that take all descriptors shut out neither the API nor a worker's restart."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.apps.pausing import PARTS
from tests.harness import DaemonProcess, Setting, write_release
from tests.integration.support import get, slot

APP = Path(__file__).parent.parent / "apps" / "pausing.py"
CLIENTS = 150
LAST = b"4\r\nlast\r\n0\r\n\r\n"


def limited(limit: int) -> tuple[str, str]:
    """Return the program of a daemon that was started with this limit of open files."""
    code = (
        "import resource, runpy\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
        "runpy.run_module('atlas_supervisor', run_name='__main__')"
    )
    return "-c", code


@asynccontextmanager
async def idle_clients(port: int) -> AsyncIterator[None]:
    """Connect clients that send nothing."""
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CLIENTS)]
    try:
        yield
    finally:
        for _, writer in opened:
            writer.transport.abort()


async def answered(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return (await reader.readuntil(LAST)).startswith(b"HTTP/1.1 200 OK")
    finally:
        writer.close()


async def kill_active(daemon: DaemonProcess) -> None:
    """Kill the active worker, and wait until it was started again."""
    pid = slot(await daemon.status(), "active")["pid"]
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(15):
        while True:
            now = slot(await daemon.status(), "active")
            if now["state"] == "running" and now["pid"] != pid:
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("limit", [65, 128])
@pytest.mark.fault(
    "Ports and connections",
    "no descriptors left (EMFILE), on the relay",
    "idle clients make way for others and for the daemon's own work",
)
async def test_idle_clients_of_the_relay_make_way_for_others_and_for_the_daemon_s_own_work(
    tmp_path: Path, limit: int
) -> None:
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": shlex.join(["python", str(APP), "port", "{port}"]),
        "HEALTH_PATH": "/",
    }
    async with DaemonProcess.running(tmp_path, settings, program=limited(limit)) as daemon:
        busy, busy_writer = await asyncio.open_connection("127.0.0.1", daemon.public_port)
        busy_writer.write(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with idle_clients(daemon.public_port), asyncio.timeout(30):
            assert await answered(daemon.public_port)
            head, _, body = (await busy.readuntil(LAST)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert body == b"4\r\npart\r\n" * PARTS + LAST  # it was idle for no moment
            write_release(daemon.worker_directory, "v2")
            record = (await daemon.deploy()).json
            assert record["result"] == "switched", record
            await kill_active(daemon)
            assert await answered(daemon.public_port)
        busy_writer.close()


@pytest.mark.fault(
    "Ports and connections",
    "no descriptors left (EMFILE), by clients of the API",
    "its Unix socket answers, and workers are restarted",
)
async def test_idle_clients_of_the_api_do_not_shut_out_its_unix_socket_or_a_restart(
    tmp_path: Path,
) -> None:
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": shlex.join(["python", str(APP), "fd", "{fd}"]),
        "HEALTH_PATH": "/",
    }
    async with (
        DaemonProcess.running(tmp_path, settings, program=limited(100)) as daemon,
        idle_clients(daemon.control_port),
    ):
        await kill_active(daemon)
        assert await answered(daemon.public_port)
        assert (await get(daemon.control_port, "/livez"))[0] == 200
        log = (daemon.state_dir / "logs" / "supervisor.jsonl").read_text()
        assert log.count("api_accept_failed") <= 1
