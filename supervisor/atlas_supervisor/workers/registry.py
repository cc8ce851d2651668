"""Which worker processes there are, written down for a daemon that comes after a crash.

Worker processes that an earlier daemon left behind, found and ended before this one begins.

They still hold the listening sockets and serve. Taking them over comes later; for now they are
asked to drain, and then killed, so that nothing of an unknown state has the traffic.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import anyio
import structlog

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.store.instances import InstanceRow, InstanceStore
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system import procfs
from atlas_supervisor.workers.process import WorkerProcess
from atlas_worker.contract import ENV_INSTANCE, ENV_STATE_DIR

log = structlog.get_logger(__name__)


class WorkerRegistry:
    """Writes instances into the database; a disk that fails stops no worker."""

    def __init__(self, instances: InstanceStore) -> None:
        self._instances = instances
        self._boot_id = procfs.boot_id()

    async def launched(self, instance: WorkerProcess) -> None:
        """Note that the process is there."""
        ticks = procfs.start_ticks(instance.pid)
        if ticks is None:  # it is gone already
            return
        row = InstanceRow(instance.name, instance.slot, instance.pid, ticks, self._boot_id)
        try:
            await self._instances.add(row)
        except StoreError as error:
            log.error("instance_not_recorded", **instance.facts, pid=instance.pid, why=str(error))

    async def gone(self, instance: WorkerProcess) -> None:
        """Note that nothing of it is left."""
        try:
            await self._instances.remove(instance.name)
        except StoreError as error:
            log.error("instance_not_recorded", **instance.facts, pid=instance.pid, why=str(error))


_POLL_SECONDS = 0.05
_KILL_SECONDS = 5.0


async def end_orphans(state_dir: Path, known: Sequence[InstanceRow], *, seconds: float) -> int:
    """End every process of an earlier daemon on this state folder; return how many there were.

    They have `seconds` to exit after SIGTERM. Raises StartRefusedError if one can't be ended.
    """
    found = await anyio.to_thread.run_sync(_find, state_dir, known)
    if not found:
        return 0
    log.warning("orphans_found", pids=found, why="a dead daemon left them; they are ended first")
    procfs.send_signal(found, signal.SIGTERM)
    with anyio.move_on_after(seconds):
        while await anyio.to_thread.run_sync(_find, state_dir, known):  # noqa: ASYNC110  # no event
            await anyio.sleep(_POLL_SECONDS)
    left = found
    with anyio.move_on_after(_KILL_SECONDS):
        while left := await anyio.to_thread.run_sync(_find, state_dir, known):
            procfs.send_signal(left, signal.SIGKILL)
            await anyio.sleep(_POLL_SECONDS)
    if left:
        who = ", ".join(procfs.describe(pid) for pid in left)
        raise StartRefusedError(f"workers of an earlier daemon can't be ended: {who}")
    return len(found)


def _find(state_dir: Path, known: Sequence[InstanceRow]) -> list[int]:
    """Return the living processes of an earlier daemon.

    By what they inherited, and by what was written down: a pid counts only if it is still the
    same process, in the same boot.
    """
    boot = procfs.boot_id()
    sessions = {
        row.pid
        for row in known
        if row.pid > 1 and row.boot_id == boot and procfs.start_ticks(row.pid) == row.start_ticks
    }
    ours = _ancestors()
    # Not whoever knows of this folder: a program may tell its canary calls without being a worker.
    family = procfs.family_of(
        environment=f"{ENV_STATE_DIR}={state_dir}".encode(),
        beside=f"{ENV_INSTANCE}=".encode(),
        sessions=sessions,
    )
    return [pid for pid in family if pid not in ours]


def _ancestors() -> set[int]:
    """Return this process and those it descends from: a shell within a worker may start us."""
    found, pid = {os.getpid()}, os.getppid()
    while pid > 1:
        found.add(pid)
        pid = procfs.parent(pid)
    return found
