"""Holds new connections to the public port for a while, and hands them on when it is over.

What always holds:
- There is one hold at a time, and each ends: it is released, its time is over, or the daemon stops.
  The successor of a daemon that was killed releases at its start; after a reload it goes on.
- No connection is refused or reset. In a hold it waits in the kernel, where the next daemon finds
  it: its listener is kept (`system.socket_store`) before the first one can arrive there.
- A switch, a rollback or a restart of the worker is not hindered; whichever version is active at
  the release gets what has waited.

The order of a hold: keep the listener, state file, steer. Of a release: steer, hand on, state file.
The file has the hold for the next program of a reload, and `announce_close` for workers with the
kit, whose clients would go on over open connections. That stays for a moment after the release:
this process carries what was handed on, and a client that is asked to close leaves it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from secrets import token_hex

import anyio
import structlog
from anyio.abc import TaskGroup

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy import errors
from atlas_supervisor.deploy.recorder import Runs
from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.state import Hold
from atlas_supervisor.model.status import HoldView
from atlas_supervisor.store.audit import AuditStore
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.system.clock import now
from atlas_supervisor.traffic import Plane

log = structlog.get_logger(__name__)

_LINGER_SECONDS = 5.0
"""How long closes are announced after a release, while the daemon carries what was handed on."""
_EMPTY_SECONDS = 2.0
"""How long a stop waits until everything that has waited is handed on."""
_LOOK_SECONDS = 0.05
_RETRY_SECONDS = 1.0


class Holds:
    """Holds and releases; it satisfies `api.ports.HoldPort`."""

    def __init__(
        self,
        *,
        settings: Settings,
        plane: Plane,
        state: StateKeeper,
        runs: Runs,
        audit: AuditStore,
        tasks: TaskGroup,
        keep: Callable[[], Awaitable[None]],
    ) -> None:
        """`keep` has the plane's sockets kept for the next daemon."""
        self._settings = settings
        self._plane = plane
        self._state = state
        self._runs = runs
        self._audit = audit
        self._tasks = tasks
        self._keep = keep
        self._hold: Hold | None = None
        self._stopping = False
        self._changing = anyio.Lock()

    def _view(self, hold: Hold, handed_on: int = 0) -> HoldView:
        return HoldView(**hold.model_dump(), waiting=self._plane.waiting + handed_on)

    async def take_in(self) -> None:
        """Go on with the hold of the program before a reload, or end that of a killed daemon."""
        state = self._state.state
        if state.hold and self._plane.held:
            self._hold = state.hold
            log.info("traffic_hold_continued", hold_id=state.hold.hold_id)
            left = (state.hold.until - now()).total_seconds()
            self._tasks.start_soon(self._expire, state.hold, left)
        elif state.hold:
            carried = self._plane.relayed().get("hold")
            why, already = "the supervisor was started again", carried.connections if carried else 0
            await self._end(state.hold, SUPERVISOR, why, already)
        elif state.announce_close:
            self._tasks.start_soon(self._settle)

    async def hold(self, max_seconds: float, actor: Actor) -> HoldView:
        """Let new connections wait, for so long at most. Raises RefusedError."""
        with anyio.CancelScope(shield=True):
            async with self._changing:
                hold = await self._begin(max_seconds, actor)
                self._tasks.start_soon(self._expire, hold, max_seconds)
                await self._audit.record(
                    actor, "hold", "held", subject=hold.hold_id, max_seconds=max_seconds
                )
        return self._view(hold)

    async def _begin(self, max_seconds: float, actor: Actor) -> Hold:
        if self._runs.stopping or self._stopping:
            raise errors.stopping()
        if not self._settings.public_port:
            raise errors.nothing_to_hold()
        if self._hold is not None:
            raise errors.already_held(
                until=self._hold.until.isoformat(timespec="seconds"), by=self._hold.by
            )
        began = now()
        until = began + timedelta(seconds=max_seconds)
        hold = Hold(hold_id=token_hex(4), since=began, until=until, by=actor.name)
        try:
            self._plane.prepare_hold()
            await self._keep()
            await self._state.change(hold=hold, announce_close=True)
            self._plane.hold()
        except OSError as error:
            await self._forget()
            self._tasks.start_soon(self._settle)
            raise errors.hold_failed(error=error) from error
        self._hold = hold
        log.info("traffic_held", hold_id=hold.hold_id, actor=actor.name, max_seconds=max_seconds)
        return hold

    async def release(self, actor: Actor, hold_id: str | None = None) -> HoldView:
        """End the hold, or the one of this id; return it as it ended. Raises RefusedError."""
        with anyio.CancelScope(shield=True):
            async with self._changing:
                if self._hold is None or hold_id not in {None, self._hold.hold_id}:
                    raise errors.nothing_to_release()
                ended = await self._end(self._hold, actor, f"released by {actor.name}")
        return ended  # mypy takes a cancel scope for one that may swallow

    async def stop(self) -> None:
        """End the hold and begin none: the daemon stops."""
        async with self._changing:
            self._stopping = True
            if self._hold is not None:
                await self._end(self._hold, SUPERVISOR, "the supervisor stops")
        with anyio.move_on_after(_EMPTY_SECONDS):
            while self._plane.waiting:  # noqa: ASYNC110  # no event
                await anyio.sleep(_LOOK_SECONDS)
        await self._settled()

    async def _expire(self, hold: Hold, seconds: float) -> None:
        await anyio.sleep(max(0.0, seconds))
        with anyio.CancelScope(shield=True):
            async with self._changing:
                if self._hold is hold:
                    await self._end(hold, SUPERVISOR, "its time was over")

    async def _end(self, hold: Hold, actor: Actor, why: str, handed_on: int = 0) -> HoldView:
        """Hand on what waits, and say so; `_settle` does later what fails now."""
        view = self._view(hold, handed_on).model_copy(update={"until": now()})
        try:
            self._plane.release()
        except OSError as error:
            log.critical("steering_uncertain", why=str(error))
        self._hold = None
        seconds = round((view.until - view.since).total_seconds(), 3)
        log.info("traffic_released", hold_id=hold.hold_id, why=why, waiting=view.waiting)
        await self._forget()
        self._tasks.start_soon(self._settle)
        await self._audit.record(
            actor,
            "hold",
            "released",
            subject=hold.hold_id,
            reason=why,
            seconds=seconds,
            waiting=view.waiting,
        )
        return view

    async def _forget(self) -> None:
        """Take the hold out of the state file: no next program goes on with it."""
        try:
            if self._state.state.hold:
                await self._state.change(hold=None)
        except OSError as error:
            log.error("hold_not_cleared", why=str(error))

    async def _settle(self) -> None:
        """Let workers announce closes until nothing is handed on; do again what has failed."""
        with anyio.move_on_after(_LINGER_SECONDS):
            while self._hands_on():  # noqa: ASYNC110  # no event
                await anyio.sleep(_LOOK_SECONDS)
        while not await self._settled():  # noqa: ASYNC110  # as above
            await anyio.sleep(_RETRY_SECONDS)

    def _hands_on(self) -> bool:
        carried = self._plane.relayed().get("hold")
        return bool(self._plane.waiting or (carried and carried.open_connections))

    async def _settled(self) -> bool:
        async with self._changing:
            if self._hold is not None:
                return True
            state = self._state.state
            try:
                if self._plane.held:
                    self._plane.release()
                if state.hold or state.announce_close:
                    await self._state.change(hold=None, announce_close=False)
            except OSError:  # each was logged when it failed first
                return False
            return True
