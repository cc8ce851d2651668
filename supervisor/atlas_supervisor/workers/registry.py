"""Records worker processes in the database, and finds those that an earlier daemon left behind.

After a crash of the daemon its workers still hold the listening sockets and serve. `adoption` goes
on with them.

A process is an orphan only if no living supervisor stands above it. A second daemon on a copy of
the state folder, or on a folder that was moved away under a running one, finds the records or the
environment of workers that are not its own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import structlog
from pydantic import ValidationError

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.life import Life
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.store.outbox import Outbox
from atlas_supervisor.store.statements import Statements
from atlas_supervisor.system import procfs, sockdiag
from atlas_supervisor.system.children import living_children
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.descriptors import with_spares
from atlas_supervisor.system.failpoints import seam
from atlas_supervisor.system.lock import holds_a_lock
from atlas_supervisor.system.procfs import ProcessIdentity
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.workers.process import WorkerProcess, ignore
from atlas_worker.contract import ENV_INSTANCE, ENV_SLOT, ENV_STATE_DIR, ENV_VERSION

log = structlog.get_logger(__name__)


class InstanceRow(NamedTuple):
    """A worker process as it was recorded at its launch."""

    instance: str
    slot: str
    pid: int
    start_ticks: int
    boot_id: str
    kit: bool = False
    life: Life | None = None
    """None in a row of an earlier version."""

    @property
    def identity(self) -> ProcessIdentity:
        """The very process that was recorded."""
        return ProcessIdentity(self.pid, self.start_ticks, self.boot_id)


class Survivor(NamedTuple):
    """One instance that an earlier daemon left behind: its first process, and all of them."""

    instance: str
    slot: SlotName
    version: str
    pid: int
    pids: tuple[int, ...]
    kit: bool
    marked: bool
    """Whether it has the record or the environment of a worker."""
    row: InstanceRow | None = None


class WorkerRegistry:
    """Writes workers into the database, in the background: no worker waits for a disk."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements
        self._outbox = Outbox()

    async def run(self) -> None:
        """Write what is pending as soon as the disk takes it; never returns."""
        await self._outbox.run()

    async def flush(self) -> None:
        """Write what is pending, as far as that is possible now."""
        await self._outbox.attempt()

    @property
    def pending(self) -> bool:
        """Whether anything is still to be written."""
        return self._outbox.pending

    async def survivors(self, state_dir: Path) -> list[Survivor]:
        """Return the workers that an earlier daemon left behind, and forget ended ones.

        Raises StoreError.
        """
        rows, listeners = await self.rows(), await self.listeners()
        found = await in_thread(find_survivors, state_dir, rows, listeners)
        for row in rows:
            if row.instance not in {survivor.instance for survivor in found}:
                await self.remove(row.instance)
        return found

    async def rows(self) -> list[InstanceRow]:
        """Return the recorded workers. Raises StoreError."""
        rows = await self._statements.read("instances")
        return [InstanceRow(*row)._replace(life=_life(row["life"])) for row in rows]

    async def listeners(self) -> set[int]:
        """Return the recorded listening sockets, if the machine was not started again since.

        Raises StoreError.
        """
        rows = await self._statements.read("listeners", boot_id=procfs.boot_id())
        return {row["inode"] for row in rows}

    def listening(self) -> None:
        """Note our listening sockets, all of which are open by now."""
        boot_id, inodes = procfs.boot_id(), procfs.own_listeners()
        rows = [("add_listener", {"inode": each, "boot_id": boot_id}) for each in sorted(inodes)]

        async def write() -> None:
            await self._statements.write(("forget_listeners", {}), *rows)

        self._outbox.put(write)

    async def add(self, row: InstanceRow) -> None:
        """Record a worker. Raises StoreError."""
        life = row.life.model_dump_json() if row.life else None
        started_ts = (row.life.started_ts if row.life else now()).isoformat()
        columns = {**row._asdict(), "life": life, "started_ts": started_ts}
        await self._statements.write(("add_instance", columns))

    async def remove(self, instance: str) -> None:
        """Remove a worker; it need not be there. Raises StoreError."""
        await self._statements.write(("remove_instance", {"instance": instance}))

    @seam("record-worker")
    def launched(self, instance: WorkerProcess) -> None:
        """Note that the process is there, and what changes in its life."""
        identity = ProcessIdentity.of(instance.pid)
        if identity is not None:  # else it is gone already
            pid, start_ticks, boot_id = astuple(identity)
            who = (instance.name, instance.slot, pid, start_ticks, boot_id)
            row = InstanceRow(*who, kit=instance.kit, life=instance.life)
            self._outbox.put(partial(self.add, row))
            instance.on_change = partial(self.launched, instance)

    @seam("record-end")
    def gone(self, instance: WorkerProcess) -> None:
        """Note that nothing of it is left."""
        instance.on_change = ignore
        self.forget(instance.name)

    def forget(self, instance: str) -> None:
        """Remove a worker as soon as the disk takes it."""
        self._outbox.put(partial(self.remove, instance))


def _life(recorded: str | None) -> Life | None:
    """Return the recorded life; None if there is none, or it is of another version."""
    try:
        return Life.model_validate_json(recorded or "")
    except ValidationError:
        return None


_POLL_SECONDS = 0.05
_KILL_SECONDS = 5.0
_STOP_FIRST_SECONDS = 2.0
"""How long clients may wait for workers that have to end before the sockets can be opened."""


def find_survivors(
    state_dir: Path, rows: Sequence[InstanceRow], listeners: Collection[int] = ()
) -> list[Survivor]:
    """Return the instances of an earlier daemon on this state folder that still have processes.

    `listeners` are the sockets on which that daemon listened.
    """
    known = {row.pid: row for row in rows if row.pid > 1 and row.identity.exists}
    found: dict[str, list[int]] = {}
    for pid in _orphans(state_dir, known, listeners):
        found.setdefault(_instance_of(pid, state_dir, rows), []).append(pid)
    return [_survivor(instance, pids, known) for instance, pids in found.items()]


def _orphans(
    state_dir: Path, known: dict[int, InstanceRow], listeners: Collection[int]
) -> Iterator[int]:
    """Yield the processes of an earlier daemon's workers."""
    # The folder alone is not enough: a program may report canary calls without being a worker.
    family = procfs.family_of(
        environment=f"{ENV_STATE_DIR}={state_dir}".encode(),
        beside=f"{ENV_INSTANCE}=".encode(),
        sessions=known,
        tag=procfs.tag_for(str(state_dir), ""),
        tag_mask=procfs.TAG_OF_DAEMON,
    )
    if listeners:  # one can leave its session with another environment, another limit, no parent
        still_open = {each.inode for each in sockdiag.listeners()}.intersection(listeners)
        family = sorted({*family, *procfs.holders_of(still_open)}) if still_open else family
    ourselves = os.getpid()
    # A shell within a worker may start the daemon. systemd stores our listening sockets.
    spared = {1, ourselves, *procfs.ancestors(ourselves)}
    for pid in family:
        line = {pid, *procfs.ancestors(pid)} - {ourselves}  # of a copied folder: the daemon itself
        if pid not in spared and not any(map(holds_a_lock, line)):
            yield pid


def _instance_of(pid: int, state_dir: Path, rows: Sequence[InstanceRow]) -> str:
    """Return the instance that a process belongs to, by its tag, record or environment."""
    tag, session = procfs.tag_of(pid), procfs.session(pid)
    for row in rows:
        if session == row.pid or tag == procfs.tag_for(str(state_dir), row.instance):
            return row.instance
    return procfs.variables(pid).get(ENV_INSTANCE) or f"unrecorded-{session}"


def _survivor(instance: str, pids: list[int], known: dict[int, InstanceRow]) -> Survivor:
    leader = next((pid for pid in pids if pid in known), None)
    first = leader or min(pids, key=lambda pid: (procfs.start_ticks(pid) or 0, pid))
    row = known.get(first)
    variables = procfs.variables(first)
    name = row.slot if row else variables.get(ENV_SLOT, "")
    slot = SlotName.GREEN if name == SlotName.GREEN else SlotName.BLUE
    version = variables.get(ENV_VERSION, "unknown")
    kit, marked = bool(row and row.kit), bool(row or variables.get(ENV_INSTANCE))
    return Survivor(instance, slot, version, first, tuple(pids), kit, marked, row)


async def end_survivors(
    state_dir: Path,
    rows: Sequence[InstanceRow],
    listeners: Collection[int] = (),
    *,
    seconds: float,
    stop_signal: signal.Signals = signal.SIGTERM,
    spared: Collection[str] = (),
) -> int:
    """End every process of an earlier daemon on this state folder; return how many there were.

    `spared` are instances that go on.
    They have `seconds` to exit after the signal. Raises StartRefusedError if one can't be ended.
    """

    async def find() -> list[Survivor]:
        every = await in_thread(find_survivors, state_dir, rows, listeners)
        return [each for each in every if each.instance not in spared]

    found = await find()
    if not found:
        return 0
    pids = pids_of(found)
    log.warning("orphans_found", pids=pids, why="left behind by an earlier daemon; ending them")
    for survivor in found:  # the kit drains on SIGTERM alone
        procfs.send_signal(survivor.pids, signal.SIGTERM if survivor.kit else stop_signal)
    with anyio.move_on_after(seconds):
        while await find():  # noqa: ASYNC110  # there is no event
            await anyio.sleep(_POLL_SECONDS)
    left = pids
    with anyio.move_on_after(_KILL_SECONDS):
        while left := pids_of(await find()):
            procfs.send_signal(left, signal.SIGKILL)
            await anyio.sleep(_POLL_SECONDS)
    if left:
        who = ", ".join(procfs.describe(pid) for pid in left)
        raise StartRefusedError(f"workers of an earlier daemon can't be ended: {who}")
    return len(pids)


def pids_of(survivors: Iterable[Survivor]) -> list[int]:
    """Return all processes of these instances."""
    return sorted(pid for survivor in survivors for pid in survivor.pids)


async def end_strays(state_dir: Path) -> None:
    """Kill what is left of all workers once they have ended: nothing outlives an orderly stop.

    Processes that they started and left are our children by now. As pid 1 we also are the parent
    of processes that have nothing to do with us; there only those with the tag count. Those that an
    earlier daemon left behind are not our children, but may share our listening sockets.
    """
    tag = procfs.tag_for(str(state_dir), "") & procfs.TAG_OF_DAEMON

    def find() -> list[int]:
        found = living_children()
        if os.getpid() == 1:
            found = [pid for pid in found if procfs.tag_of(pid) & procfs.TAG_OF_DAEMON == tag]
        return found + _sharers(procfs.own_listeners)

    await _kill(find)


async def end_sharers(inodes: Collection[int]) -> None:
    """Kill every other process that has one of these sockets of ours."""
    await _kill(lambda: _sharers(lambda: inodes))


def _sharers(inodes: Callable[[], Collection[int]]) -> list[int]:
    """Return the processes that share the sockets, without us and those that started us."""
    spared = {1, os.getpid(), *procfs.ancestors(os.getpid())}
    try:
        return sorted(set(with_spares(lambda: procfs.holders_of(inodes()))) - spared)
    except OSError as error:
        log.warning("listeners_unknown", why=str(error))
        return []


async def _kill(find: Callable[[], Collection[int]]) -> None:
    """Kill what is found until there is nothing left."""
    with anyio.move_on_after(_KILL_SECONDS) as limit:
        while left := await in_thread(find):
            log.warning("strays_killed", pids=left)
            procfs.send_signal(left, signal.SIGKILL)
            await anyio.sleep(_POLL_SECONDS)
    if limit.cancelled_caught:
        log.critical("processes_left", pids=find())
