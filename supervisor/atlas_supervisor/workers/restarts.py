"""Restarts a crashed worker with growing delays.

A worker that lived for a while is started again at once; each short life in a row makes the next
delay longer, up to a minute. It is never given up: what it needs may come back. `cancel` ends an
attempt at any moment: a slot that is no longer active may be needed for a deploy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import anyio
import structlog

from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotEvent, SlotState
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.workers.launch import LaunchError
from atlas_supervisor.workers.slot import Slot

log = structlog.get_logger(__name__)

_DELAYS_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
_STABLE_SECONDS = 30.0
_RESTARTABLE = frozenset({SlotState.EMPTY, SlotState.BACKOFF})


@dataclass(frozen=True)
class RestartPolicy:
    """How long to wait before each start in a row of short lives.

    A life of `stable_seconds` or more begins a new row. The last delay is repeated.
    """

    delays_seconds: tuple[float, ...] = _DELAYS_SECONDS
    stable_seconds: float = _STABLE_SECONDS

    def short_lives_after(self, short_lives: int, lived_seconds: float) -> int:
        """Return how many short lives in a row there are after a life of this length."""
        return 1 if lived_seconds >= self.stable_seconds else short_lives + 1

    def delay_seconds(self, short_lives: int) -> float:
        """Return how long to wait before the next start."""
        last = len(self.delays_seconds) - 1
        return self.delays_seconds[min(max(short_lives - 1, 0), last)]


def as_recorded(release: Release) -> Release:
    """Return the release without looking at it."""
    return release


class Restarter:
    """Starts one slot's worker again and again while `wanted` says that it should run."""

    def __init__(
        self,
        slot: Slot,
        *,
        wanted: Callable[[], bool],
        checked: Callable[[Release], Release] = as_recorded,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._slot = slot
        self._wanted = wanted
        self._checked = checked
        """Returns the release as its folder is now; it reads the disk."""
        self._policy = policy or RestartPolicy()
        self._scope: anyio.CancelScope | None = None
        self.idle = anyio.Event()
        """Set while no attempt is in progress."""
        self.idle.set()

    async def start(self, release: Release) -> None:
        """Start the worker; if it can't be started, go on trying."""
        await self._exclusively(partial(self._start, release))

    async def restart(self, release: Release, *, lived_seconds: float) -> None:
        """Start the worker again after a crash; returns once it runs."""
        await self._exclusively(partial(self._restart, release, lived_seconds))

    async def cancel(self) -> None:
        """Stop trying, and return once nothing of a half-started worker is left."""
        if self._scope is not None:
            self._scope.cancel()
        await self.idle.wait()

    async def _exclusively(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do one thing at a time; a later call replaces what is in progress."""
        while not self.idle.is_set():
            await self.cancel()
        self.idle = anyio.Event()
        try:
            with anyio.CancelScope() as self._scope:
                await work()
        finally:
            self._scope = None
            self._leave_backoff()
            self.idle.set()

    def _leave_backoff(self) -> None:
        if self._slot.state is SlotState.BACKOFF:
            self._slot.apply(SlotEvent.CLEARED)

    async def _start(self, release: Release) -> None:
        try:
            await self._launch(release)
        except LaunchError as error:
            log.error("worker_failed", **_facts(self._slot, release, error))
            await self._restart(release, 0.0)
        else:
            await self._stop_unwanted()

    async def _launch(self, release: Release) -> None:
        """Launch it; if its folder holds another version than the recorded one, say so."""
        current = await in_thread(self._checked, release)
        if current.problem is not None:
            slot = self._slot.name
            log.error("release_changed", slot=slot, release=release.label, why=current.problem)
        await self._slot.start(current)

    async def _stop_unwanted(self) -> None:
        """End a worker that came too late: the other slot has the traffic, or the daemon stops."""
        if not self._wanted():
            with anyio.CancelScope(shield=True):
                await self._slot.stop()

    async def _restart(self, release: Release, lived_seconds: float) -> None:
        slot, policy = self._slot, self._policy
        slot.short_lives = policy.short_lives_after(slot.short_lives, lived_seconds)
        while self._wanted() and slot.state in _RESTARTABLE:
            delay = policy.delay_seconds(slot.short_lives)
            slot.apply(SlotEvent.RESTART_SCHEDULED)
            await anyio.sleep(delay)
            if slot.state is not SlotState.BACKOFF or not self._wanted():
                return  # a deploy uses the slot by now, or will
            slot.restarts += 1
            try:
                await self._launch(release)
            except LaunchError as error:
                log.error("worker_failed", **_facts(slot, release, error))
                slot.short_lives = policy.short_lives_after(slot.short_lives, 0.0)
            else:
                await self._stop_unwanted()
                return


def _facts(slot: Slot, release: Release, error: LaunchError) -> dict[str, str]:
    facts = {"slot": slot.name, "release": release.label, "why": str(error)}
    if (instance := error.detail.get("instance")) is not None:
        facts["instance"] = instance
    if output := error.detail.get("output"):
        facts["output"] = " | ".join(output[-3:])
    return facts
