"""Whether an instance that was launched has become ready, or what it did instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from atlas_supervisor.config import Settings
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.workers.output import WorkerLog
from atlas_supervisor.workers.process import WorkerProcess

_RETRY_SECONDS = 0.05


class LaunchError(Exception):
    """The instance did not become ready; `detail` says what it did instead."""

    def __init__(self, message: str, **detail: Any) -> None:
        super().__init__(message)
        self.detail = {"message": message, **detail}


async def until_ready(
    instance: WorkerProcess, port: int, output: WorkerLog, prober: HttpProber, settings: Settings
) -> str:
    """Wait until it says so or answers on its port, and return which it was.

    Raises LaunchError, with the last lines of its output, if it dies or takes too long.
    """
    allowed = settings.ready_timeout_seconds
    how: list[str] = []

    async def first(waiter: Callable[[], Awaitable[Any]], text: str) -> None:
        await waiter()
        how.append(text)
        race.cancel_scope.cancel()

    async def answers() -> None:
        await _first_answer(port, prober, settings)

    with anyio.move_on_after(allowed):
        async with anyio.create_task_group() as race:
            race.start_soon(first, instance.exited.wait, "exited")
            race.start_soon(first, instance.said_ready.wait, "it said READY=1")
            race.start_soon(first, answers, "it answered")
    if instance.alive and how:
        return how[0]
    if instance.alive:
        message = f"it was not ready within {allowed:g} s"
    else:
        message = f"it {instance.exit_text} before it was ready"
    raise LaunchError(message, output=output.last_lines())


async def _first_answer(port: int, prober: HttpProber, settings: Settings) -> None:
    """Wait for an HTTP answer of any status; the listener is open, so a request just waits."""
    while True:
        result = await prober.probe(
            port, settings.health_path, timeout_seconds=settings.ready_timeout_seconds
        )
        if result.status is not None:
            return
        await anyio.sleep(_RETRY_SECONDS)
