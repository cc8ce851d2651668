"""Keeps the active slot's instance alive: starts it again when it died, ever later, not forever.

A slot that is no longer active may be needed for something else at once: `let_go` ends whatever
is under way and says when the slot is free.

When a worker that died is started again: at once, then ever later, then not any more. Pure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import anyio
import structlog

from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotState
from atlas_supervisor.workers.readiness import LaunchError
from atlas_supervisor.workers.slot import Slot

log = structlog.get_logger(__name__)

_DELAYS_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)
_STABLE_SECONDS = 30.0


@dataclass(frozen=True)
class RestartPolicy:
    """How long to wait before each start in a row of short lives.

    A life of `stable_seconds` or more begins a new row. After as many short lives as there are
    `delays_seconds`, the worker is given up.
    """

    delays_seconds: tuple[float, ...] = _DELAYS_SECONDS
    stable_seconds: float = _STABLE_SECONDS


@dataclass(frozen=True)
class CrashCount:
    """Short lives in a row."""

    short_lives: int = 0

    def after(self, lived_seconds: float, policy: RestartPolicy) -> CrashCount:
        """Return the count after a life of this length."""
        if lived_seconds >= policy.stable_seconds:
            return CrashCount(1)
        return CrashCount(self.short_lives + 1)

    def delay_seconds(self, policy: RestartPolicy) -> float | None:
        """Return how long to wait before the next start; None: give up."""
        if self.short_lives > len(policy.delays_seconds):
            return None
        return policy.delays_seconds[max(self.short_lives - 1, 0)]


class Restarter:
    """Starts one slot's instance again and again while `wanted` says that it should run."""

    def __init__(
        self, slot: Slot, *, wanted: Callable[[], bool], policy: RestartPolicy | None = None
    ) -> None:
        self._slot = slot
        self._wanted = wanted
        self._policy = policy or RestartPolicy()
        self._crashes = CrashCount()
        self._scope: anyio.CancelScope | None = None
        self._idle = anyio.Event()
        self._idle.set()

    async def start(self, release: Release) -> None:
        """Start the instance; if it can't be, go on trying."""
        await self._alone(partial(self._start, release))

    async def revive(self, release: Release, *, lived_seconds: float) -> None:
        """Start the instance again after it died; returns once it runs or was given up."""
        await self._alone(partial(self._revive, release, lived_seconds))

    async def let_go(self) -> None:
        """Try no more, and return once nothing of an instance half started is left."""
        if self._scope is not None:
            self._scope.cancel()
        await self._idle.wait()

    async def _alone(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do one thing at a time; what comes later replaces what is under way."""
        while not self._idle.is_set():
            await self.let_go()
        self._idle = anyio.Event()
        try:
            with anyio.CancelScope() as self._scope:
                await work()
        finally:
            self._scope = None
            if self._slot.instance is None and self._slot.state is SlotState.BACKOFF:
                self._slot.state = SlotState.EMPTY
            self._idle.set()

    async def _start(self, release: Release) -> None:
        try:
            await self._slot.start(release)
        except LaunchError as error:
            log.error("worker_failed", **_facts(self._slot, release, error))
            await self._revive(release, 0.0)
        else:
            await self._check_wanted()

    async def _check_wanted(self) -> None:
        """End it again if it came too late: another slot has the traffic, or the daemon stops."""
        if not self._wanted():
            with anyio.CancelScope(shield=True):
                await self._slot.stop()

    async def _revive(self, release: Release, lived_seconds: float) -> None:
        slot = self._slot
        self._crashes = self._crashes.after(lived_seconds, self._policy)
        while self._wanted():
            delay = self._crashes.delay_seconds(self._policy)
            if delay is None:
                slot.state = SlotState.FAILED
                log.critical(
                    "worker_given_up",
                    slot=slot.name,
                    release=release.label,
                    short_lives=self._crashes.short_lives,
                )
                return
            slot.state = SlotState.BACKOFF
            await anyio.sleep(delay)
            if slot.state is not SlotState.BACKOFF:
                return  # somebody else has begun to use the slot meanwhile
            if not self._wanted():
                break
            slot.restarts += 1
            try:
                await slot.start(release)
            except LaunchError as error:
                log.error("worker_failed", **_facts(slot, release, error))
                self._crashes = self._crashes.after(0.0, self._policy)
            else:
                await self._check_wanted()
                return
        if slot.instance is None:
            slot.state = SlotState.EMPTY


def _facts(slot: Slot, release: Release, error: LaunchError) -> dict[str, str]:
    facts = {"slot": slot.name, "release": release.label, "why": str(error)}
    if (instance := error.detail.get("instance")) is not None:
        facts["instance"] = instance
    if output := error.detail.get("output"):
        facts["output"] = " | ".join(output[-3:])
    return facts
