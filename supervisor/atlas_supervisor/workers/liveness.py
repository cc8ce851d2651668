"""Probes a running worker for as long as it lives, and finds out when it hangs.

A process that is alive and answers nothing is worse than a dead one: connections wait in its
queue. Any HTTP response in time shows that it does not hang; whether it is well is for the health
and its checks, since a restart brings no database back. With `LIVENESS_PATH` the application
itself says whether it should be restarted. Only failures in a row count, and an error of the
prober itself is no evidence.
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
    """Return why the worker counts as hung; None once it has ended or was asked to end.

    Meanwhile `instance.answers` is kept up to date.
    """
    failures, own_path = 0, settings.liveness_path
    while True:
        with anyio.move_on_after(settings.liveness_interval_seconds):
            await instance.exited.wait()
        if not instance.alive or instance.expected_to_exit:
            return None
        probed = await prober.probe_response(
            port,
            own_path or settings.health_path,
            timeout_seconds=settings.health_timeout_seconds,
            expect_instance=instance.name,
        )
        result = probed.result
        if result.verdict is Verdict.INCONCLUSIVE:
            continue
        lives = result.verdict is Verdict.PASS if own_path else probed.answered
        instance.answers = probed.answered
        failures = 0 if lives else failures + 1
        if failures:
            log.warning("liveness_failed", **instance.facts, times=failures, why=result.message)
        if failures >= settings.liveness_failures:
            return f"it failed {failures} liveness probes in a row: {result.message}"
