"""How often a canary is judged wrongly by services that break simpler ways of counting.

Each run plays four minutes of one service through the daemon's own windows, judge and ramp, on
simulated time. What is counted as wrong is in `tests/unit/supervisor/canary/fakes.py`.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from rich.table import Table

from atlas_supervisor.requests.old_record import upper_bound
from scripts.benchmarks.result import Options, Result
from tests.unit.supervisor.canary.fakes import NO_WORSE, played
from tests.unit.supervisor.canary.stats.support import most_by_chance

RUNS = 1_000
ALPHA = 0.05


async def run(options: Options) -> Result:
    runs = options.count or RUNS
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        counted = [loop.run_in_executor(pool, wrong, name, runs) for name in NO_WORSE]
        found = dict(zip(NO_WORSE, await asyncio.gather(*counted), strict=True))
    most = most_by_chance(runs, ALPHA, 0.001) / runs
    title = f"judged wrongly, of {runs} runs; at most {ALPHA:.0%}, or {most:.1%} by chance"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("wrong", justify="right")
    table.add_column("Clopper-Pearson, 95 %", justify="right")
    total = sum(found.values()), runs * len(found)
    for name, (count, of) in {
        **{each: (found[each], runs) for each in found},
        "all": total,
    }.items():
        low, high = 1 - upper_bound(of - count, of, 0.025), upper_bound(count, of, 0.025)
        table.add_row(name, str(count), f"{low:.1%} to {high:.1%}")
    data: dict[str, Any] = {"runs": runs, "wrong": found}
    return Result([table], data, ["simulated time; alpha 5 % for rollbacks and promotions"])


def wrong(name: str, runs: int) -> int:
    """Return in how many runs the wrong thing happens."""
    adversary = NO_WORSE[name]
    return sum(played(adversary, seed).feature.stage is adversary.wrong for seed in range(runs))
