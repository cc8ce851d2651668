"""What the counting of a request costs a worker: the counter alone, and a server with it.

The same server runs twice side by side, once with a folder for its counts and once without, under
the same load in turns. The claim is the CPU time that a request costs more: throughput says less on
a machine that does other things.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from rich.table import Table

from atlas_supervisor.system import procfs
from atlas_worker.contract import ENV_INSTANCE, ENV_STATE_DIR, RINGS_DIRECTORY
from atlas_worker.contract.addresses import Drawn, address_key
from atlas_worker.contract.request_file import ALL_CELLS, WORD_BYTES
from atlas_worker.request_counter import NOT_DRAWN, counter, counting, counting_addresses
from scripts.benchmarks.result import CannotRunError, Options, Result, summary, summary_table
from scripts.benchmarks.wrk import wrk
from tests.harness import free_ports, missing

TARGET_US = 2.0
CALLS = 20_000
CONNECTIONS = 16
APPS = Path(__file__).parents[2] / "tests" / "apps"
SERVERS = {
    "bundled worker (aiohttp)": ["-m", "atlas_worker"],
    "ASGI runner": ["-m", "atlas_worker.asgi", "--app-dir", str(APPS), "asgi_apps:plain"],
}
COUNTED, UNCOUNTED = "counted", "not counted"


async def run(options: Options) -> Result:
    if absent := missing("wrk"):
        raise CannotRunError(f"install the packages of these programs first: {', '.join(absent)}")
    rounds, seconds = options.rounds or 12, options.seconds or 1
    alone = {
        "a request": summary([counter_us(first=False) for _ in range(50)]),
        "the first one of a connection": summary([counter_us(first=True) for _ in range(50)]),
        "the first one of an address in a second": summary([address_us() for _ in range(50)]),
    }
    costs: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        for server, command in SERVERS.items():
            costs[server] = await cost(Path(name) / server[:4], command, rounds, seconds)
    return Result(
        [
            summary_table(f"begin and end of one request, 50 times {CALLS}", "µs of CPU", alone),
            table(costs),
        ],
        {"counter_us": alone, "servers": costs, "target_us": TARGET_US},
        [
            f"GET / on {CONNECTIONS} keep-alive connections, {rounds} rounds of {seconds} s",
            "difference: the median of those within a round, with its standard error",
        ],
    )


def counter_us(*, first: bool) -> float:
    """Return the CPU time of one counted request, in microseconds, with that of its connection."""
    begin, end = counting(memoryview(mmap.mmap(-1, ALL_CELLS * WORD_BYTES)).cast("Q"))
    started = time.process_time()
    for _ in range(CALLS):
        end(begin(counter.connected(None) if first else NOT_DRAWN), 200)
    took = time.process_time() - started
    return took / CALLS * 1e6


def address_us() -> float:
    """Return the CPU time of one counted request from an address that was not seen before."""
    cells = memoryview(mmap.mmap(-1, ALL_CELLS * WORD_BYTES)).cast("Q")
    begin, end = counting_addresses(cells)
    started = time.process_time()
    for number in range(CALLS):
        client = f"10.{number >> 8 & 255}.{number & 255}.1"
        end(begin(Drawn(time.monotonic(), address_key(client, b"secret"))), 200)
    return (time.process_time() - started) / CALLS * 1e6


async def cost(folder: Path, command: list[str], rounds: int, seconds: float) -> dict[str, float]:
    """Return the CPU time of a request with and without counting, in microseconds."""
    took: dict[str, list[float]] = {COUNTED: [], UNCOUNTED: []}
    async with AsyncExitStack() as stack:
        servers = {}
        for kind, port in zip(took, free_ports(2), strict=True):
            state_dir = folder / kind.replace(" ", "-")
            state_dir.mkdir(parents=True)
            if kind is COUNTED:
                (state_dir / RINGS_DIRECTORY).mkdir()
            pid = await stack.enter_async_context(serving(command, port, state_dir))
            servers[kind] = pid, port
        for number in range(rounds + 1):
            for kind in list(took) if number % 2 else reversed(list(took)):
                used = await cpu_us(folder, *servers[kind], seconds)
                if number:  # the first round warms up
                    took[kind].append(used)
    more = [one - other for one, other in zip(took[COUNTED], took[UNCOUNTED], strict=True)]
    return {
        COUNTED: round(statistics.median(took[COUNTED]), 2),
        UNCOUNTED: round(statistics.median(took[UNCOUNTED]), 2),
        "difference": round(statistics.median(more), 2),
        "standard error": round(statistics.stdev(more) / len(more) ** 0.5, 2),
    }


@asynccontextmanager
async def serving(command: list[str], port: int, state_dir: Path) -> AsyncIterator[int]:
    """Run a server on this port until it is no longer needed, and yield its pid."""
    environ = {ENV_INSTANCE: "bench", ENV_STATE_DIR: str(state_dir), "PATH": os.environ["PATH"]}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command, "--port", str(port)),
        env=environ,
        cwd=state_dir,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        for _ in range(500):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
        yield process.pid
    finally:
        process.kill()
        await process.wait()


async def cpu_us(folder: Path, pid: int, port: int, seconds: float) -> float:
    before = procfs.usage(pid)
    figures = await wrk(
        folder,
        f"http://127.0.0.1:{port}/",
        seconds=seconds,
        connections=CONNECTIONS,
        keep_alive=True,
    )
    after = procfs.usage(pid)
    if before is None or after is None:
        raise CannotRunError("the server has ended")
    requests = figures.requests_per_second * max(1, round(seconds))
    return (after[1] - before[1]) / requests * 1e6


def table(costs: dict[str, dict[str, float]]) -> Table:
    shown = Table(title="CPU time of a request in the server, µs", title_justify="left")
    shown.add_column("")
    for column in (COUNTED, UNCOUNTED, "difference", "standard error"):
        shown.add_column(column, justify="right")
    for server, row in costs.items():
        shown.add_row(server, *(f"{value:.2f}" for value in row.values()))
    return shown
