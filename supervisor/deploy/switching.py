"""The switch: all traffic to the other slot, durably, or everything as it was.

Who is active is three things that must agree: the program in the kernel, the state file, and
what the daemon believes. This is the one place that changes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import structlog

from supervisor.clock import Stopwatch, now
from supervisor.config import Settings
from supervisor.deploy.landing import Landing, landing
from supervisor.deploy.world import Finding
from supervisor.model.slot import SlotName, SlotState
from supervisor.model.state import ActiveRelease, DeployState
from supervisor.store.state_keeper import StateKeeper
from supervisor.traffic import Plane
from supervisor.workers.slot import Slot

log = structlog.get_logger(__name__)


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

    async def flip(self) -> Finding:
        """Make staging active. Not cancellable; on failure nothing has changed."""
        with anyio.CancelScope(shield=True):
            finding = await self._flip()
        return finding  # noqa: RET504  # mypy takes a cancel scope for one that may swallow

    async def _flip(self) -> Finding:
        source, target = self.active, self.staging
        if not _can_serve(target):
            return Finding(ok=False, message=f"{target.name} is not alive", staging_died=True)
        try:
            began = time.perf_counter_ns()
            self._plane.steer(target.name)
            flip_us = (time.perf_counter_ns() - began) / 1000
        except OSError as error:
            return Finding(ok=False, message=f"the kernel refused the flip: {error}")
        finding = Finding(ok=False, message="it was not finished")
        try:
            finding = await self._make_durable(source, target)
        finally:  # whatever it was, a bug included: nobody may be left at a half-made switch
            if not finding.ok:
                self._steer_back(source)
        if not finding.ok:
            return finding
        self._active = target.name
        target.state = SlotState.RUNNING
        if source.serving:
            source.state = SlotState.WARM
        finding.detail["flip_us"] = round(flip_us, 1)
        self._changed()
        return finding

    async def _make_durable(self, source: Slot, target: Slot) -> Finding:
        """Look where connections arrive, then write it down; on failure the file is as before."""
        where, seen = await self._landing(target)
        if where is Landing.WRONG:
            return Finding(ok=False, message=f"a connection arrived at the wrong place: {seen}")
        died = Finding(False, f"{target.name} died in the moment of the switch", staging_died=True)
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
            return Finding(ok=False, message=f"the state file could not be written: {error}")
        if not _can_serve(target):
            if await self._withdraw(before):
                return died
            log.error("switched_to_a_dead_one", slot=target.name)  # the file's word counts
        return Finding(
            ok=True,
            message=f"{target.name} (port {target.port}) has all new connections",
            detail={
                "state_file_ms": watch.milliseconds,
                "landing": where.value,
                "landing_detail": seen,
            },
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
