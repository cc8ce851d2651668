"""The acceptance test with its numbers, one worker after the other, or longer than the suite's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from scripts.benchmarks.result import Options, Result
from tests.acceptance.support import WORKERS, Run, deploys_and_rollbacks
from tests.loadclient import streams

DEPLOYS, ROLLBACKS = 50, 20


async def run(options: Options) -> Result:
    deploys = options.count or DEPLOYS
    rollbacks = max(1, deploys * ROLLBACKS // DEPLOYS)
    runs: dict[str, Run] = {}
    for worker in WORKERS:
        with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
            folder = Path(name)
            runs[worker] = await deploys_and_rollbacks(
                folder, worker, deploys=deploys, rollbacks=rollbacks
            )
    faults = {worker: each.faults() for worker, each in runs.items()}
    notes = [f"{worker}: {fault}" for worker, found in faults.items() for fault in found[:20]]
    title = f"{deploys} deploys, then {rollbacks} deploys that are rolled back, under load"
    return Result(
        [table(title, runs)],
        {worker: figures(each) for worker, each in runs.items()},
        notes or ["no request was lost, and every stream was closed properly"],
    )


def figures(run: Run) -> dict[str, Any]:
    """Sum up one worker's run."""
    websocket, events = (run.report.kinds[kind.name] for kind in streams())
    return {
        "seconds": [round(each, 1) for each in run.seconds],
        "requests": run.report.sent,
        "lost": len(run.report.losses),
        "websockets_by_code": dict(websocket.goodbyes),
        "messages_crossed": websocket.crossed,
        "event_streams_ended": events.goodbyes.total(),
    }


def table(title: str, runs: dict[str, Run]) -> Table:
    shown = Table(title=title, title_justify="left")
    shown.add_column("worker")
    columns = ("seconds", "requests", "lost", "WebSockets closed, by code", "crossed", "SSE ended")
    for column in columns:
        shown.add_column(column, justify="right")
    for worker, run in runs.items():
        found = figures(run)
        codes = ", ".join(f"{code}: {n}" for code, n in found["websockets_by_code"].items())
        shown.add_row(
            worker,
            f"{sum(run.seconds):.0f}",
            f"{found['requests']:,}",
            f"{found['lost']}",
            codes,
            f"{found['messages_crossed']}",
            f"{found['event_streams_ended']}",
        )
    return shown
