"""Records worker processes in the database, and finds those that an earlier daemon left behind.

After a crash of the daemon its workers still hold the listening sockets and serve. They are not
adopted: they serve until a fresh worker is ready, and are drained then (`Slots`). Where their
sockets can't be taken back, they are ended before anything is opened.

A process is an orphan only if no living supervisor stands above it. A second daemon on a copy of
the state folder, or on a folder that was moved away under a running one, finds the records or the
environment of workers that are not its own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.store.outbox import Outbox
from atlas_supervisor.store.statements import Statements
from atlas_supervisor.system import procfs, sockdiag
from atlas_supervisor.system.children import living_children
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.descriptors import with_spares
from atlas_supervisor.system.lock import holds_a_lock
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.system.pidfd import ForeignProcess
from atlas_supervisor.system.procfs import ProcessIdentity
from atlas_supervisor.traffic import Plane, TakenBack
from atlas_supervisor.workers.process import NotifySocket, WorkerProcess
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


@dataclass(frozen=True)
class Inherited:
    """The workers of an earlier daemon, by what they accept from."""

    serving: Sequence[WorkerProcess] = ()
    """The public socket with the traffic. The first of them is the one to be replaced."""
    waiting: Sequence[WorkerProcess] = ()
    """The other public socket."""
    others: Sequence[WorkerProcess] = ()
    """Neither."""


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

    async def survivors(self, state_dir: Path) -> list[Survivor]:
        """Return the workers that an earlier daemon left behind, and forget ended ones.

        Raises StoreError.
        """
        rows, listeners = await self.rows(), await self.listeners()
        found = await anyio.to_thread.run_sync(find_survivors, state_dir, rows, listeners)
        for row in rows:
            if row.instance not in {survivor.instance for survivor in found}:
                await self.remove(row.instance)
        return found

    async def rows(self) -> list[InstanceRow]:
        """Return the recorded workers. Raises StoreError."""
        return [InstanceRow(*row) for row in await self._statements.read("instances")]

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
        started = {**row._asdict(), "started_ts": now().isoformat()}
        await self._statements.write(("add_instance", started))

    async def remove(self, instance: str) -> None:
        """Remove a worker; it need not be there. Raises StoreError."""
        await self._statements.write(("remove_instance", {"instance": instance}))

    def launched(self, instance: WorkerProcess) -> None:
        """Note that the process is there, and once more that it has the kit."""
        identity = ProcessIdentity.of(instance.pid)
        if identity is not None:  # else it is gone already
            pid, start_ticks, boot_id = astuple(identity)
            row = InstanceRow(instance.name, instance.slot, pid, start_ticks, boot_id, instance.kit)
            self._outbox.put(partial(self.add, row))
            instance.reported.on_kit = partial(self.launched, instance)

    def gone(self, instance: WorkerProcess) -> None:
        """Note that nothing of it is left."""
        self._outbox.put(partial(self.remove, instance.name))


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
    known = {row.pid: row for row in rows if _is_there(row)}
    found: dict[str, list[int]] = {}
    for pid in _orphans(state_dir, known, listeners):
        found.setdefault(_instance_of(pid, state_dir, rows), []).append(pid)
    return [_survivor(instance, pids, known) for instance, pids in found.items()]


def _is_there(row: InstanceRow) -> bool:
    """Whether a recorded pid is still the same process, in the same boot."""
    return row.pid > 1 and ProcessIdentity(row.pid, row.start_ticks, row.boot_id).exists


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
    return Survivor(instance, slot, version, first, tuple(pids), kit, marked)


async def take_over(
    settings: Settings,
    plane: Plane,
    registry: WorkerRegistry,
    active: SlotName,
    passed: PassedSockets,
) -> Inherited:
    """Open the plane with the sockets that an earlier daemon's workers have; return the workers.

    They are not touched, unless their sockets can't be taken back. Raises StartRefusedError.
    """
    state_dir = settings.state_dir
    survivors = await registry.survivors(state_dir)
    pids = _pids(survivors)
    taken = plane.take_back(pids, passed)
    if not taken.complete:
        log.warning("listeners_not_copied", pids=pids, instead="ending these workers first")
        taken.close()
        seconds = min(settings.stop_timeout_seconds, _STOP_FIRST_SECONDS)
        await end_survivors(
            state_dir,
            await registry.rows(),
            await registry.listeners(),
            seconds=seconds,
            stop_signal=settings.stop_signal_number,
        )
        taken, survivors = TakenBack(), await registry.survivors(state_dir)
    plane.open(active, taken)
    registry.listening()
    if survivors:
        log.warning("orphans_found", pids=pids, why="left behind by an earlier daemon")
    found: dict[bool | None, list[WorkerProcess]] = {True: [], False: [], None: []}
    # The active worker first, and last what is found by nothing but its sockets.
    for survivor in sorted(survivors, key=lambda each: (not each.marked, each.slot is not active)):
        if instance := inherit(survivor, settings):
            serves = bool(taken.serving.intersection(survivor.pids))
            accepts = serves or bool(taken.waiting.intersection(survivor.pids))
            found[serves if accepts else None].append(instance)
    return Inherited(serving=found[True], waiting=found[False], others=found[None])


def inherit(survivor: Survivor, settings: Settings) -> WorkerProcess | None:
    """Return the survivor as a worker that can be drained; None if it has ended.

    It goes on reporting to the address that it was started with.
    """
    with suppress(ProcessLookupError):
        process = ForeignProcess(survivor.pid)
        return WorkerProcess(
            name=survivor.instance,
            slot=survivor.slot,
            release=Release(name=None, path=settings.worker_directory, version=survivor.version),
            process=process,
            notify=NotifySocket(
                survivor.instance, kit=survivor.kit, account=settings.worker_account
            ),
            stop_signal=settings.stop_signal_number,
            tag=procfs.tag_for(str(settings.state_dir), survivor.instance),
        )
    return None


async def end_survivors(
    state_dir: Path,
    rows: Sequence[InstanceRow],
    listeners: Collection[int] = (),
    *,
    seconds: float,
    stop_signal: signal.Signals = signal.SIGTERM,
) -> int:
    """End every process of an earlier daemon on this state folder; return how many there were.

    They have `seconds` to exit after the signal. Raises StartRefusedError if one can't be ended.
    """

    async def find() -> list[Survivor]:
        return await anyio.to_thread.run_sync(find_survivors, state_dir, rows, listeners)

    found = await find()
    if not found:
        return 0
    pids = _pids(found)
    log.warning("orphans_found", pids=pids, why="left behind by an earlier daemon; ending them")
    for survivor in found:  # the kit drains on SIGTERM alone
        procfs.send_signal(survivor.pids, signal.SIGTERM if survivor.kit else stop_signal)
    with anyio.move_on_after(seconds):
        while await find():  # noqa: ASYNC110  # there is no event
            await anyio.sleep(_POLL_SECONDS)
    left = pids
    with anyio.move_on_after(_KILL_SECONDS):
        while left := _pids(await find()):
            procfs.send_signal(left, signal.SIGKILL)
            await anyio.sleep(_POLL_SECONDS)
    if left:
        who = ", ".join(procfs.describe(pid) for pid in left)
        raise StartRefusedError(f"workers of an earlier daemon can't be ended: {who}")
    return len(pids)


def _pids(survivors: Sequence[Survivor]) -> list[int]:
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
        while left := await anyio.to_thread.run_sync(find):
            log.warning("strays_killed", pids=left)
            procfs.send_signal(left, signal.SIGKILL)
            await anyio.sleep(_POLL_SECONDS)
    if limit.cancelled_caught:
        log.critical("processes_left", pids=find())
