"""Probes a running worker for as long as it lives, and finds out when it hangs.

A process that is alive and answers nothing is worse than a dead one: connections wait in its
queue. Only failures in a row count, and an error of the prober itself is no evidence.
"""

from __future__ import annotations

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.workers.process import WorkerProcess

log = structlog.get_logger(__name__)


async def until_hung(
    instance: WorkerProcess, port: int, prober: HttpProber, settings: Settings
) -> str | None:
    """Return why the worker counts as hung; None once it has ended or was asked to end."""
    failures = 0
    while True:
        with anyio.move_on_after(settings.liveness_interval_seconds):
            await instance.exited.wait()
        if not instance.alive or instance.expected_to_exit:
            return None
        result = await prober.probe(
            port,
            settings.health_path,
            timeout_seconds=settings.health_timeout_seconds,
            expect_instance=instance.name,
        )
        if result.verdict is Verdict.INCONCLUSIVE:
            continue
        failures = failures + 1 if result.verdict is Verdict.FAIL else 0
        if failures:
            log.warning("liveness_failed", **instance.facts, times=failures, why=result.message)
        if failures >= settings.liveness_failures:
            return f"it failed {failures} liveness probes in a row: {result.message}"
