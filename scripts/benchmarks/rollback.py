"""How quickly a bad version is out of traffic while the one before is still warm."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from scripts.benchmarks.result import Options, Result, summary, summary_table
from tests.harness import DaemonProcess, write_release


async def run(options: Options) -> Result:
    count = options.count or 20
    settings = {"KEEP_WARM_SECONDS": 300, "HEALTH_PROBES": 1}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        async with DaemonProcess.running(Path(name), settings) as daemon:
            walls = [await roll_back(daemon, number) for number in range(1, count + 1)]
            own = server_times(daemon)
    if len(own) != count:
        raise RuntimeError(f"the daemon's log tells of {len(own)} rollbacks, {count} were done")
    rows = {"the server's own time": summary(own), "the whole request": summary(walls)}
    return Result(
        [summary_table(f"{count} rollbacks to a warm version", "ms", rows)],
        {"count": count, "milliseconds": rows},
    )


async def roll_back(daemon: DaemonProcess, number: int) -> float:
    """Deploy and roll back once, to the very end; return the milliseconds of the rollback."""
    write_release(daemon.worker_directory, f"v{number + 1}")
    deployed = await daemon.deploy()
    began = time.monotonic()
    answer = await daemon.request("POST", "/deploy/rollback")
    wall = (time.monotonic() - began) * 1000
    if answer.status != 200 or answer.json["result"] != "rolled_back":
        raise RuntimeError(f"rollback {number} of {deployed} was not done: {answer}")
    await daemon.ended(answer.json["deploy_id"])
    return wall


def server_times(daemon: DaemonProcess) -> list[float]:
    """Return, from the daemon's log, how long it took over each rollback, in milliseconds."""
    lines = (daemon.state_dir / "logs" / "supervisor.jsonl").read_text().splitlines()
    events = (json.loads(line) for line in lines)
    return [
        event["duration_ms"]
        for event in events
        if event["event"] == "api_changed" and event["path"] == "/deploy/rollback"
    ]
