"""The drain of a worker without the kit waits for answers that pause, and no longer."""

from __future__ import annotations

import asyncio
import shlex
import time
from pathlib import Path

import pytest

from tests.apps.pausing import PARTS, PAUSE_SECONDS
from tests.harness import DaemonProcess, Setting, write_release

APP = Path(__file__).parent.parent / "apps" / "pausing.py"
STREAMS = 8
LAST = b"4\r\nlast\r\n0\r\n\r\n"


async def ask(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request, and return once its answer has begun."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


@pytest.mark.parametrize(
    ("way", "plane", "quiet_seconds"),
    [("port", "relay", PAUSE_SECONDS / 5), ("fd", "kernel", PAUSE_SECONDS * 2)],
)
async def test_streams_that_pause_are_whole_and_an_idle_client_delays_nothing(
    tmp_path: Path, way: str, plane: str, quiet_seconds: float
) -> None:
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": shlex.join(["python", str(APP), way, f"{{{way}}}"]),
        "HEALTH_PATH": "/",
        "DRAIN_QUIET_SECONDS": quiet_seconds,
        "DRAIN_TIMEOUT_SECONDS": 30,
    }
    async with DaemonProcess.running(tmp_path, settings) as daemon:
        assert (await daemon.status())["traffic"]["plane"] == plane
        idle, idle_writer = await ask(daemon.public_port, "/")
        await idle.readuntil(LAST)
        streams = [await ask(daemon.public_port, "/stream") for _ in range(STREAMS)]
        write_release(daemon.worker_directory, "v2")
        began = time.monotonic()
        record = (await daemon.deploy()).json
        assert record["result"] == "switched", record
        whole = await asyncio.gather(*(reader.read() for reader, _ in streams))
        assert whole == [b"4\r\npart\r\n" * PARTS + LAST] * STREAMS
        assert await idle.read() == b""
        ended = await daemon.ended(record["deploy_id"])
        assert ended["steps"][-1]["detail"]["by_itself"]
        assert time.monotonic() - began < 15  # far below the drain time
        for _, writer in (*streams, (idle, idle_writer)):
            writer.close()


async def test_a_daemon_that_stops_lets_streams_that_pause_end_on_the_relay(tmp_path: Path) -> None:
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": shlex.join(["python", str(APP), "port", "{port}"]),
        "HEALTH_PATH": "/",
        "DRAIN_QUIET_SECONDS": PAUSE_SECONDS / 5,
    }
    async with DaemonProcess.running(tmp_path, settings) as daemon:
        idle, idle_writer = await ask(daemon.public_port, "/")
        await idle.readuntil(LAST)
        streams = [await ask(daemon.public_port, "/stream") for _ in range(STREAMS)]
        stopping = asyncio.create_task(daemon.stop())
        whole = await asyncio.gather(*(reader.read() for reader, _ in streams))
        await stopping
        assert whole == [b"4\r\npart\r\n" * PARTS + LAST] * STREAMS
        for _, writer in (*streams, (idle, idle_writer)):
            writer.close()
