"""The switch and the split: staging gets all the traffic, or a part, durably, or nothing changes.

The active slot is recorded in three places that must agree: the program in the kernel, the state
file, and memory (`Slots`). This is the only place that changes them, in this order: steer, check
with a real connection, state file, memory. A failure before the state file is durable steers back,
each second again if the kernel refuses; from then on the switch counts.

Before it, a deploy that has passed its gates may have a part of the traffic (the split): testers'
networks, and the share that the state file names, `staging_weight`. A share is steered first and
then written, and both are undone if that fails; so the file is right after a kill, too. The share
is 0 from the switch on, and when the deploy ends without one. After the switch the version before
may keep a share for the time of the guard (the holdback): it is the staging slot's then, in the
same field of the file. One change follows another (`_changing`).

The check (`landing`) connects to the public port and asks the kernel which process accepted. It
finds what the kernel's return code can't show: a foreign listener on a more specific address, or
a group out of order. `landing_watch` repeats it while the daemon runs.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

import anyio
import structlog
from anyio.abc import TaskGroup

from atlas_supervisor.config import Settings, Sticky
from atlas_supervisor.deploy.machine import StepOutcome
from atlas_supervisor.model.deploy import SwitchDetail
from atlas_supervisor.model.slot import SlotState
from atlas_supervisor.model.state import ActiveRelease, DeployState
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.system import procfs, sockdiag
from atlas_supervisor.system.clock import Stopwatch, now
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.traffic import Plane, Split
from atlas_supervisor.traffic.listeners import loopback_of
from atlas_supervisor.traffic.steering import DIRECT_SOURCE
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.slot import Slot
from atlas_supervisor.workers.slots import Slots

log = structlog.get_logger(__name__)

_ACCEPT_SECONDS = 0.25
_POLL_SECONDS = 0.001
_STEER_AGAIN_SECONDS = 1.0


class Landing(StrEnum):
    """Where a connection to the public port arrived."""

    RIGHT = "right"
    WRONG = "wrong"
    UNSEEN = "unseen"
    """Unknown: it was not accepted in time, or permissions hide the process that accepted."""


class LandingCheck(NamedTuple):
    """Where some connections arrived, in words, and the processes that should not have them."""

    landing: Landing
    text: str
    pids: tuple[int, ...] = ()


async def check_landing(
    host: str,
    port: int,
    instance: WorkerProcess,
    *,
    count: int = 1,
    elsewhere: Callable[[], int] = lambda: 0,
    source: str | None = None,
) -> LandingCheck:
    """Make `count` connections, and find out whether `instance` got all of them.

    `elsewhere` returns how many connections wait where none should: what never accepts is found by
    that. Without a program the kernel spreads connections by chance, so one of them shows little.
    `source` is the local address that they are made from.
    """

    def connect() -> socket.socket:
        local = (source, 0) if source else None
        return socket.create_connection((loopback_of(host), port), _ACCEPT_SECONDS, local)

    return await in_thread(_connect_and_find, connect, instance, count, elsewhere)


def _connect_and_find(
    connect: Callable[[], socket.socket],
    instance: WorkerProcess,
    count: int,
    elsewhere: Callable[[], int],
) -> LandingCheck:
    before = elsewhere()
    try:
        with ExitStack() as stack:
            clients = [stack.enter_context(connect()) for _ in range(count)]
            inodes = _accepted(clients)
            if len(inodes) < count and elsewhere() > before:
                return LandingCheck(Landing.WRONG, "a connection waits in the other slot's queue")
            if not inodes:
                return LandingCheck(Landing.UNSEEN, f"not accepted within {_ACCEPT_SECONDS:g} s")
            return _holder(inodes, instance)
    except OSError as error:
        return LandingCheck(Landing.UNSEEN, f"could not be checked: {error}")


def _holder(inodes: set[int], instance: WorkerProcess) -> LandingCheck:
    """Find the processes that have accepted the connections."""
    if not (others := inodes - procfs.sockets_of(instance.pid)):
        return LandingCheck(Landing.RIGHT, f"pid {instance.pid} accepted it")
    for pid in instance.family():
        others -= procfs.sockets_of(pid)
    if not others:
        return LandingCheck(Landing.RIGHT, f"a process of pid {instance.pid} accepted it")
    if not (pids := tuple(pid for pid in procfs.pids() if others & procfs.sockets_of(pid))):
        return LandingCheck(Landing.UNSEEN, "accepted and closed at once")  # before the check
    names = ["the daemon" if pid == os.getpid() else procfs.describe(pid) for pid in pids]
    return LandingCheck(Landing.WRONG, f"{', '.join(names)} accepted it", pids)


def _accepted(clients: list[socket.socket]) -> set[int]:
    """Return the inodes of the servers' ends that were accepted in time."""
    deadline, pause = time.monotonic() + _ACCEPT_SECONDS, _POLL_SECONDS
    found: dict[socket.socket, int] = {}
    while True:
        for client in clients:
            if client not in found and (inode := sockdiag.accepted_inode(client)):
                found[client] = inode
        if len(found) == len(clients) or time.monotonic() > deadline:
            return set(found.values())
        time.sleep(pause)
        pause *= 1.5


def split_of(settings: Settings, deploy_id: str, weight: float, *, holdback: bool = False) -> Split:
    """Return a deploy's part of the traffic; its addresses are others than those of the last."""
    salt = int.from_bytes(blake2b(deploy_id.encode(), digest_size=4).digest())
    by_address = settings.traffic_sticky is Sticky.ADDRESS
    return Split(weight, by_address, salt, settings.traffic_testers, holdback)


class NoSplitError(Exception):
    """Staging can't have a part of the traffic at this moment."""


class Switch:
    """Moves traffic to the staging slot, all or a part, and keeps the state file in step."""

    def __init__(
        self,
        *,
        settings: Settings,
        plane: Plane,
        slots: Slots,
        state: StateKeeper,
        tasks: TaskGroup,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._tasks = tasks
        self._settings = settings
        self._plane = plane
        self._slots = slots
        self._state = state
        self._changed = changed
        """Called after each flip."""
        self._changing = anyio.Lock()
        self._split: Split | None = None
        """What staging may have; None while it may have nothing."""
        self.has_shared = False
        """Whether staging may have connections of the split that is open."""
        self._unsteered = False
        """Whether the kernel refused to give the traffic back; it is tried again until it does."""

    async def flip(self) -> StepOutcome:
        """Make staging active. Not cancellable; on failure nothing has changed."""
        with anyio.CancelScope(shield=True):
            async with self._changing:
                outcome = await self._flip()
        return outcome  # mypy takes a cancel scope for one that may swallow

    async def open_split(self, deploy_id: str) -> None:
        """Let staging have its part: testers, and the share that the state file names."""
        with anyio.CancelScope(shield=True):
            async with self._changing:
                weight = self._state.state.staging_weight
                self._split = split_of(self._settings, deploy_id, weight)
                try:
                    self._steer_split(self._split)
                except NoSplitError:
                    return  # the deploy is about to fail
                except OSError as error:
                    log.critical("steering_uncertain", wanted=weight, why=str(error))

    async def set_weight(self, weight: float) -> None:
        """Give staging this share of the new connections, durably.

        Raises OSError, and then nothing changed; NoSplitError if staging may have none now.
        """
        with anyio.CancelScope(shield=True):
            async with self._changing:
                if (before := self._split) is None:
                    raise NoSplitError
                after = replace(before, weight=weight)
                self._steer_split(after)
                try:
                    await self._state.change(staging_weight=weight)
                except OSError:
                    if self._slots.staging.can_serve:
                        self._steer_split(before)
                    raise
                self._split = after
                await self._state.copy_to_database()

    @property
    def weight(self) -> float:
        """The share that staging has, as the state file names it."""
        return self._state.state.staging_weight

    async def follow_active(self) -> float:
        """Let staging have all new connections while the active worker is down.

        So they don't wait for its restart; of what was queued for it, the same while it pauses
        between two starts. Nothing of that is written. Return the share that is in force. Raises
        NoSplitError.
        """
        with anyio.CancelScope(shield=True):
            async with self._changing:
                active, split = self._slots.active, self._split
                if split is None or not self._slots.staging.can_serve:
                    raise NoSplitError
                covers = split.weight > 0 and not active.can_serve
                wanted = replace(split, weight=1.0) if covers else split
                try:
                    if self._plane.policy.split != wanted:
                        self._steer_split(wanted)
                except OSError as error:  # tried again soon
                    log.error("steering_uncertain", wanted=wanted.weight, why=str(error))
                if covers and active.state is not SlotState.STARTING:
                    self._plane.vacate(active.name, active.name.other)
        return self._plane.policy.split.weight

    async def hold_back(self, deploy_id: str, weight: float) -> str | None:
        """Leave a share of new connections with the version before; return why it can't be."""
        with anyio.CancelScope(shield=True):
            async with self._changing:
                split = split_of(self._settings, deploy_id, weight, holdback=True)
                try:
                    self._steer_split(split)
                    if self._state.state.staging_weight != weight:
                        await self._state.change(staging_weight=weight)
                except NoSplitError:
                    return "the version before is not alive"
                except OSError as error:
                    self._steer_back(self._slots.active)
                    return str(error)
                await self._state.copy_to_database()
        return None

    def _steer_split(self, split: Split) -> None:
        if not self._slots.staging.can_serve:
            raise NoSplitError
        if split or self._plane.policy.split:
            self._plane.split(split)
        self.has_shared = self.has_shared or bool(split)

    async def close_split(self) -> bool:
        """Take staging's part away; return whether it may have had connections."""
        with anyio.CancelScope(shield=True):
            async with self._changing:
                had, self._split, self.has_shared = self.has_shared, None, False
                if self._plane.policy.split:
                    self._steer_back(self._slots.active)
                if had and not self._slots.active.can_serve:
                    self._plane.occupy(self._slots.active.name)  # no rescue to what ends now
                if self._state.state.staging_weight:
                    try:
                        await self._state.change(staging_weight=0.0)
                        await self._state.copy_to_database()
                    except OSError as error:  # the next deploy begins with 0 all the same
                        log.error("staging_weight_not_saved", why=str(error))
        return had

    async def _flip(self) -> StepOutcome:
        source, target, split = self._slots.active, self._slots.staging, self._plane.policy.split
        if not target.can_serve:
            return StepOutcome.staging_died(f"{target.name} is not alive")
        try:
            began = time.perf_counter_ns()
            self._plane.steer(target.name)
            flip_us = round((time.perf_counter_ns() - began) / 1000, 1)
        except OSError as error:
            return StepOutcome.failed(f"the kernel refused the flip: {error}")
        outcome = StepOutcome.failed("the switch was not finished")
        try:
            outcome = await self._make_durable(source, target, flip_us)
        finally:  # after a bug as well: steering must match the state file
            if not outcome.has_passed:
                self._steer_back(source, split if target.can_serve else Split())
        if not outcome.has_passed:
            return outcome
        self._split, self.has_shared, self._unsteered = None, False, False
        self._slots.exchange()
        self._changed()
        return outcome

    async def _make_durable(self, source: Slot, target: Slot, flip_us: float) -> StepOutcome:
        """Check where connections arrive, then write the state file; on failure it is unchanged."""
        seen = await self._landing(target)
        if seen.landing is Landing.WRONG:
            return StepOutcome.failed(f"a connection arrived at the wrong process: {seen.text}")
        died = StepOutcome.staging_died(f"{target.name} died during the switch")
        if not target.can_serve:
            return died
        watch, before = Stopwatch(), self._state.state
        try:
            await self._state.change(
                active_port=target.port,
                staging_port=source.port,
                last_switch_ts=now(),
                active_release=_release_of(target),
                staging_weight=0.0,
            )
        except OSError as error:
            return StepOutcome.failed(f"the state file could not be written: {error}")
        if not target.can_serve:
            if await self._withdraw(before):
                return died
            log.error("switched_to_dead_worker", slot=target.name)  # the state file counts
        return StepOutcome.passed(
            f"{target.name} (port {target.port}) now receives all new connections",
            SwitchDetail(
                state_file_ms=watch.milliseconds,
                landing=seen.landing.value,
                landing_detail=seen.text,
                flip_us=flip_us,
            ),
        )

    async def _landing(self, target: Slot) -> LandingCheck:
        if self._plane.name != "kernel" or target.instance is None:
            return LandingCheck(Landing.UNSEEN, "not checked: the daemon itself accepts")
        host, port = str(self._settings.public_host), self._settings.public_port
        if not self._plane.held:
            return await check_landing(host, port, target.instance)
        if ":" in loopback_of(host):
            return LandingCheck(Landing.UNSEEN, "not checked in a hold: IPv6 has one source")
        source = str(DIRECT_SOURCE[target.name])
        return await check_landing(host, port, target.instance, source=source)

    def _steer_back(self, source: Slot, split: Split = Split()) -> None:  # noqa: B008  # frozen
        try:
            self._plane.steer(source.name)
            if split:
                self._plane.split(split)
        except OSError as error:
            log.critical("steering_uncertain", wanted=source.name, why=str(error))
            if not self._unsteered:
                self._unsteered = True
                self._tasks.start_soon(self._steer_later)
        else:
            self._unsteered = False

    async def _steer_later(self) -> None:
        """Give the traffic back once the kernel allows it: the next version launches in that slot.

        A flip that succeeds meanwhile has steered it.
        """
        while self._unsteered:
            await anyio.sleep(_STEER_AGAIN_SECONDS)
            async with self._changing:
                if self._unsteered:
                    shared = self._split if self._slots.staging.can_serve else None
                    self._steer_back(self._slots.active, shared or Split())

    async def _withdraw(self, before: DeployState) -> bool:
        """Restore the state file; return whether that was possible."""
        try:
            await self._state.change(
                active_port=before.active_port,
                staging_port=before.staging_port,
                last_switch_ts=before.last_switch_ts,
                active_release=before.active_release,
                staging_weight=before.staging_weight,
            )
        except OSError as error:
            log.error("switch_not_reverted", why=str(error))
            return False
        return True


def _release_of(slot: Slot) -> ActiveRelease | None:
    if slot.instance is None:
        return None
    return ActiveRelease(**slot.instance.release.record)
