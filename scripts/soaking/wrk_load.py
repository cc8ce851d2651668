"""wrk beside the load client: many more requests, of one kind, and judged by another program."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.wrk import wrk
from scripts.soaking.report import LOST, Findings

RUN_SECONDS = 5
CONNECTIONS = 2


@dataclass
class WrkLoad:
    """Runs of wrk, in turn with keep-alive and with one connection per request."""

    folder: Path
    url: str
    findings: Findings
    killed: Callable[[], int]
    """How many serving workers were killed: such a run may have errors."""
    requests: int = 0

    @asynccontextmanager
    async def running(self, wanted: bool) -> AsyncIterator[None]:
        """Run it meanwhile, if it is wanted."""
        task = asyncio.create_task(self.run()) if wanted else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
                if not task.cancelled() and (error := task.exception()):
                    raise error

    async def run(self) -> None:
        """Run wrk again and again, until cancelled."""
        for number in itertools.count():
            killed, keep_alive = self.killed(), number % 2 == 0
            figures = await wrk(
                self.folder,
                self.url,
                seconds=RUN_SECONDS,
                connections=CONNECTIONS,
                keep_alive=keep_alive,
            )
            self.requests += round(figures.requests_per_second * RUN_SECONDS)
            kind = "keep-alive" if keep_alive else "one-shot"
            lost = [f"wrk, {kind}: {figures.errors} errors"] if figures.errors else []
            if killed == self.killed():
                self.findings.note(LOST, lost, "a run of wrk")
