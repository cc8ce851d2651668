"""What a worker that floods its log costs: disk, the daemon's memory, and everybody's time.

The worker writes NUL bytes without a line's end as fast as its disk takes them, in rounds that
alternate with silent ones. A client follows the log meanwhile. A stall of the daemon's loop shows
from outside: `/livez` does nothing, so its longest answer is the longest stall and the way there.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from rich.table import Table

from scripts.benchmarks.footprint import sample
from scripts.benchmarks.result import Options, Result, summary, summary_table
from tests.harness import DaemonProcess, Setting, eventually

WORKER = Path(__file__).with_name("tiny_worker.py")
LINE_BYTES = 100_000_000
LONGEST_SECONDS = 30.0
_PAUSE_SECONDS = 0.002
FLOODING = """
import os, runpy, threading, time
from pathlib import Path

def flood():
    piece = bytes(1 << 20)
    while True:
        while not Path("flood").exists():
            time.sleep(0.005)
        limit, written = int(Path("flood").read_text()), 0
        while Path("flood").exists() and (not limit or written < limit):
            written += os.write(1, piece[: limit - written] if limit else piece)
        os.write(1, b"\\n")
        Path("written").write_text(str(written))
        while Path("flood").exists():
            time.sleep(0.005)

threading.Thread(target=flood, daemon=True).start()
runpy.run_path("tiny_worker.py", run_name="__main__")
"""
SETTINGS: Mapping[str, Setting] = {"WORKER_COMMAND": "python -S flooding.py", "HEALTH_PROBES": 1}


@dataclass
class Seen:
    """What was seen from outside during the rounds of one kind."""

    disk: int = 0
    resident: int = 0
    written: int = 0
    seconds: float = 0.0
    livez: list[float] = field(default_factory=list)
    status: list[float] = field(default_factory=list)


async def run(options: Options) -> Result:
    seconds, rounds = options.seconds or 5, options.rounds or 3
    kinds = {"silent": Seen(), "flood": Seen(), "one line of 100 MB": Seen()}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        files = {"flooding.py": FLOODING, WORKER.name: WORKER.read_text()}
        async with (
            DaemonProcess.running(Path(name), SETTINGS, files=files) as daemon,
            follower(daemon) as heard,
        ):
            for _ in range(rounds):
                await watch(daemon, kinds["silent"], seconds)
                await flood(daemon, kinds["flood"], seconds, limit=0)
                await flood(daemon, kinds["one line of 100 MB"], LONGEST_SECONDS, limit=LINE_BYTES)
            followed = heard[0]
    rows = {kind: summary(seen.livez) for kind, seen in kinds.items()}
    statuses = {kind: summary(seen.status) for kind, seen in kinds.items()}
    data = {
        kind: {**vars(seen), "livez": rows[kind], "status": statuses[kind]}
        for kind, seen in kinds.items()
    }
    return Result(
        [
            costs(kinds),
            summary_table("GET /livez", "ms", rows),
            summary_table("GET /deploy/status", "ms", statuses),
        ],
        data,
        [f"a client that followed the log meanwhile got {followed / 1e6:.2f} MB"],
    )


async def flood(daemon: DaemonProcess, seen: Seen, seconds: float, *, limit: int) -> None:
    """Let the worker write for so long, or up to the limit in bytes, and watch."""
    switch, report = daemon.worker_directory / "flood", daemon.worker_directory / "written"
    report.unlink(missing_ok=True)
    switch.write_text(str(limit))
    began = time.monotonic()
    await watch(daemon, seen, seconds, until=report)
    switch.unlink()
    await eventually(lambda: reported(report), within=LONGEST_SECONDS, what="the flood's end")
    seen.seconds += time.monotonic() - began
    seen.written += int(reported(report))


def reported(path: Path) -> str:
    """Return the worker's report; empty if there is none yet."""
    return path.read_text() if path.exists() else ""


async def watch(
    daemon: DaemonProcess, seen: Seen, seconds: float, until: Path | None = None
) -> None:
    """Ask again and again, and look at disk and memory in between."""
    deadline, turn = time.monotonic() + seconds, 0
    while time.monotonic() < deadline and not (until and reported(until)):
        for path, took in (("/livez", seen.livez), ("/deploy/status", seen.status)):
            began = time.perf_counter()
            answer = await daemon.request("GET", path)
            took.append((time.perf_counter() - began) * 1000)
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer}")
            seen.disk = max(seen.disk, disk(daemon))
        if turn % 20 == 0:
            seen.resident = max(seen.resident, sample(daemon, 0).resident)
        turn += 1
        await asyncio.sleep(_PAUSE_SECONDS)


def disk(daemon: DaemonProcess) -> int:
    """Return the size of the slot's files, in bytes."""
    total = 0
    for path in (daemon.state_dir / "logs").glob("worker-*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


@asynccontextmanager
async def follower(daemon: DaemonProcess) -> AsyncIterator[list[int]]:
    """Follow the log; yields a list with the number of bytes that came so far."""
    heard = [0]

    async def follow() -> None:
        headers = {"Authorization": f"Bearer {daemon.token}"}
        url = f"http://127.0.0.1:{daemon.control_port}/deploy/logs/blue?follow=true"
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
            session.get(url) as response,
        ):
            async for piece in response.content.iter_any():
                heard[0] += len(piece)

    task = asyncio.create_task(follow())
    try:
        yield heard
    finally:
        task.cancel()


def costs(kinds: Mapping[str, Seen]) -> Table:
    shown = Table(title="a worker's output, at most", title_justify="left")
    for column in ("", "written, MB", "MB/s", "its files, MB", "daemon resident, MB"):
        shown.add_column(column, justify="right" if column else "left")
    for kind, seen in kinds.items():
        shown.add_row(
            kind,
            f"{seen.written / 1e6:,.0f}",
            f"{seen.written / seen.seconds / 1e6:,.0f}" if seen.seconds else "",
            f"{seen.disk / 1e6:,.0f}",
            f"{seen.resident * 1024 / 1e6:.1f}",
        )
    return shown
