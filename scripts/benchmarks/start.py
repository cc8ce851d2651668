"""How long the daemon takes to start, beside the same program imported plainly.

It starts on a state folder of its own with a tiny worker, and is ready when `/readyz` says so.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from scripts.benchmarks.footprint import SETTINGS, WORKER, cpu_seconds
from scripts.benchmarks.result import Options, Result, summary, summary_table
from tests.harness import DaemonProcess

WAYS = {
    "python -m atlas_supervisor": ("-m", "atlas_supervisor"),
    "imported plainly": (
        "-c",
        "import sys; from atlas_supervisor.main import main; sys.exit(main())",
    ),
}


async def run(options: Options) -> Result:
    count = options.count or 15
    ready: dict[str, list[float]] = {way: [] for way in WAYS}
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(count):
        for way, arguments in WAYS.items():
            wall, cpu = await start(arguments)
            ready[way].append(wall)
            spent[way].append(cpu)
    rows = {
        **{f"{way}: until ready": summary(times) for way, times in ready.items()},
        **{f"{way}: CPU until then": summary(times) for way, times in spent.items()},
    }
    return Result(
        [summary_table(f"{count} starts each, by turns", "ms", rows)],
        {"count": count, "milliseconds": rows},
    )


async def start(arguments: tuple[str, ...]) -> tuple[float, float]:
    """Start and stop once; return the milliseconds until it was ready, of the clock and of CPU."""
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        files = {WORKER.name: WORKER.read_text()}
        daemon = DaemonProcess(Path(name), SETTINGS, files=files, program=arguments)
        began = time.monotonic()
        try:
            await daemon.start()
            wall = (time.monotonic() - began) * 1000
            cpu = cpu_seconds(daemon.pid) * 1000
            await daemon.stop()
        finally:
            await daemon.clean_up()
    return wall, cpu
