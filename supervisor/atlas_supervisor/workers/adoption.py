"""Goes on with the workers of an earlier daemon that was killed, or that became this one.

A worker is *adopted*, and is its slot's own from then on, if it is recorded, is the very process of
that time, listens where its slot has to, and reacts. One in staging must have been ready, too.
Everything that its daemon knew of it is in the record (`model.life`), so the same instance goes on:
only its exit status may stay unknown.

Otherwise it is *inherited*: it serves until the active slot has a fresh worker that is ready, and
is drained then (`Slots`). So no worker that serves ends before another one answers. There are two
exceptions, where its sockets are in the way of the fresh worker's: they can't be had (`TakenBack`),
or it binds its own port. Such a worker ends first, while clients wait.

The order: find the processes, take the sockets back, choose, open the plane. Until the plane is
open a start can be refused, and nothing was changed for any process.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain

import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.model.life import Life
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.system import procfs
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.system.pidfd import ForeignProcess
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.traffic import Plane, Split, TakenBack
from atlas_supervisor.workers.process import NotifySocket, WorkerProcess
from atlas_supervisor.workers.registry import Survivor, WorkerRegistry, end_survivors, pids_of
from atlas_worker.contract import ENV_INSTANCE, ENV_STATE_DIR, PROBE_HEADER

log = structlog.get_logger(__name__)

_STOP_FIRST_SECONDS = 2.0
"""How long clients may wait for workers that have to end before the sockets can be opened."""


@dataclass(frozen=True)
class Inherited:
    """The workers of an earlier daemon."""

    adopted: Mapping[SlotName, WorkerProcess] = field(default_factory=dict)
    """The slots' own. The others are to be drained, and differ in what they accept from."""
    serving: Sequence[WorkerProcess] = ()
    """The public socket with the traffic. The first of them is the one to be replaced."""
    waiting: Sequence[WorkerProcess] = ()
    """The other public socket, which is the staging slot's."""
    others: Sequence[WorkerProcess] = ()
    """Neither, or the socket of an adopted worker."""


async def take_over(
    settings: Settings,
    plane: Plane,
    registry: WorkerRegistry,
    active: SlotName,
    passed: PassedSockets,
    *,
    split: Split | None = None,
    held: bool = False,
) -> Inherited:
    """Open the plane with the sockets that an earlier daemon's workers have; return the workers.

    They are not touched, unless their sockets are in the way. Raises StartRefusedError.
    """
    survivors = await registry.survivors(settings.state_dir)
    taken = plane.take_back(pids_of(survivors), passed)
    chosen: dict[Survivor, int | None] = {}
    if taken.complete:
        chosen = await in_thread(_choose, survivors, taken, plane, settings, active)
    rest = [each for each in survivors if each not in chosen]
    if not taken.complete or (rest and settings.socket_passing is SocketPassing.PORT):
        if not taken.complete:
            taken.close()
            taken = TakenBack()
        await _end_first(settings, registry, [each.instance for each in chosen])
        rest = [
            each
            for each in await registry.survivors(settings.state_dir)
            if each.instance not in {known.instance for known in chosen}
        ]
    # One that was asked to end may have closed its own socket, and have only the other's left.
    drain = pids_of(filter(_drains, survivors))
    accepts = {pid: index for pid, index in taken.accepts.items() if pid not in drain}
    taken = replace(taken, accepts=accepts)
    processes = {each.slot: pid for each, pid in chosen.items() if pid is not None}
    plane.open(active, taken, processes, split, held=held)
    registry.listening()
    adopted = {each.slot: process for each in chosen if (process := inherit(each, settings))}
    for instance in adopted.values():
        log.info("worker_adopted", **instance.facts, pid=instance.pid)
    own = {accepts[pid] for pid in chosen.values() if pid in accepts}
    found: dict[bool | None, list[WorkerProcess]] = {True: [], False: [], None: []}
    # The active worker first, and last what is found by nothing but its sockets.
    for each in sorted(rest, key=lambda each: (not each.marked, each.slot is not active)):
        if left := inherit(each, settings):
            places = {accepts[pid] for pid in each.pids if pid in accepts} - own
            serves = not adopted and taken.traffic in places
            found[serves if places and active.other not in adopted else None].append(left)
    living = {each.name for each in chain(adopted.values(), *found.values())}
    for each in (*chosen, *rest):
        if each.instance not in living:  # it has ended meanwhile
            registry.forget(each.instance)
    return Inherited(adopted, found[True], found[False], found[None])


async def _end_first(settings: Settings, registry: WorkerRegistry, spared: Collection[str]) -> None:
    """End all workers but these: their sockets are in the way."""
    log.warning("workers_ended_first", why="their sockets are in the way", spared=spared)
    await end_survivors(
        settings.state_dir,
        await registry.rows(),
        await registry.listeners(),
        seconds=min(settings.stop_timeout_seconds, _STOP_FIRST_SECONDS),
        stop_signal=settings.stop_signal_number,
        spared=spared,
    )


def _choose(
    survivors: Sequence[Survivor],
    taken: TakenBack,
    plane: Plane,
    settings: Settings,
    active: SlotName,
) -> dict[Survivor, int | None]:
    """Return the workers to adopt, with the process of each that has its sockets.

    Of one that drains the sockets don't matter. Without the one of the active slot there is none if
    another one has the traffic, or accepts from where the fresh one is going to.
    """
    found: dict[SlotName, tuple[Survivor, int | None]] = {}
    # The newest first: one that lingers may have been in the same slot.
    for each in sorted(survivors, key=_started, reverse=True):
        if each.slot in found or (_drains(each) and each.slot is active):
            continue
        pid = None if _drains(each) else _adoptable(each, taken, plane, settings)
        fits = pid is not None and (each.slot is active or _was_ready(each))
        if _drains(each) or fits:
            found[each.slot] = each, pid
    places = [taken.accepts[pid] for _, pid in found.values() if pid and pid in taken.accepts]
    if len(places) > len(set(places)):  # both accept from one socket
        del found[active.other]
    chosen = dict(found.values())
    if active not in found:
        others = (each for each in survivors if each not in chosen and not _drains(each))
        accepting = any(not taken.accepts.keys().isdisjoint(each.pids) for each in others)
        return {} if accepting or taken.traffic in places else chosen
    (own, pid), other = found[active], found.get(active.other)
    probes = settings.liveness_failures if _was_ready(own) else 1  # or it is still starting
    is_alone = not other or _drains(other[0])  # else the other one takes over from a hung one
    if (is_alone or not _was_ready(own)) and not _reacts(
        plane.direct(active, pid, taken), settings, probes
    ):
        log.warning("worker_unresponsive", instance=own.instance, pid=pid)
        return {}
    return chosen


def _started(survivor: Survivor) -> int:
    return survivor.row.start_ticks if survivor.row else 0


def _was_ready(survivor: Survivor) -> bool:
    return bool(survivor.row and survivor.row.life and survivor.row.life.ready)


def _drains(survivor: Survivor) -> bool:
    return bool(survivor.row and survivor.row.life and survivor.row.life.asked_to_end)


def _adoptable(
    survivor: Survivor, taken: TakenBack, plane: Plane, settings: Settings
) -> int | None:
    """Return the process that has the worker's sockets; None if it can't be the slot's own."""
    life, slot = survivor.row and survivor.row.life, survivor.slot
    if not life or not _is_instance(survivor, settings):
        return None
    if (life.port, life.socket_passing) != (settings.slot_ports[slot], settings.socket_passing):
        return None  # the settings have changed
    return plane.adoptable(slot, survivor.pids, taken)


def _reacts(place: tuple[str, int, str | None], settings: Settings, probes: int) -> bool:
    """Return whether a worker reacts in the time of so many probes.

    Any reaction counts: it may speak TLS or expect another header first.
    """
    seconds = settings.health_timeout_seconds * probes
    host, port, source = place
    request = (
        f"GET {settings.health_path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"{PROBE_HEADER}: 1\r\n\r\n"
    )
    try:
        with socket.create_connection((host, port), seconds, source and (source, 0)) as client:
            client.sendall(request.encode())
            client.recv(1)
    except ConnectionResetError:
        return True
    except OSError:
        return False
    return True


def _is_instance(survivor: Survivor, settings: Settings) -> bool:
    """Return whether the recorded process has the mark of its instance still."""
    folder = str(settings.state_dir)  # of a folder that was copied or moved, it is another one
    if procfs.tag_of(survivor.pid) == procfs.tag_for(folder, survivor.instance):
        return True
    variables = procfs.variables(survivor.pid)
    found = variables.get(ENV_INSTANCE), variables.get(ENV_STATE_DIR)
    return found == (survivor.instance, folder)


def inherit(survivor: Survivor, settings: Settings) -> WorkerProcess | None:
    """Return the survivor as a worker of this daemon; None if it has ended meanwhile.

    It goes on reporting to the address that it was started with.
    """
    life = survivor.row.life if survivor.row else None
    if life is None:
        release = Release(name=None, path=settings.worker_directory, version=survivor.version)
        life = Life(release=release, started_ts=now())
    with suppress(ProcessLookupError):
        process = ForeignProcess(survivor.pid, survivor.row and survivor.row.identity)
        notify = NotifySocket(survivor.instance, kit=survivor.kit, account=settings.worker_account)
        if life.not_accepting:
            notify.not_accepting.set()
        return WorkerProcess(
            name=survivor.instance,
            slot=survivor.slot,
            release=life.release,
            process=process,
            notify=notify,
            stop_signal=settings.stop_signal_number,
            tag=procfs.tag_for(str(settings.state_dir), survivor.instance),
            life=life,
        )
    return None
