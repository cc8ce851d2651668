"""What is lost when the active worker is killed under load and a warm version takes over."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from rich.table import Table

from scripts.benchmarks.result import Options, Result
from tests.acceptance.support import kill_under_load
from tests.harness import bundled_worker
from tests.loadclient import bundled_worker_mix


async def run(options: Options) -> Result:
    count = options.count or 50
    mix = bundled_worker_mix(pause=0.5)
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        rescue = await kill_under_load(Path(name), bundled_worker(idle_grace=0.8), mix, times=count)
    total, reasons = (
        rescue.report.total(),
        Counter(str(loss.reason) for loss in rescue.report.losses),
    )
    facts: dict[str, int | str] = {
        "kills": count,
        "requests sent": total.sent,
        "requests lost": len(rescue.report.losses),
        "lost, by reason": ", ".join(f"{n} {reason}" for reason, n in reasons.items()) or "none",
        "requests at work at once, at most": sum(kind.loops for kind in mix),
        "connections passed on": sum(rescue.rescued),
    }
    table = Table(title=f"{count} times SIGKILL of the active worker, with a warm one beside it")
    table.add_column("")
    table.add_column("", justify="right")
    for label, value in facts.items():
        table.add_row(label, f"{value:,}" if isinstance(value, int) else value)
    return Result([table], {key.replace(" ", "_"): value for key, value in facts.items()})
