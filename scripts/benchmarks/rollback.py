"""How quickly a bad version is out of traffic while the one before is still warm."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from scripts.benchmarks.result import Options, Result, summary, summary_table
from tests.harness import DaemonProcess, write_release


async def run(options: Options) -> Result:
    count = options.count or 20
    walls: list[float] = []
    steps: list[float] = []
    settings = {"KEEP_WARM_SECONDS": 300, "HEALTH_PROBES": 1}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        async with DaemonProcess.running(Path(name), settings) as daemon:
            for number in range(count):
                write_release(daemon.worker_directory, f"v{number + 2}")
                deployed = await daemon.deploy()
                if deployed.status != 200:
                    raise RuntimeError(f"deploy {number + 1} was not done: {deployed}")
                began = time.monotonic()
                answer = await daemon.request("POST", "/deploy/rollback")
                walls.append((time.monotonic() - began) * 1000)
                if answer.status != 200:
                    raise RuntimeError(f"rollback {number + 1} was not done: {answer}")
                steps.append(answer.json["steps"][-1]["duration_ms"])
    rows = {"the server's own time": summary(steps), "the whole request": summary(walls)}
    return Result(
        [summary_table(f"{count} rollbacks to a warm version", "ms", rows)],
        {"count": count, "milliseconds": rows},
    )
