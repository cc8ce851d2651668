"""How long traffic takes to move, and what a deploy costs beyond what the worker itself needs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.benchmarks import longest
from scripts.benchmarks.result import Options, Result, summary, summary_table
from tests.harness import DaemonProcess, bundled_worker, write_release
from tests.loadclient import Load, Traffic, bundled_worker_home, echo

PROBES = 3
INTERVAL_SECONDS = 0.05
LIGHT = (
    Traffic("keep-alive GET", 2, bundled_worker_home, think=(0.02, 0.05)),
    echo("one connection per request", 2, body_size=64, keep_alive=False, think=(0.02, 0.05)),
)


async def run(options: Options) -> Result:
    count = options.count or 50
    walls: list[float] = []
    records: list[dict[str, Any]] = []
    settings = {
        "HEALTH_PROBES": PROBES,
        "HEALTH_INTERVAL_SECONDS": INTERVAL_SECONDS,
        **bundled_worker(idle_grace=0.5),
    }
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        async with (
            DaemonProcess.running(Path(name), settings) as daemon,
            Load("127.0.0.1", daemon.public_port, LIGHT) as load,
        ):
            for number in range(count):
                write_release(daemon.worker_directory, f"v{number + 2}")
                began = time.monotonic()
                answer = await daemon.deploy()
                walls.append((time.monotonic() - began) * 1000)
                if answer.status != 200:
                    raise RuntimeError(f"deploy {number + 1} was not done: {answer}")
                # The drain is over before the next one begins, and so is in no figure.
                records.append(await daemon.ended(answer.json["deploy_id"]))
            report = await load.stop()
        with_and_without = await longest.measure(Path(name) / "longest", options)
    rows = figures(records, walls)
    lost = f"{report.sent} requests were sent meanwhile, {len(report.losses)} lost"
    return Result(
        [
            summary_table(f"{count} deploys under light load", "ms", rows),
            longest.table(with_and_without),
        ],
        {
            "count": count,
            "milliseconds": rows,
            "sent": report.sent,
            "lost": len(report.losses),
            "longest_request": longest.figures(with_and_without),
        },
        [
            lost,
            "own overhead: the whole request, less the launch and the pauses between probes",
        ],
    )


def figures(records: list[dict[str, Any]], walls: list[float]) -> dict[str, dict[str, float]]:
    """Sum up, in milliseconds."""
    durations = [
        {step["name"]: step["duration_ms"] for step in record["steps"]} for record in records
    ]
    flips = [
        step["detail"]["flip_us"] / 1000
        for record in records
        for step in record["steps"]
        if step["name"] == "switch"
    ]
    waited = (PROBES - 1) * INTERVAL_SECONDS * 1000
    own = [wall - each["launch"] - waited for wall, each in zip(walls, durations, strict=True)]
    steps = {name: summary([each[name] for each in durations]) for name in durations[0]}
    return {
        "the flip alone": summary(flips),
        **{f"step: {name}": values for name, values in steps.items()},
        "the whole request": summary(walls),
        "a deploy's own overhead": summary(own),
    }
