"""How quickly health, status and metrics are answered while deploys run and a worker takes load.

Measured twice: calm, and with deploys in a row under load. The second is the claim. `/livez` beside
them computes nothing: it shows what any answer costs on a machine as busy as this.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from scripts.benchmarks.events import deploys
from scripts.benchmarks.result import Options, Result, summary, summary_table
from scripts.benchmarks.switch import LIGHT
from tests.harness import DaemonProcess, bundled_worker
from tests.loadclient import Load

FLOOR = "/livez"
TARGETS_MS = {"/health": 10.0, "/deploy/status": 10.0, "/metrics": 20.0}
"""At p99."""


async def run(options: Options) -> Result:
    seconds = options.seconds or 60.0
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        async with DaemonProcess.running(Path(name), bundled_worker(idle_grace=0.5)) as daemon:
            paths = [path for path in (FLOOR, *TARGETS_MS) if await answers(daemon, path)]
            calm = await asked(daemon, paths, seconds / 4)
            async with Load("127.0.0.1", daemon.public_port, LIGHT) as load:
                busy, count = await asked_during_deploys(daemon, paths, seconds)
                report = await load.stop()
    rows = {
        **{f"calm: {name}": summary(took) for name, took in calm.items()},
        **{f"deploys: {name}": summary(took) for name, took in busy.items()},
    }
    samples = min(map(len, busy.values()))
    missed = [name for name, took in busy.items() if summary(took)["p99"] >= target(name)]
    return Result(
        [summary_table(f"answers of the control API, {samples} and more each", "ms", rows)],
        {"milliseconds": rows, "samples": samples, "deploys": count, "missed": missed},
        [
            f"{count} deploys, {report.sent} requests to the worker ({len(report.losses)} lost)",
            f"over their target at p99: {', '.join(missed) or 'none'}",
            *(
                f"{path} does not answer 200 and is not measured"
                for path in TARGETS_MS.keys() - paths
            ),
        ],
    )


def target(name: str) -> float:
    """Return the limit of its p99, in milliseconds."""
    return TARGETS_MS.get(name.partition(",")[0], math.inf)


async def answers(daemon: DaemonProcess, path: str) -> bool:
    return (await daemon.request("GET", path)).status == 200


async def asked(daemon: DaemonProcess, paths: list[str], seconds: float) -> dict[str, list[float]]:
    """Return how long answers took, in milliseconds, by path and way in."""
    async with AsyncExitStack() as stack:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "scripts.benchmarks.asker",
            str(daemon.state_dir / "supervisor.sock"),
            str(daemon.control_port),
            str(seconds),
            *paths,
            stdout=asyncio.subprocess.PIPE,
        )
        stack.callback(lambda: process.kill() if process.returncode is None else None)
        output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the asker ended with {process.returncode}")
    took: dict[str, list[float]] = json.loads(output)
    return took


async def asked_during_deploys(
    daemon: DaemonProcess, paths: list[str], seconds: float
) -> tuple[dict[str, list[float]], int]:
    """Return the same while one deploy follows the other, and how many there were."""
    asking = asyncio.create_task(asked(daemon, paths, seconds))
    count = 0
    while not asking.done():
        await deploys(daemon, 1)
        count += 1
    return asking.result(), count
