"""What is lost when the active worker is killed under load, or the daemon.

A warm version takes over from a killed worker. The worker of a killed daemon goes on with the next
one.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from rich.table import Table

from scripts.benchmarks.result import Options, Result
from tests.acceptance.support import kill_the_daemon_under_load, kill_under_load
from tests.harness import bundled_worker
from tests.loadclient import Report, bundled_worker_mix


async def run(options: Options) -> Result:
    workers = await killed_workers(options.count or 50)
    daemons = await killed_daemons(options.count or 20)
    return Result([*workers.tables, *daemons.tables], {**workers.data, "daemon": daemons.data})


async def killed_workers(count: int) -> Result:
    mix = bundled_worker_mix(pause=0.5)
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        rescue = await kill_under_load(Path(name), bundled_worker(idle_grace=0.8), mix, times=count)
    facts = {
        "kills": count,
        **counted(rescue.report),
        "requests at work at once, at most": sum(kind.loops for kind in mix),
        "connections passed on": sum(rescue.rescued),
    }
    return table(f"{count} times SIGKILL of the active worker, with a warm one beside it", facts)


async def killed_daemons(count: int) -> Result:
    mix = bundled_worker_mix(pause=0.5)
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        restarts = await kill_the_daemon_under_load(
            Path(name), bundled_worker(idle_grace=0.8), mix, times=count
        )
    facts = {
        "kills": count,
        **counted(restarts.report),
        "worker processes": len(restarts.workers),
        "lost by a kill, median": int(median(restarts.lost)),
        "lost by a kill, at most": max(restarts.lost),
        "longest answer of a new connection, ms": round(
            restarts.report.kinds["one connection per request"].latency_ms(1)
        ),
    }
    return table(f"{count} times SIGKILL of the daemon, and its next start", facts)


def counted(report: Report) -> dict[str, int | str]:
    reasons = Counter(str(loss.reason) for loss in report.losses)
    return {
        "requests sent": report.sent,
        "requests lost": len(report.losses),
        "lost, by reason": ", ".join(f"{n} {reason}" for reason, n in reasons.items()) or "none",
    }


def table(title: str, facts: Mapping[str, int | str]) -> Result:
    shown = Table(title=title)
    shown.add_column("")
    shown.add_column("", justify="right")
    for label, value in facts.items():
        shown.add_row(label, f"{value:,}" if isinstance(value, int) else value)
    return Result([shown], {key.replace(" ", "_"): value for key, value in facts.items()})
