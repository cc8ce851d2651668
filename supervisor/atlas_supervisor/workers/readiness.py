"""Waits until a launched worker is ready, or fails.

A worker is ready once it has answered a request on its slot's own port. `READY=1` alone is a
claim: a program may listen elsewhere, or send it before its processes can answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from atlas_supervisor.config import Settings
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.system import procfs
from atlas_supervisor.workers.launch import LaunchError
from atlas_supervisor.workers.output import WorkerLog
from atlas_supervisor.workers.process import WorkerProcess

_RETRY_SECONDS = 0.05
_REACHED_BY_LOOPBACK = {"127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"}  # noqa: S104  # compared, not bound


class _FirstAnswer:
    """Waits for an HTTP response of any status, and keeps what was seen instead."""

    def __init__(self, port: int, prober: HttpProber, settings: Settings) -> None:
        self._port = port
        self._prober = prober
        self._settings = settings
        self.last_failure: str | None = None

    async def wait(self) -> None:
        """Return once there is an answer; the listener is open, so the request waits."""
        while True:
            result = await self._prober.probe(
                self._port,
                self._settings.health_path,
                timeout_seconds=self._settings.ready_timeout_seconds,
            )
            if result.status is not None:
                return
            self.last_failure = result.message
            await anyio.sleep(_RETRY_SECONDS)


async def until_ready(
    instance: WorkerProcess, port: int, output: WorkerLog, prober: HttpProber, settings: Settings
) -> str:
    """Wait until it answers on its slot's port, and return what it did.

    Raises LaunchError, with the last lines of its output, if it dies or takes too long.
    """
    allowed, answered = settings.ready_timeout_seconds, False
    answer = _FirstAnswer(port, prober, settings)

    async def first(waiter: Callable[[], Awaitable[Any]]) -> None:
        await waiter()
        race.cancel_scope.cancel()

    async def answers() -> None:
        nonlocal answered
        await answer.wait()
        answered = True

    with anyio.move_on_after(allowed):
        async with anyio.create_task_group() as race:
            race.start_soon(first, instance.exited.wait)
            race.start_soon(first, answers)
    reported = instance.reported.ready.is_set()
    if instance.alive and answered:
        return "worker reported ready and answered" if reported else "worker answered"
    if instance.alive:
        seen = await anyio.to_thread.run_sync(_where_it_listens, instance, port, settings)
        parts = [f"it was not ready within {allowed:g} s"]
        parts += ["it reported ready and did not answer"] if reported else []
        parts += [answer.last_failure] if answer.last_failure else []
        message = "; ".join((*parts, seen))
    else:
        message = f"it {instance.exit_text} before it was ready"
    raise LaunchError(message, output=output.last_lines())


def _where_it_listens(instance: WorkerProcess, port: int, settings: Settings) -> str:
    """Return where the worker's processes listen, and where they should."""
    kind, expected = settings.socket_passing, f"127.0.0.1:{port}"
    if kind is not SocketPassing.PORT:
        what = "descriptor 3" if kind is SocketPassing.FD else "descriptors 3 and 4 (LISTEN_FDS)"
        expected = f"its inherited {what}, which lead to {expected}"
    try:
        found = instance.foreign_listeners()
    except OSError as error:
        return f"where it listens is unknown ({error}); expected {expected}"
    if any(each.port == port and each.address in _REACHED_BY_LOOPBACK for each in found):
        return f"it listens on {expected} as expected"
    if not found:
        nowhere = "it listens nowhere" if kind is SocketPassing.PORT else "it listens nowhere else"
        return f"{nowhere}; expected {expected}"
    places = ", ".join(sorted({each.place for each in found}))
    own = procfs.sockets_of(instance.pid)
    if kind is SocketPassing.ACTIVATION and not any(each.inode in own for each in found):
        places += " (in a child process: a start script must exec its server)"
    return f"it listens on {places}; expected {expected}"
