"""Sockets and small servers for the tests of the planes."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.traffic import Endpoints, Plane, make_plane
from tests.harness import free_ports

BLUE, GREEN = SlotName.BLUE, SlotName.GREEN

Session = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


@asynccontextmanager
async def serving(
    session: Session, sock: socket.socket | None = None, port: int = 0, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """Serve by `session` on the socket (which stays open) or the port; yields the port."""
    sessions: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await session(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sessions.add(asyncio.ensure_future(run(reader, writer)))

    if sock is None:
        server = await asyncio.start_server(begin, host, port)
    else:
        server = await asyncio.start_server(begin, sock=sock.dup())
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in sessions:
            task.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)


def naming(name: str) -> Session:
    """Return a session that says who it is, as soon as it is asked anything."""

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1):
            writer.write(name.encode())
            await writer.drain()

    return session


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def who(port: int, host: str = "127.0.0.1", source: str | None = None) -> str:
    """Return who serves a new connection."""
    local = (source, 0) if source else None
    reader, writer = await asyncio.open_connection(host, port, local_addr=local)
    try:
        writer.write(b"?")
        return (await reader.read()).decode()
    finally:
        writer.close()


@asynccontextmanager
async def opened(
    socket_passing: SocketPassing,
    *,
    active: SlotName = BLUE,
    host: str = "127.0.0.1",
    public: bool = True,
) -> AsyncIterator[tuple[Plane, Endpoints]]:
    """Open a plane on free ports."""
    public_port, blue, green = free_ports(3)
    endpoints = Endpoints(host, public_port if public else 0, {BLUE: blue, GREEN: green})
    plane = make_plane(endpoints, socket_passing)
    plane.open(active)
    try:
        yield plane, endpoints
    finally:
        await plane.close()


@contextmanager
def foreign_listener(
    port: int, host: str = "127.0.0.1", *, reuse_port: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Run another process that listens on the address."""
    code = (
        "import socket, sys\n"
        f"family = socket.AF_INET6 if ':' in {host!r} else socket.AF_INET\n"
        "s = socket.socket(family)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        f"s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, {int(reuse_port)})\n"
        f"s.bind(({host!r}, {port})); s.listen()\n"
        "print('listening', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "listening\n"
            yield process
        finally:
            process.kill()
