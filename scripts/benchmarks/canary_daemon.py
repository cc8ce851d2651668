"""The daemon's cost of feature canaries, the speed of the fallback, and a day of counts.

The processes that call are real and know the daemon by its state folder alone, as workers do. The
worker of the daemon itself is tiny: it is not what is measured.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from rich.table import Table

from atlas_supervisor.model.histogram import Histogram
from atlas_worker.contract import latency_bucket
from scripts.benchmarks.footprint import WORKER, cpu_seconds
from scripts.benchmarks.result import Options, Result, quantile
from tests.harness import DaemonProcess, Setting, eventually

CALLER = Path(__file__).with_name("canary_caller.py")
ROOT = Path(__file__).parents[2]
PROCESSES, RATE = 4, 2_500.0
SHORT_RATE = 40.0
WATCHERS = 8
DAY, CALLS = 24 * 3600, 100_000_000
SETTINGS: dict[str, Setting] = {
    "WORKER_COMMAND": "python -S tiny_worker.py",
    "CANARY_ENABLED": "true",
    "CANARY_PERCENTAGE": 0.1,
    "LIVENESS_INTERVAL_SECONDS": 3600,
}


async def run(options: Options) -> Result:
    seconds, rounds = options.seconds or 15, options.rounds or 12
    cost = await cost_of_calls(seconds)
    short = await short_processes(seconds)
    spread = await time_to_go_off(rounds)
    rolled = await time_to_roll_back(rounds)
    day = await a_day_of_counts(options.count or 50)
    table = Table(title="feature canaries, the daemon's side", title_justify="left")
    for column in ("", "measured", "aim"):
        table.add_column(column)
    table.add_row(
        f"CPU for {cost['calls_per_second']:,.0f} calls/s from {PROCESSES} processes, of a core",
        f"{cost['percent']:.2f} %",
        "under 5 %",
    )
    table.add_row(
        f"lost of {short['made']:,} calls of {SHORT_RATE:.0f} short processes a second; CPU",
        f"{short['lost']}; {short['percent']:.2f} %",
        "0",
    )
    table.add_row(
        f"off in {WATCHERS} processes, daemon killed right after: median, p99, max",
        "{median:.0f}, {p99:.0f}, {max:.0f} ms".format(**spread),
        "p99 under 100 ms",
    )
    table.add_row(
        f"off in {WATCHERS} processes after the last failure, one call in 200 hanging",
        "{median:.0f}, {p99:.0f}, {max:.0f} ms".format(**rolled),
        "p99 under 250 ms",
    )
    table.add_row(
        f"report of 24 h with {CALLS:,} calls: median, max",
        "{median_ms:.0f}, {max_ms:.0f} ms".format(**day),
        "under 100 ms",
    )
    table.add_row("the database with them", f"{day['megabytes']:.1f} MB", "under 50 MB")
    note = (
        f"idle, the daemon took {cost['idle_percent']:.2f} % of a core; counted "
        f"{cost['counted']:,} of {cost['made']:,} calls, {cost['dropped']} dropped"
    )
    return Result(
        [table],
        {"cost": cost, "short": short, "off": spread, "rolled_back": rolled, "day": day},
        [note],
    )


@asynccontextmanager
async def daemon(**more: Setting) -> AsyncIterator[DaemonProcess]:
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        files = {WORKER.name: WORKER.read_text()}
        async with DaemonProcess.running(Path(name), {**SETTINGS, **more}, files=files) as running:
            yield running


@asynccontextmanager
async def callers(
    running: DaemonProcess, count: int, *arguments: str
) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Start so many processes, and yield them once all are ready."""
    environment = {"ATLAS_STATE_DIR": str(running.state_dir), "PATH": os.environ["PATH"]}
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            str(CALLER),
            *arguments,
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT / "worker")},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    if process.stdout is None:
        raise RuntimeError("the process has no output to read")
    return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()


async def cost_of_calls(seconds: float) -> dict[str, Any]:
    """Compare the daemon's CPU time under load with its idle time, in one run."""
    async with daemon(CANARY_MIN_CALLS=1_000_000_000) as running:
        before = cpu_seconds(running.pid)
        await asyncio.sleep(seconds)
        idle = (cpu_seconds(running.pid) - before) / seconds
        arguments = ("calls", str(RATE), str(seconds + 2))
        async with callers(running, PROCESSES, *arguments) as processes:
            for process in processes:
                await line(process)
            await asyncio.sleep(1)
            before, begun = cpu_seconds(running.pid), time.monotonic()
            await asyncio.sleep(seconds)
            busy = (cpu_seconds(running.pid) - before) / (time.monotonic() - begun)
            made = sum([int(await line(process)) for process in processes])
        view = (await running.request("GET", "/deploy/canary/report")).json
        status = (await running.request("GET", "/deploy/canary")).json
        arms = (view["features"][0][arm]["calls"] for arm in ("canary", "stable"))
    return {
        "percent": (busy - idle) * 100,
        "idle_percent": idle * 100,
        "calls_per_second": made / (seconds + 2),
        "made": made,
        "counted": sum(arms),
        "dropped": status["dropped_events"],
    }


async def short_processes(seconds: float) -> dict[str, Any]:
    """Count the calls of many processes that exit at once; the last ones are read within 5 s."""
    async with daemon(CANARY_MIN_CALLS=1_000_000_000) as running:
        async with callers(running, 1, "short", str(SHORT_RATE), str(seconds)) as [process]:
            await line(process)
            before, begun = cpu_seconds(running.pid), time.monotonic()
            made = int(await line(process))
            busy = (cpu_seconds(running.pid) - before) / (time.monotonic() - begun)
        counted, deadline = 0, time.monotonic() + 5
        while counted < made and time.monotonic() < deadline:
            view = (await running.request("GET", "/deploy/canary/report")).json["features"][0]
            counted = view["canary"]["calls"] + view["stable"]["calls"]
            await asyncio.sleep(0.2)
        rings = len(list((running.state_dir / "canary").glob("*.ring")))
    return {"made": made, "lost": made - counted, "percent": busy * 100, "rings_left": rings}


async def time_to_go_off(rounds: int) -> dict[str, float]:
    """Measure from the change of the state file to each process's answer."""
    took: list[float] = []
    for _ in range(rounds):
        async with daemon() as running, callers(running, WATCHERS, "watch") as processes:
            for process in processes:
                await line(process)
            state_file = running.state_dir / "deploy_state.json"

            def latched(path: Path = state_file) -> bool:
                return '"canary_disabled_fallback": true' in path.read_text()

            async with callers(running, 1, "fail", "100"):
                await eventually(latched)
                changed = state_file.stat().st_mtime_ns
                os.kill(running.pid, signal.SIGKILL)
                took += [(int(await line(each)) - changed) / 1e6 for each in processes]
            await restart(running)
    return {
        "median": statistics.median(took),
        "p99": quantile(took, 0.99),
        "max": max(took),
        "count": len(took),
    }


async def time_to_roll_back(rounds: int) -> dict[str, float]:
    """Measure from a canary's last failure to each process's share of 0, while calls hang."""
    took: list[float] = []
    for _ in range(rounds):
        settings: dict[str, Setting] = {"CANARY_ERROR_THRESHOLD": 1, "CANARY_FEATURES": "vision"}
        async with (
            daemon(**settings) as running,
            callers(running, WATCHERS, "watch-share") as watchers,
            callers(running, 1, "turn-bad") as bad,
        ):
            for process in (*watchers, *bad):
                await line(process)
            await asyncio.sleep(random.random())  # noqa: S311 - a moment between two polls
            if bad[0].stdin is None:
                raise RuntimeError("the process has no input to write")
            bad[0].stdin.write(b"now\n")
            failed = int(await line(bad[0]))
            took += [(int(await line(each)) - failed) / 1e6 for each in watchers]
    return {
        "median": statistics.median(took),
        "p99": quantile(took, 0.99),
        "max": max(took),
        "count": len(took),
    }


async def restart(running: DaemonProcess) -> None:
    """Start a killed daemon again, so that it stops its workers."""
    if running.process is not None:
        await running.process.wait()
    await running.stop_clients()
    await running.start()


async def a_day_of_counts(count: int) -> dict[str, Any]:
    """Fill the database with a day's minutes and hours, and request the report."""
    async with daemon() as running:
        fill(running.state_dir / "atlas.db")
        took = []
        for _ in range(count):
            begun = time.perf_counter()
            answer = await running.request("GET", "/deploy/canary/report?hours=24")
            took.append((time.perf_counter() - begun) * 1000)
        calls = sum(
            each[arm]["calls"] for each in answer.json["features"] for arm in ("canary", "stable")
        )
        if not 0.95 * CALLS < calls <= CALLS:
            raise RuntimeError(f"the report has {calls:,} calls of {CALLS:,}")
        size = sum(path.stat().st_size for path in running.state_dir.glob("atlas.db*"))
    return {
        "median_ms": statistics.median(took),
        "max_ms": max(took),
        "megabytes": size / 1e6,
        "calls": calls,
    }


def fill(path: Path) -> None:
    """Write the rows of a day of calls, as the daemon writes them."""
    now = int(time.time())
    with closing(sqlite3.connect(path, timeout=10)) as database:
        epochs = [row[0] for row in database.execute("SELECT epoch FROM canary_epochs")]
        with database:
            for span in (60, 3600):
                database.executemany(
                    "INSERT OR REPLACE INTO canary_counts VALUES (?, ?, ?, ?, ?, 0, ?, ?, 0, ?)",
                    rows(span, now, epochs),
                )
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def rows(span: int, now: int, epochs: list[int]) -> Iterator[tuple[object, ...]]:
    chance = random.Random(span)  # noqa: S311 - the same numbers each time, no secret
    each = CALLS * span / DAY / len(epochs)
    for start in range((now - DAY) // span * span + span, now // span * span, span):
        for epoch in epochs:
            for canary, share in ((1, 0.1), (0, 0.9)):
                calls = round(each * share)
                latency = Histogram(spread_out(calls, chance)).to_bytes()
                yield span, start, epoch, canary, calls, calls, calls // 100, latency


def spread_out(calls: int, chance: random.Random) -> Iterator[tuple[int, int]]:
    """Yield buckets of a log-normal latency around 80 ms, with their counts."""
    width, middle = 0.6, math.log(80 * chance.uniform(0.9, 1.1))
    low, high = latency_bucket(5.0), latency_bucket(2000.0)
    weights = []
    for bucket in range(low, high):
        position = (bucket - low) / (high - low) * (math.log(2000) - math.log(5)) + math.log(5)
        weights.append(math.exp(-((position - middle) ** 2) / (2 * width**2)))
    total, left = sum(weights), calls
    for bucket, weight in zip(range(low, high), weights, strict=True):
        share = min(left, round(calls * weight / total))
        left -= share
        if share:
            yield bucket, share
    if left:
        yield high, left
