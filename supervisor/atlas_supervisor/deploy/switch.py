"""The switch: all traffic to the other slot, durably, or everything as it was.

Who is active is three things that must agree: the program in the kernel, the state file, and
what the daemon believes. This is the one place that changes them.

Where does a connection to the public port really arrive? Asked after every switch.

The kernel said that it took the program; this looks at what it does. A stranger's listener that
is more specific than ours, or a group out of order, shows here and nowhere else.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from enum import StrEnum

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.effects import StepOutcome
from atlas_supervisor.model.slot import SlotName, SlotState
from atlas_supervisor.model.state import ActiveRelease, DeployState
from atlas_supervisor.model.step import SwitchDetail
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.system import procfs, sockdiag
from atlas_supervisor.system.clock import Stopwatch, now
from atlas_supervisor.traffic import Plane
from atlas_supervisor.traffic.listeners import loopback_of
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.slot import Slot

log = structlog.get_logger(__name__)

_ACCEPT_SECONDS = 0.25
_POLL_SECONDS = 0.001


class Landing(StrEnum):
    """What was seen."""

    RIGHT = "right"
    WRONG = "wrong"
    UNSEEN = "unseen"
    """Nobody accepted it in time: the worker is busy, or what we may look at does not tell."""


async def landing(host: str, port: int, instance: WorkerProcess) -> tuple[Landing, str]:
    """Connect to the public port, and tell whether `instance` got the connection."""
    return await anyio.to_thread.run_sync(_look, loopback_of(host), port, instance)


def _look(host: str, port: int, instance: WorkerProcess) -> tuple[Landing, str]:
    try:
        with socket.create_connection((host, port), _ACCEPT_SECONDS) as client:
            inode = _accepted(client)
            if inode == 0:
                return Landing.UNSEEN, f"nobody accepted it within {_ACCEPT_SECONDS:g} s"
            if inode in procfs.sockets_of(instance.pid):
                return Landing.RIGHT, f"pid {instance.pid} accepted it"
            if any(inode in procfs.sockets_of(pid) for pid in instance.family()):
                return Landing.RIGHT, f"a process of pid {instance.pid} accepted it"
            others = [procfs.describe(pid) for pid in procfs.holders(inode)]
    except OSError as error:
        return Landing.UNSEEN, f"it could not be looked at: {error}"
    if not others:  # accepted and closed again before we could look
        return Landing.UNSEEN, "whoever accepted it closed it at once"
    return Landing.WRONG, f"{', '.join(others)} accepted it"


def _accepted(client: socket.socket) -> int:
    """Return the inode of the server's end once there is one; 0 if nobody accepted in time."""
    deadline = time.monotonic() + _ACCEPT_SECONDS
    while True:
        inode = sockdiag.accepted_inode(client)
        if inode or time.monotonic() > deadline:
            return inode
        time.sleep(_POLL_SECONDS)


class Switch:
    """Knows both slots and which one is active."""

    def __init__(
        self,
        *,
        settings: Settings,
        plane: Plane,
        slots: dict[SlotName, Slot],
        state: StateKeeper,
        active: SlotName,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._plane = plane
        self._slots = slots
        self._state = state
        self._active = active
        self._changed = changed
        """Called after each flip."""

    @property
    def active(self) -> Slot:
        """The slot that has the traffic."""
        return self._slots[self._active]

    @property
    def staging(self) -> Slot:
        """The other one."""
        return self._slots[self._active.other]

    def ports(self) -> tuple[int, int]:
        """Return the active and the staging port."""
        return self.active.port, self.staging.port

    async def flip(self) -> StepOutcome:
        """Make staging active. Not cancellable; on failure nothing has changed."""
        with anyio.CancelScope(shield=True):
            outcome = await self._flip()
        return outcome  # noqa: RET504  # mypy takes a cancel scope for one that may swallow

    async def _flip(self) -> StepOutcome:
        source, target = self.active, self.staging
        if not _can_serve(target):
            return StepOutcome.staging_died(f"{target.name} is not alive")
        try:
            began = time.perf_counter_ns()
            self._plane.steer(target.name)
            flip_us = round((time.perf_counter_ns() - began) / 1000, 1)
        except OSError as error:
            return StepOutcome.failed(f"the kernel refused the flip: {error}")
        outcome = StepOutcome.failed("it was not finished")
        try:
            outcome = await self._make_durable(source, target, flip_us)
        finally:  # after a bug, too: no caller may be left at a half-made switch
            if not outcome.has_passed:
                self._steer_back(source)
        if not outcome.has_passed:
            return outcome
        self._active = target.name
        target.state = SlotState.RUNNING
        if source.serving:
            source.state = SlotState.WARM
        self._changed()
        return outcome

    async def _make_durable(self, source: Slot, target: Slot, flip_us: float) -> StepOutcome:
        """Look where connections arrive, then write it down; on failure the file is as before."""
        where, seen = await self._landing(target)
        if where is Landing.WRONG:
            return StepOutcome.failed(f"a connection arrived at the wrong place: {seen}")
        died = StepOutcome.staging_died(f"{target.name} died in the moment of the switch")
        if not _can_serve(target):
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
        if not _can_serve(target):
            if await self._withdraw(before):
                return died
            log.error("switched_to_a_dead_one", slot=target.name)  # the file's word counts
        return StepOutcome.passed(
            f"{target.name} (port {target.port}) now receives all new connections",
            SwitchDetail(
                state_file_ms=watch.milliseconds,
                landing=where.value,
                landing_detail=seen,
                flip_us=flip_us,
            ),
        )

    async def _landing(self, target: Slot) -> tuple[Landing, str]:
        if self._plane.name != "kernel" or target.instance is None:
            return Landing.UNSEEN, "the daemon itself accepts; there is nothing to see"
        return await landing(
            str(self._settings.public_host), self._settings.public_port, target.instance
        )

    def _steer_back(self, source: Slot) -> None:
        try:
            self._plane.steer(source.name)
        except OSError as error:
            log.critical("steering_uncertain", wanted=source.name, why=str(error))

    async def _withdraw(self, before: DeployState) -> bool:
        """Take back what the file says; return whether that was possible."""
        try:
            await self._state.change(
                active_port=before.active_port,
                staging_port=before.staging_port,
                last_switch_ts=before.last_switch_ts,
                active_release=before.active_release,
            )
        except OSError as error:
            log.error("switch_not_withdrawn", why=str(error))
            return False
        return True


def _release_of(slot: Slot) -> ActiveRelease | None:
    if slot.instance is None:
        return None
    release = slot.instance.release
    return ActiveRelease(name=release.name, version=release.version)


def _can_serve(slot: Slot) -> bool:
    """Tell whether the slot's instance is ready, and nobody has given it up."""
    return slot.serving and slot.instance is not None and not slot.instance.expected_to_exit
