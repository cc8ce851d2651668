"""The switch: all traffic moves to the staging slot, durably, or nothing changes.

The active slot is recorded in three places that must agree: the program in the kernel, the state
file, and memory (`Slots`). This is the only place that changes them, in this order: steer, check
with a real connection, state file, memory. A failure before the state file is durable steers back;
from then on the switch counts.

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
from enum import StrEnum
from typing import NamedTuple

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.machine import StepOutcome
from atlas_supervisor.model.deploy import SwitchDetail
from atlas_supervisor.model.state import ActiveRelease, DeployState
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.system import procfs, sockdiag
from atlas_supervisor.system.clock import Stopwatch, now
from atlas_supervisor.traffic import Plane
from atlas_supervisor.traffic.listeners import loopback_of
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.slot import Slot
from atlas_supervisor.workers.slots import Slots

log = structlog.get_logger(__name__)

_ACCEPT_SECONDS = 0.25
_POLL_SECONDS = 0.001


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
) -> LandingCheck:
    """Make `count` connections, and find out whether `instance` got all of them.

    `elsewhere` returns how many connections wait where none should: what never accepts is found by
    that. Without a program the kernel spreads connections by chance, so one of them shows little.
    """
    return await anyio.to_thread.run_sync(
        _connect_and_find, (loopback_of(host), port), instance, count, elsewhere
    )


def _connect_and_find(
    address: tuple[str, int], instance: WorkerProcess, count: int, elsewhere: Callable[[], int]
) -> LandingCheck:
    before = elsewhere()
    try:
        with ExitStack() as stack:
            clients = [
                stack.enter_context(socket.create_connection(address, _ACCEPT_SECONDS))
                for _ in range(count)
            ]
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


class Switch:
    """Moves all traffic to the staging slot, and keeps the state file in step."""

    def __init__(
        self,
        *,
        settings: Settings,
        plane: Plane,
        slots: Slots,
        state: StateKeeper,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._plane = plane
        self._slots = slots
        self._state = state
        self._changed = changed
        """Called after each flip."""

    async def flip(self) -> StepOutcome:
        """Make staging active. Not cancellable; on failure nothing has changed."""
        with anyio.CancelScope(shield=True):
            outcome = await self._flip()
        return outcome  # noqa: RET504  # mypy takes a cancel scope for one that may swallow

    async def _flip(self) -> StepOutcome:
        source, target = self._slots.active, self._slots.staging
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
                self._steer_back(source)
        if not outcome.has_passed:
            return outcome
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
        return await check_landing(
            str(self._settings.public_host), self._settings.public_port, target.instance
        )

    def _steer_back(self, source: Slot) -> None:
        try:
            self._plane.steer(source.name)
        except OSError as error:
            log.critical("steering_uncertain", wanted=source.name, why=str(error))

    async def _withdraw(self, before: DeployState) -> bool:
        """Restore the state file; return whether that was possible."""
        try:
            await self._state.change(
                active_port=before.active_port,
                staging_port=before.staging_port,
                last_switch_ts=before.last_switch_ts,
                active_release=before.active_release,
            )
        except OSError as error:
            log.error("switch_not_reverted", why=str(error))
            return False
        return True


def _release_of(slot: Slot) -> ActiveRelease | None:
    if slot.instance is None:
        return None
    return ActiveRelease(**slot.instance.release.record)
