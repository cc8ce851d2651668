"""Real ASGI servers for the tests, with sockets passed as the supervisor does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from tests.unit.worker.support import (
    PLAIN,
    Client,
    Worker,
    end,
    launch,
    listening_socket,
    port_of,
    until,
    write_state,
)

APPS = Path(__file__).parents[2] / "apps"

RUNNER = ["-m", "atlas_worker.asgi", "--app-dir", str(APPS)]
KINDS = {
    "h11 on asyncio": ["--http", "h11", "--ws", "websockets", "--loop", "asyncio"],
    "httptools on uvloop": ["--http", "httptools", "--ws", "websockets-sansio", "--loop", "uvloop"],
}


class Reports:
    """The reports of an instance to the supervisor."""

    def __init__(self, notify: socket.socket) -> None:
        self._notify = notify
        self.lines: list[str] = []

    def has(self, beginning: str) -> bool:
        """Return whether a report starts so."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.lines += self._notify.recv(4096).decode().splitlines()
        return any(line.startswith(beginning) for line in self.lines)


@contextlib.asynccontextmanager
async def running(
    tmp_path: Path,
    arguments: Sequence[str],
    *,
    environ: dict[str, str] | None = None,
    ready: str = "READY=1",
) -> AsyncIterator[tuple[Worker, Reports]]:
    """Start a server by socket activation, active and ready; stop it afterwards."""
    address = f"@atlas-test-{os.getpid()}-{time.monotonic_ns()}"
    with (
        listening_socket() as public,
        listening_socket() as private,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        notify.bind("\0" + address[1:])
        notify.setblocking(False)
        write_state(tmp_path / "state", port_of(private))
        process = await launch(
            list(arguments),
            [public, private],
            cwd=tmp_path,
            environ={
                "LISTEN_FDS": "2",
                "LISTEN_FDNAMES": "public:private",
                "NOTIFY_SOCKET": address,
                "ATLAS_PORT": str(port_of(private)),
                "ATLAS_STATE_DIR": str(tmp_path / "state"),
                "ATLAS_INSTANCE": "the-instance",
                "ATLAS_DRAIN_TIMEOUT_SECONDS": "20",
                "PYTHONPATH": str(APPS),
                **(environ or {}),
            },
        )
        try:
            reports = Reports(notify)
            await until(lambda: reports.has(ready) or process.returncode is not None)
            assert process.returncode is None, "it ended instead of being ready"
            yield Worker(process, public, private, tmp_path / "state"), reports
        finally:
            await end(process)


async def wrong(
    tmp_path: Path, *arguments: str, program: Sequence[str] = RUNNER, **environ: str
) -> tuple[int, str]:
    """Run the runner where it must refuse; returns its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        *arguments,
        cwd=tmp_path,
        env={**PLAIN, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed = (await asyncio.wait_for(process.communicate(), 30))[0].decode()
    code = process.returncode
    assert code is not None
    return code, printed


async def appears(path: Path) -> str:
    """Wait until the application has written a file; returns what is in it."""
    await until(path.exists)
    return path.read_text()  # noqa: ASYNC240 - one word, and nothing else to do


async def opened_websocket(client: Client, path: str = "/ws") -> None:
    """Make the connection a WebSocket, by hand: nothing about its end is hidden."""
    client.writer.write(
        f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")


async def close_code(client: Client) -> int:
    """Wait for the close frame, answer it as a client must, and return its code."""
    first, length = await client.reader.readexactly(2)
    payload = await client.reader.readexactly(length)
    assert first == 0x88, f"no close frame: {first:#x} {payload!r}"
    masked = bytes([0x88, 0x82, 0, 0, 0, 0]) + payload[:2]
    client.writer.write(masked)
    assert await client.is_closed()
    # A server may wait for this, with its own half of the connection closed.
    client.writer.close()
    return int.from_bytes(payload[:2], "big")
