"""Real workers for the tests, with inherited sockets as the supervisor hands them down."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas_worker.contract import RINGS_DIRECTORY
from atlas_worker.contract import request_file as layout
from tests.fork_server import WORKERS, ForkedProcess

PLAIN = {name: os.environ[name] for name in ("PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")}
"""All that a worker gets of our environment. Without the last two, aiohttp's import alone reads all
certificates of the machine."""


async def until(condition: Callable[[], Any], *, seconds: float = 20.0) -> Any:
    """Wait for something that offers no event; returns what the condition returned."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return result
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def listening_socket() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0), backlog=128)
    sock.setblocking(False)
    return sock


# What the kit asks for, as far as this machine allows.
LONGEST_BACKLOG = min(4096, int(Path("/proc/sys/net/core/somaxconn").read_text()))


def backlog_of(sock: socket.socket) -> int:
    """Return how many connections may wait: tcpi_sacked, as the kernel has it for a listener."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    backlog: int = struct.unpack_from("=I", info, 28)[0]
    return backlog


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def write_state(state_dir: Path, active_port: int, **more: float) -> None:
    state_dir.mkdir(parents=True, exist_ok=True)
    new = state_dir / "deploy_state.json.new"
    new.write_text(json.dumps({"schema_version": 1, "active_port": active_port, **more}))
    new.replace(state_dir / "deploy_state.json")


def counted(state_dir: Path) -> dict[str, int]:
    """Return the counts of a state folder, of all its processes; without zeros."""
    counts: dict[str, int] = {}
    names = ("begun", "1xx", "2xx", "3xx", "4xx", "5xx", "left")
    for path in (state_dir / RINGS_DIRECTORY).glob(f"*{layout.SUFFIX}"):
        cells = struct.unpack_from(f"<{layout.CELLS}Q", path.read_bytes(), layout.HEADER_BYTES)
        for place, name in enumerate(names):
            count = sum(cells[place : layout.LATENCIES : layout.RECORD_CELLS])
            counts[name] = counts.get(name, 0) + count
        counts["latencies"] = counts.get("latencies", 0) + sum(cells[layout.LATENCIES :])
    return {name: count for name, count in counts.items() if count}


def first_counted(state_dir: Path) -> tuple[int, int, int]:
    """Return how many first requests of connections have begun, have failed, and have ended."""
    begun = failed = ended = 0
    for path in (state_dir / RINGS_DIRECTORY).glob(f"*{layout.SUFFIX}"):
        all_cells = struct.unpack_from(
            f"<{layout.ALL_CELLS}Q", path.read_bytes(), layout.HEADER_BYTES
        )
        cells = all_cells[layout.FIRSTS :]
        begun += sum(cells[layout.FIRST_BEGUN :: layout.FIRST_CELLS])
        failed += sum(cells[layout.FIRST_FAILED :: layout.FIRST_CELLS])
        ended += sum(cells)
    return begun, failed, ended - begun - failed


def make_counts_folder(tmp_path: Path) -> Path:
    """Make the folder that request files are in, as the daemon does; return the state folder."""
    (tmp_path / "state" / RINGS_DIRECTORY).mkdir(parents=True)
    return tmp_path / "state"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection, spoken to in plain bytes, so that nothing is retried or hidden."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def send(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> None:
        head = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}"]
        head += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)

    async def answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {}
        for line in head[1:-2]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(head[0].split()[1]), headers, body)

    async def get(self, path: str = "/", headers: dict[str, str] | None = None) -> Answer:
        self.send(path, headers=headers)
        return await self.answer()

    async def is_closed(self) -> bool:
        """Wait until the server closes; returns whether it did so without another byte."""
        return await self.reader.read() == b""


@dataclass
class Worker:
    """A running `python -m atlas_worker`, and its inherited sockets."""

    process: ForkedProcess
    public: socket.socket
    private: socket.socket
    state_dir: Path
    notifications: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return port_of(self.public)

    @property
    def own_port(self) -> int:
        return port_of(self.private)

    def activate(self) -> None:
        write_state(self.state_dir, self.own_port)

    def retire(self, **more: float) -> None:
        write_state(self.state_dir, 1, **more)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def open_files(self) -> set[str]:
        """Return what its descriptors refer to, as the kernel names it."""
        descriptors = Path(f"/proc/{self.process.pid}/fd").iterdir()
        return {str(descriptor.readlink()) for descriptor in descriptors}

    async def shed(self) -> None:
        """Wait until answers on new connections carry `Connection: close`."""
        await until(self._closes)

    async def kept(self) -> None:
        """Wait until answers on new connections leave them open."""
        await until(self._keeps)

    async def _closes(self) -> bool:
        async with Client.to(self.own_port) as client:
            return (await client.get()).closes

    async def _keeps(self) -> bool:
        return not await self._closes()

    async def exit_code(self, *, seconds: float = 20.0) -> int:
        return await asyncio.wait_for(self.process.wait(), seconds)


@contextlib.asynccontextmanager
async def running_worker(
    tmp_path: Path, *, active: bool = True, environ: dict[str, str] | None = None
) -> AsyncIterator[Worker]:
    """Start a worker by socket activation and wait for its READY=1; stop it afterwards."""
    state_dir = tmp_path / "state"
    address = f"@atlas-test-{os.getpid()}-{time.monotonic_ns()}"
    with (
        listening_socket() as public,
        listening_socket() as private,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        notify.bind("\0" + address[1:])
        notify.setblocking(False)
        if active:
            write_state(state_dir, port_of(private))
        process = await launch(
            ["-m", "atlas_worker"],
            [public, private],
            cwd=tmp_path,
            environ={
                "LISTEN_FDS": "2",
                "LISTEN_FDNAMES": "public:private",
                "NOTIFY_SOCKET": address,
                "ATLAS_PORT": str(port_of(private)),
                "ATLAS_STATE_DIR": str(state_dir),
                "ATLAS_INSTANCE": "the-instance",
                "ATLAS_VERSION": "1.2.3",
                "ATLAS_SLOT": "blue",
                **(environ or {}),
            },
        )
        try:
            ready = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(notify, 4096), 30)
            worker = Worker(process, public, private, state_dir, [ready.decode()])
            yield worker
        finally:
            await end(process)


async def launch(
    program: list[str], sockets: list[socket.socket], *, cwd: Path, environ: dict[str, str]
) -> ForkedProcess:
    """Start a program as Python would, with the sockets at descriptor 3 and up."""
    reading, writing = os.pipe()
    stdout = asyncio.StreamReader()
    try:
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stdout), os.fdopen(reading, "rb", buffering=0)
        )
        process = await WORKERS.fork(
            program,
            folder=cwd,
            environment={**PLAIN, **environ},
            outputs=(writing, 2),
            sockets=[sock.fileno() for sock in sockets],
        )
    finally:
        os.close(writing)
    process.stdout = stdout
    return process


async def end(process: asyncio.subprocess.Process | ForkedProcess) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    # Reads what is left, so that the pipe's transport is closed with the loop still running.
    await process.communicate()
