"""What the relay plane costs, beside other programs that copy bytes before the same worker.

It is for workers that bind their own port: every byte goes through the daemon. HAProxy in TCP
mode is what one would take instead, socat the plainest thing that does the job. The worker is
nginx, so that the worker is not what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from scripts.benchmarks import hop
from scripts.benchmarks.machine import allow_many_files
from scripts.benchmarks.proxies import haproxy_tcp, socat
from scripts.benchmarks.quick_worker import LARGE_BYTES
from scripts.benchmarks.result import CannotRunError, Options, Result
from tests.harness import DaemonProcess, Setting, eventually, free_ports, missing

WORKER = Path(__file__).with_name("quick_worker.py")
PACKAGES = ("wrk", "haproxy", "nginx", "socat")
RELAY, HAPROXY, SOCAT = "our relay", "HAProxy, TCP mode", "socat"
IDLE_CONNECTIONS = 1000


@dataclass(frozen=True)
class Contender:
    """One way to the worker; `pid` is of the process whose memory grows, with its children."""

    port: int
    pid: int


async def run(options: Options) -> Result:
    if absent := missing(*PACKAGES):
        raise CannotRunError(f"install the packages of these programs first: {', '.join(absent)}")
    rounds, seconds = options.rounds or 6, options.seconds or 1
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        folder = Path(name)
        async with contenders(folder) as (backend, found):
            memory = {label: await idle_memory(each) for label, each in found.items()}
            ports = {
                hop.SLOT: backend,
                **{label: each.port for label, each in found.items()},
            }
            loads = {
                kind.name: await hop.compare(folder, ports, kind, rounds, seconds)
                for kind in hop.KINDS
            }
            rates = await downloads(ports, rounds)
    return Result(
        [*(hop.table(kind, found) for kind, found in loads.items()), bulk_table(rates, memory)],
        {
            "rounds": rounds,
            "seconds": seconds,
            "results": {
                kind: {
                    target: {**hop.median(figures), "ratio": hop.ratio(by_target, target)}
                    for target, figures in by_target.items()
                }
                for kind, by_target in loads.items()
            },
            "download_mb_per_second": rates,
            "idle_kib_per_connection": memory,
        },
        [
            f"nginx as the worker; {rounds} interleaved rounds of {seconds} s; medians",
            f"a download is of {LARGE_BYTES // 2**20} MiB",
            f"memory: what {IDLE_CONNECTIONS:,} silent connections add to the PSS, with children",
        ],
    )


@asynccontextmanager
async def contenders(folder: Path) -> AsyncIterator[tuple[int, dict[str, Contender]]]:
    """Run a worker behind all of them; yields its own port too."""
    command: dict[str, Setting] = {"WORKER_COMMAND": "python quick_worker.py {port}"}
    files = {WORKER.name: WORKER.read_text()}
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(
            DaemonProcess.running(folder, command, files=files)
        )
        backend: int = (await daemon.status())["active_port"]
        ports = free_ports(2)
        pids = (
            await stack.enter_async_context(haproxy_tcp(folder, ports[0], backend)),
            await stack.enter_async_context(socat(ports[1], backend)),
        )
        yield (
            backend,
            {
                RELAY: Contender(daemon.public_port, daemon.pid),
                HAPROXY: Contender(ports[0], pids[0]),
                SOCAT: Contender(ports[1], pids[1]),
            },
        )


async def idle_memory(contender: Contender) -> float:
    """Return how much memory an open connection takes on which nothing is said, in KiB."""
    with contextlib.ExitStack() as stack:
        allow_many_files()
        (first,) = connect(contender.port, 1, stack)  # what is loaded at the first use is no cost
        await asyncio.to_thread(first.sendall, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.to_thread(first.recv, 4096)
        before = family_memory(contender.pid)
        for client in connect(contender.port, IDLE_CONNECTIONS, stack):
            client.setblocking(False)
        last = -1

        def settled() -> bool:
            nonlocal last
            last, previous = family_memory(contender.pid), last
            return last == previous

        await asyncio.sleep(1)
        await eventually(settled, within=30, what="memory that does not change")
        return round((last - before) / IDLE_CONNECTIONS, 1)


def connect(port: int, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Open connections, to be closed with the stack."""
    return [
        stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(count)
    ]


def family_memory(pid: int) -> int:
    """Return the proportional share of memory of a process and its children, in KiB."""
    return sum(memory_of(each) for each in (pid, *children_of(pid)))


def children_of(pid: int) -> Iterator[int]:
    """Yield the copiers' children, of which socat has one a connection; ours are workers."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    for child in map(int, path.read_text().split()):
        command = Path(f"/proc/{child}/comm").read_text().strip()
        if command == Path(f"/proc/{pid}/comm").read_text().strip() == "socat":
            yield child


def memory_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError(f"the kernel does not tell the memory of process {pid}")


async def downloads(ports: dict[str, int], rounds: int) -> dict[str, float]:
    """Return the median rate of a large download through each, in MB/s."""
    rates: dict[str, list[float]] = {label: [] for label in ports}
    for _ in range(rounds):
        for label, port in ports.items():
            rates[label].append(await asyncio.to_thread(download, port))
    return {label: round(statistics.median(found), 1) for label, found in rates.items()}


def download(port: int) -> float:
    """Fetch the large file once; return MB/s. Raises RuntimeError if any of it is missing."""
    buffer, total, began = bytearray(1 << 20), 0, time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while count := client.recv_into(buffer):
            total += count
    if total < LARGE_BYTES:
        raise RuntimeError(f"{total} bytes came of {LARGE_BYTES}")
    return total / 1e6 / (time.perf_counter() - began)


def bulk_table(rates: dict[str, float], memory: dict[str, Any]) -> Table:
    shown = Table(title="large downloads, and silent connections", title_justify="left")
    shown.add_column("")
    shown.add_column("MB/s", justify="right")
    shown.add_column("KiB a connection", justify="right")
    for label, rate in rates.items():
        shown.add_row(label, f"{rate:,.0f}", str(memory.get(label, "")))
    return shown
