"""Keeps the active slot's instance alive: starts it again when it died, ever later, not forever."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import structlog

from supervisor.model.release import Release
from supervisor.model.slot import SlotState
from supervisor.workers.restart import CrashCount, RestartPolicy
from supervisor.workers.slot import LaunchError, Slot

log = structlog.get_logger(__name__)


class Keeper:
    """Starts one slot's instance again and again while `wanted` says that it should run."""

    def __init__(
        self, slot: Slot, *, wanted: Callable[[], bool], policy: RestartPolicy | None = None
    ) -> None:
        self._slot = slot
        self._wanted = wanted
        self._policy = policy or RestartPolicy()
        self._crashes = CrashCount()

    async def start(self, release: Release) -> None:
        """Start the instance; if it can't be, go on trying."""
        try:
            await self._slot.start(release)
        except LaunchError as error:
            log.error("worker_failed", slot=self._slot.name, **_loggable(error))
            await self.revive(release, lived_seconds=0.0)

    async def revive(self, release: Release, *, lived_seconds: float) -> None:
        """Start the instance again after it died; returns once it runs or was given up."""
        slot = self._slot
        self._crashes = self._crashes.after(lived_seconds, self._policy)
        while self._wanted():
            delay = self._crashes.delay_seconds(self._policy)
            if delay is None:
                slot.state = SlotState.FAILED
                log.critical(
                    "worker_given_up", slot=slot.name, short_lives=self._crashes.short_lives
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
                log.error("worker_failed", slot=slot.name, **_loggable(error))
                self._crashes = self._crashes.after(0.0, self._policy)
            else:
                return
        if slot.instance is None:
            slot.state = SlotState.EMPTY


def _loggable(error: LaunchError) -> dict[str, str]:
    output = error.detail.get("output", [])
    return {"why": str(error), "output": " | ".join(output[-3:])}
