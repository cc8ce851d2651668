"""Records worker processes in the database, and ends those that an earlier daemon left behind.

After a crash of the daemon its workers still hold the listening sockets and serve. Adopting them
comes later; for now they are asked to drain, and then killed, so that no worker of unknown state
has the traffic.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

import anyio
import structlog

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.store.statements import Statements, StoreError
from atlas_supervisor.system import procfs
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.procfs import ProcessIdentity
from atlas_supervisor.workers.process import WorkerProcess
from atlas_worker.contract import ENV_INSTANCE, ENV_STATE_DIR

log = structlog.get_logger(__name__)


class InstanceRow(NamedTuple):
    """A worker process as it was recorded at its launch."""

    instance: str
    slot: str
    pid: int
    start_ticks: int
    boot_id: str


class WorkerRegistry:
    """Writes workers into the database; a failing disk stops no worker."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    async def clear(
        self, state_dir: Path, *, seconds: float, stop_signal: signal.Signals = signal.SIGTERM
    ) -> None:
        """End and forget what an earlier daemon left behind.

        Raises StartRefusedError if a process can't be ended, and StoreError.
        """
        known = await self.rows()
        await end_orphans(state_dir, known, seconds=seconds, stop_signal=stop_signal)
        for row in known:
            await self.remove(row.instance)

    async def rows(self) -> list[InstanceRow]:
        """Return the recorded workers. Raises StoreError."""
        return [InstanceRow(*row) for row in await self._statements.read("instances")]

    async def add(self, row: InstanceRow) -> None:
        """Record a worker. Raises StoreError."""
        started = {**row._asdict(), "started_ts": now().isoformat()}
        await self._statements.write(("add_instance", started))

    async def remove(self, instance: str) -> None:
        """Remove a worker; it need not be there. Raises StoreError."""
        await self._statements.write(("remove_instance", {"instance": instance}))

    async def launched(self, instance: WorkerProcess) -> None:
        """Note that the process is there."""
        identity = ProcessIdentity.of(instance.pid)
        if identity is None:  # it is gone already
            return
        row = InstanceRow(instance.name, instance.slot, *astuple(identity))
        try:
            await self.add(row)
        except StoreError as error:
            log.error("instance_not_recorded", **instance.facts, pid=instance.pid, why=str(error))

    async def gone(self, instance: WorkerProcess) -> None:
        """Note that nothing of it is left."""
        try:
            await self.remove(instance.name)
        except StoreError as error:
            log.error("instance_not_recorded", **instance.facts, pid=instance.pid, why=str(error))


_POLL_SECONDS = 0.05
_KILL_SECONDS = 5.0


async def end_orphans(
    state_dir: Path,
    known: Sequence[InstanceRow],
    *,
    seconds: float,
    stop_signal: signal.Signals = signal.SIGTERM,
) -> int:
    """End every process of an earlier daemon on this state folder; return how many there were.

    They have `seconds` to exit after the signal. Raises StartRefusedError if one can't be ended.
    """
    found = await anyio.to_thread.run_sync(_find, state_dir, known)
    if not found:
        return 0
    log.warning("orphans_found", pids=found, why="left behind by an earlier daemon; ending them")
    procfs.send_signal(found, stop_signal)
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

    They are found by their environment and by their record: a recorded pid counts only if it is
    still the same process, in the same boot.
    """
    sessions = {
        row.pid
        for row in known
        if row.pid > 1 and ProcessIdentity(row.pid, row.start_ticks, row.boot_id).exists
    }
    ours = _ancestors()
    # The folder alone is not enough: a program may report canary calls without being a worker.
    family = procfs.family_of(
        environment=f"{ENV_STATE_DIR}={state_dir}".encode(),
        beside=f"{ENV_INSTANCE}=".encode(),
        sessions=sessions,
    )
    return [pid for pid in family if pid not in ours]


def _ancestors() -> set[int]:
    """Return this process and its ancestors: a shell within a worker may start the daemon."""
    found, pid = {os.getpid()}, os.getppid()
    while pid > 1:
        found.add(pid)
        pid = procfs.parent(pid)
    return found
