"""The daemon is reloaded again and again under load: what is lost, what grows, how long it takes.

Clients use the public port in every way that the bundled worker serves, and two ask the API without
a pause: a request that is refused, reset or answered with an error counts as lost.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.table import Table

from scripts.benchmarks.footprint import Sample, sample
from scripts.benchmarks.rescue import counted
from scripts.benchmarks.result import Options, Result, summary, summary_table
from tests.harness import DaemonProcess, bundled_worker
from tests.loadclient import Load, bundled_worker_mix

WARM_UP = 5
"""The first reloads, after which nothing may grow any more."""
_LIMIT_SECONDS = 60.0
_PAUSE_SECONDS = 0.002


@dataclass
class Asked:
    """What asking the API without a pause brought."""

    answers: int = 0
    longest_ms: float = 0.0
    """The longest wait for an answer since this was last set to 0."""
    lost: Counter[str] = field(default_factory=Counter)


async def run(options: Options) -> Result:
    count = options.count or 100
    asked = Asked()
    waits, took = [], []
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        settings = bundled_worker(idle_grace=0.8)
        async with DaemonProcess.running(Path(name), settings) as daemon:
            workers = pids(await daemon.status())
            asking = [asyncio.create_task(ask(daemon, asked, unix=unix)) for unix in (True, False)]
            async with Load("127.0.0.1", daemon.public_port, bundled_worker_mix(pause=0.5)) as load:
                samples = [sample(daemon, 0)]
                for number in range(1, count + 1):
                    asked.longest_ms, began = 0.0, time.monotonic()
                    await reload(daemon)
                    took.append((time.monotonic() - began) * 1000)
                    waits.append(asked.longest_ms)
                    if number in {WARM_UP, count} or number % max(1, count // 5) == 0:
                        samples.append(sample(daemon, number))
                report = await load.stop()
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
            same = pids(await daemon.status()) == workers
            zombies = zombies_of(daemon.pid)
    facts = {
        "reloads": count,
        **counted(report),
        "API requests answered": asked.answers,
        "API requests lost": ", ".join(f"{n} {why}" for why, n in asked.lost.items()) or "none",
        "same workers": "yes" if same else "no",
        "zombies": zombies,
    }
    times = {"longest wait for an API answer": summary(waits), "check and reload": summary(took)}
    return Result(
        [facts_table(facts), summary_table("each reload", "ms", times), growth(samples)],
        {**facts, "times": times, "samples": [asdict(each) for each in samples]},
    )


def pids(status: dict[str, Any]) -> set[int]:
    return {slot["pid"] for slot in status["slots"]}


def zombies_of(pid: int) -> int:
    """Return how many children of the process have ended and are not reaped."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    states = [Path(f"/proc/{each}/stat").read_text().rpartition(") ")[2][0] for each in children]
    return states.count("Z")


async def ask(daemon: DaemonProcess, asked: Asked, *, unix: bool) -> None:
    """Ask for the status on one connection after the other, until cancelled."""
    connector: aiohttp.BaseConnector = aiohttp.TCPConnector(force_close=True)
    base = f"http://127.0.0.1:{daemon.control_port}"
    if unix:
        socket = daemon.state_dir / "supervisor.sock"
        connector, base = aiohttp.UnixConnector(str(socket), force_close=True), "http://localhost"
    async with aiohttp.ClientSession(base, connector=connector) as session:
        while True:
            began = time.monotonic()
            try:
                async with session.get("/livez") as response:
                    await response.read()
                    asked.answers += 1
                    if response.status != 200:
                        asked.lost[str(response.status)] += 1
            except aiohttp.ClientError as error:
                asked.lost[type(error).__name__] += 1
            asked.longest_ms = max(asked.longest_ms, (time.monotonic() - began) * 1000)
            await asyncio.sleep(_PAUSE_SECONDS)


async def reload(daemon: DaemonProcess) -> None:
    """Reload, and return once the next daemon answers. Raises RuntimeError if it does not."""
    answer = await daemon.request("POST", "/supervisor/reload")
    if answer.status != 202:
        raise RuntimeError(f"the reload was refused: {answer}")
    before, deadline = answer.json["before"], time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < deadline:
        await daemon.stop_clients()  # its kept connection is closed
        answer = await daemon.request("GET", "/deploy/status")
        if answer.status == 200 and answer.json["daemon"]["started_ts"] != before["started_ts"]:
            return
        await asyncio.sleep(_PAUSE_SECONDS)
    raise RuntimeError("the daemon was not replaced")


def facts_table(facts: dict[str, int | str]) -> Table:
    shown = Table(title="reloads under load", title_justify="left")
    shown.add_column("")
    shown.add_column("", justify="right")
    for label, value in facts.items():
        shown.add_row(label, f"{value:,}" if isinstance(value, int) else value)
    return shown


def growth(samples: list[Sample]) -> Table:
    shown = Table(title="the daemon after so many reloads", title_justify="left")
    for column in ("reloads", "resident, MB", "descriptors", "threads"):
        shown.add_column(column, justify="right")
    for each in samples:
        shown.add_row(
            str(each.deploys),
            f"{each.resident * 1024 / 1e6:.1f}",
            str(each.descriptors),
            str(each.threads),
        )
    return shown
