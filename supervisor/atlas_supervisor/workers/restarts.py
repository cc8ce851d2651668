"""Restarts a crashed worker with growing delays.

A worker that lived for a while is started again at once; each short life in a row makes the next
delay longer, up to a minute. It is never given up: what it needs may come back. `cancel` ends an
attempt at any moment: a slot that is no longer active may be needed for a deploy.

Clients wait meanwhile, and `Outage` ends their wait if it takes too long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotEvent, SlotName, SlotState
from atlas_supervisor.traffic import Plane
from atlas_supervisor.traffic.refusal import Refusal
from atlas_supervisor.workers.launch import LaunchError
from atlas_supervisor.workers.slot import Slot

log = structlog.get_logger(__name__)

_DELAYS_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
_STABLE_SECONDS = 30.0
_RESTARTABLE = frozenset({SlotState.EMPTY, SlotState.BACKOFF})

_BODY = b"No worker can answer at the moment. Try again later.\n"
_RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nConnection: close\r\n"
    b"Cache-Control: no-store\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b"
) % (len(_BODY), _BODY)


@dataclass(frozen=True)
class RestartPolicy:
    """How long to wait before each start in a row of short lives.

    A life of `stable_seconds` or more begins a new row. The last delay is repeated.
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

    def delay_seconds(self, policy: RestartPolicy) -> float:
        """Return how long to wait before the next start."""
        last = len(policy.delays_seconds) - 1
        return policy.delays_seconds[min(max(self.short_lives - 1, 0), last)]


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
        self._crashes = CrashCount()
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

    def forget(self) -> None:
        """Forget the crashes: the slot's next worker is of another deploy."""
        self._crashes = CrashCount()
        self._slot.restarts = 0

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
        current = await anyio.to_thread.run_sync(self._checked, release)
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
        slot = self._slot
        self._crashes = self._crashes.after(lived_seconds, self._policy)
        while self._wanted() and slot.state in _RESTARTABLE:
            delay = self._crashes.delay_seconds(self._policy)
            slot.apply(SlotEvent.RESTART_SCHEDULED)
            await anyio.sleep(delay)
            if slot.state is not SlotState.BACKOFF or not self._wanted():
                return  # a deploy uses the slot by now, or will
            slot.restarts += 1
            try:
                await self._launch(release)
            except LaunchError as error:
                log.error("worker_failed", **_facts(slot, release, error))
                self._crashes = self._crashes.after(0.0, self._policy)
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


class Outage:
    """Ends the wait of clients while no worker can serve.

    Connections wait while a worker restarts, which none of them notices. One that does not come up
    again would let them wait for ever: after `READY_TIMEOUT_SECONDS` the daemon answers them with
    503 (over TLS it can only close them), and new ones likewise. As soon as a worker is ready it
    gets the next connection.
    """

    def __init__(self, plane: Plane, settings: Settings) -> None:
        self._plane = plane
        self._patience = settings.ready_timeout_seconds
        self._refusal = Refusal(b"" if settings.health_scheme == "https" else _RESPONSE)
        self._timer: asyncio.TimerHandle | None = None
        self.refusing: SlotName | None = None
        """The slot whose clients are refused."""

    def note(self, active: SlotName, *, can_serve: bool) -> None:
        """Note whether the active worker can serve; to be called whenever that may have changed."""
        if self.refusing is not None and (can_serve or self.refusing is not active):
            self._plane.admit(self.refusing)
            self.refusing = None
            log.info("clients_admitted", slot=active)
        if can_serve:
            self.stop()
        elif self._timer is None and self.refusing is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._patience, self._begin, active)

    def stop(self) -> None:
        """Let it not begin."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, active: SlotName) -> None:
        self._timer, self.refusing = None, active
        log.critical("clients_refused", slot=active, waited_seconds=self._patience)
        self._plane.refuse(active, self._refusal)
