"""A worker that leaks is recycled again and again under wrk: what is lost, and what it costs.

Two wrk run at once: one keeps its connections, one opens a connection for each request. Every error
that it counts is a lost request: refused, reset, timed out, or not answered with 2xx.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from scripts.benchmarks.result import CannotRunError, Options, Result, summary, summary_table
from scripts.benchmarks.wrk import wrk
from tests.harness import DaemonProcess, Setting

LIMIT_MB = 150
LEAK = """
KEPT = []

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            name = (await receive())["type"]
            await send({"type": name + ".complete"})
            if name == "lifespan.shutdown":
                return
    KEPT.append(bytes(16384))
    length = (b"content-length", b"2")
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": b"ok"})
"""
_ROUND_SECONDS = 20.0
_LONGEST_SECONDS = 900.0
_POLL_SECONDS = 0.05


@dataclass
class Loaded:
    """What wrk has counted in all its runs."""

    requests: float = 0.0
    errors: int = 0
    p99_ms: list[float] = field(default_factory=list)


async def run(options: Options) -> Result:
    if shutil.which("wrk") is None:
        raise CannotRunError("wrk is not installed")
    count = options.count or 20
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": "python -m atlas_worker.asgi leak:app",
        "WORKER_MAX_RSS_MB": LIMIT_MB,
    }
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        async with DaemonProcess.running(Path(name), settings, files={"leak.py": LEAK}) as daemon:
            loads = {keep: Loaded() for keep in (True, False)}
            tasks = [
                asyncio.create_task(put_load(daemon, loaded, keep_alive=keep))
                for keep, loaded in loads.items()
            ]
            try:
                async with asyncio.timeout(_LONGEST_SECONDS):
                    most = await until_recycled(daemon, count)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            answer = await daemon.request("GET", "/deploy/history", params={"limit": "1000"})
            mode = (await daemon.status())["mode"]
    records = [each for each in answer.json["deploys"] if each["cause"] == "recycled"]
    facts = {
        "recycles": sum(each["result"] == "switched" for each in records),
        "recycles that failed": sum(each["result"] == "failed" for each in records),
        "requests, kept connections": round(loads[True].requests),
        "requests, one connection each": round(loads[False].requests),
        "requests lost": loads[True].errors + loads[False].errors,
        "most memory of a worker, MiB": round(most),
        "mode": mode,
    }
    times = {"start to switch": summary([took(each) for each in records if each["steps"]])}
    return Result(
        [table(facts), summary_table("each recycle", "ms", times)],
        {**facts, "limit_mb": LIMIT_MB, "times": times},
        [f"The worker keeps 16 KiB of each request; its limit is {LIMIT_MB} MiB."],
    )


async def put_load(daemon: DaemonProcess, loaded: Loaded, *, keep_alive: bool) -> None:
    """Run wrk again and again, until cancelled; the run that is cut short counts for nothing."""
    folder = daemon.folder / f"wrk-{keep_alive}"
    folder.mkdir()
    while True:
        figures = await wrk(
            folder,
            f"http://127.0.0.1:{daemon.public_port}/",
            seconds=_ROUND_SECONDS,
            connections=8,
            keep_alive=keep_alive,
        )
        loaded.requests += figures.requests_per_second * _ROUND_SECONDS
        loaded.errors += figures.errors
        loaded.p99_ms.append(figures.p99_ms)


async def until_recycled(daemon: DaemonProcess, count: int) -> float:
    """Wait for so many recycles and a run of wrk more; return the most memory of a worker."""
    most, seen = 0.0, set[str]()
    while len(seen) < count:
        status = await daemon.status()
        most = max([most, *(slot["memory_mb"] or 0.0 for slot in status["slots"])])
        last = status["last_deploy"]
        if last is not None and last["result"] == "switched":
            seen.add(last["deploy_id"])
        await asyncio.sleep(_POLL_SECONDS)
    await asyncio.sleep(_ROUND_SECONDS + 1)  # the runs that saw the last one end, too
    return most


def took(record: dict[str, Any]) -> float:
    """Return how long the steps up to the switch took, in milliseconds."""
    return float(sum(step["duration_ms"] for step in record["steps"] if step["name"] != "drain"))


def table(facts: dict[str, Any]) -> Table:
    shown = Table(title="a leaking worker under wrk", title_justify="left")
    shown.add_column("")
    shown.add_column("", justify="right")
    for label, value in facts.items():
        shown.add_row(label, f"{value:,}" if isinstance(value, int) else str(value))
    return shown
