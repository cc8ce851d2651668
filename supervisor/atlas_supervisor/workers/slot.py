"""A slot: runs one worker at a time, from its launch to its end.

It launches a worker, waits until it is ready, watches it, drains it and stops it. Its state
follows the table in `model.slot`. What happens after a crash is decided by `Slots`.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import anyio
import structlog
from anyio.abc import TaskGroup
from structlog.contextvars import bind_contextvars, bound_contextvars, clear_contextvars

from atlas_supervisor.config import Settings
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import (
    INITIAL,
    SERVING,
    InstanceUsage,
    Role,
    SlotEvent,
    SlotName,
    SlotState,
    SlotView,
    next_state,
)
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.system.descriptors import SPARES, is_shortage
from atlas_supervisor.system.failpoints import seam
from atlas_supervisor.system.procfs import inode_of
from atlas_supervisor.system.threads import NO_ROOM, in_thread
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.drain import Drain, Drains
from atlas_supervisor.workers.launch import (
    LaunchError,
    LaunchSettings,
    ReleaseGoneError,
    launch_release,
    new_instance_id,
    until_ready,
)
from atlas_supervisor.workers.output import WorkerLog
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.registry import end_sharers

log = structlog.get_logger(__name__)

_QUEUE_POLL_SECONDS = 0.02
_LINGERING_POLL_SECONDS = 1.0  # one with the kit ends by itself; this is for the status alone


class InstanceRegistry(Protocol):
    """Remembers processes, so that a later daemon goes on with those that this one leaves."""

    def launched(self, instance: WorkerProcess) -> None:
        """Note that the process is there, and from now on what changes in its life."""

    def gone(self, instance: WorkerProcess) -> None:
        """Note that nothing of it is left."""


@dataclass(frozen=True)
class SlotContext:
    """What both slots share."""

    settings: Settings
    plane: Plane
    prober: HttpProber
    registry: InstanceRegistry
    tasks: TaskGroup
    drains: Drains
    launch_settings: LaunchSettings
    on_down: Callable[[Slot, WorkerProcess, str], Awaitable[None]]
    """Called once when a worker ended or hangs without having been asked to end, with the cause."""
    on_change: Callable[[], None]
    """Called after every change of a slot's state."""


class Slot:
    """One of the two slots."""

    def __init__(self, name: SlotName, port: int, context: SlotContext) -> None:
        self.name = name
        self.port = port
        self.restarts = 0
        self.short_lives = 0
        """Crashes in a row of the release in it, each soon after its start."""
        self.last_exit: str | None = None
        """How a worker last went down, or did not come up, without having been asked to end."""
        self.release_gone: str | None = None
        """Why the release of the last launch is gone; None if it is there."""
        self.instance: WorkerProcess | None = None
        self.log = WorkerLog(context.settings.state_dir / "logs" / f"worker-{name}.log", name)
        self._state = INITIAL
        self._context = context

    def forget_crashes(self) -> None:
        """Count anew: the slot's next worker is of another deploy."""
        self.restarts = self.short_lives = 0

    @property
    def state(self) -> SlotState:
        """Where the slot is in its life."""
        return self._state

    @property
    def alive(self) -> bool:
        """Whether the slot has a worker whose process is there."""
        return self.instance is not None and self.instance.alive

    @property
    def serving(self) -> bool:
        """Whether the slot has a living worker that has become ready."""
        return self.alive and self.state in SERVING

    @property
    def is_down(self) -> bool:
        """Whether its worker is dead, or was reported as hung."""
        return self.instance is None or not self.instance.alive or self.instance.expected_to_exit

    @property
    def can_serve(self) -> bool:
        """Whether all traffic can be switched to it."""
        return self.serving and not self.is_down

    @property
    def answers(self) -> bool:
        """Whether it can serve, and passed its last liveness probe."""
        return self.can_serve and self.instance is not None and self.instance.answers

    def apply(self, event: SlotEvent) -> None:
        """Take the state that follows from the event. Raises UnexpectedEventError."""
        self._state = next_state(self._state, event)
        self._context.on_change()

    def activate(self) -> None:
        """Note that the slot has the traffic; nothing changes if its worker died meanwhile."""
        if self.state in SERVING:
            self.apply(SlotEvent.ACTIVATED)

    def deactivate(self) -> None:
        """Note that the slot lost the traffic; a worker that lives is warm from now on."""
        if self.serving:
            self.apply(SlotEvent.DEACTIVATED)

    def view(self, role: Role) -> SlotView:
        """Return the slot as the status shows it."""
        instance = self.instance
        return SlotView(
            slot=self.name,
            port=self.port,
            role=role,
            state=self.state,
            pid=instance.pid if instance else None,
            version=instance.release.version if instance else None,
            started_ts=instance.life.started_ts if instance else None,
            restarts=self.restarts,
            last_exit=self.last_exit,
            **(instance.usage if instance else InstanceUsage())._asdict(),
        )

    async def start(self, release: Release) -> dict[str, Any]:
        """Launch a worker and return how it went, once it is ready. Raises LaunchError.

        After an error, or when cancelled, nothing of the worker is left.
        """
        name = new_instance_id(self.name)
        with bound_contextvars(slot=self.name, instance=name, release=release.label):
            return await self._start(release, name)

    async def _start(self, release: Release, name: str) -> dict[str, Any]:
        self.apply(SlotEvent.LAUNCHED)
        self.release_gone = None
        # From now on the queue is the new worker's; else a probe of it would reach the other slot.
        self._context.plane.occupy(self.name)
        try:
            instance = await self._launch(release, name)
            how = await until_ready(
                instance, self.port, self.log, self._context.prober, self._context.settings
            )
            self._context.plane.refresh(self.name)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self.stop()
            if isinstance(error, OSError):  # no descriptors left, a full disk, a folder gone
                why = NO_ROOM if error.errno == errno.EAGAIN else str(error)
                self.last_exit = f"the worker could not be started: {why}"
                raise LaunchError(self.last_exit, instance=name) from error
            if isinstance(error, ReleaseGoneError):
                self.release_gone = str(error)
            if isinstance(error, LaunchError):
                self.last_exit = str(error)
                error.detail.setdefault("instance", name)
            raise
        self.apply(SlotEvent.READY)
        instance.note(ready=True)
        self._context.tasks.start_soon(self._watch_liveness, instance)
        if instance.kit and self._context.settings.stop_signal != "TERM":
            log.warning("stop_signal_ignored", why="a worker with the kit drains on SIGTERM alone")
        boot_ms = instance.age.milliseconds
        log.info("worker_ready", pid=instance.pid, boot_ms=boot_ms)
        return {
            "message": f"pid {instance.pid} was ready after {boot_ms:.0f} ms: {how}",
            "pid": instance.pid,
            "instance": instance.name,
            "kit": instance.kit,
        }

    @seam("launch")
    async def _launch(self, release: Release, name: str) -> WorkerProcess:
        launch = partial(
            launch_release,
            release,
            name=name,
            slot=self.name,
            port=self.port,
            settings=self._context.settings,
            inherited=self._context.plane.inherited(self.name),
            output=self.log,
        )
        try:
            instance = await launch()
        except OSError as error:
            if not is_shortage(error):
                raise
            with SPARES.released():
                instance = await launch()
        self.instance = instance
        self._context.launch_settings.refresh()
        instance.note(
            port=self.port,
            socket_passing=self._context.settings.socket_passing,
            restarts=self.restarts,
            launched_with=self._context.launch_settings.digest(release),
        )
        self._context.tasks.start_soon(self._watch_exit, instance)
        log.info("worker_launched", pid=instance.pid, version=release.version)
        self._context.registry.launched(instance)
        return instance

    @seam("adopt")
    def adopt(self, instance: WorkerProcess) -> None:
        """Go on with a worker of an earlier daemon as if we had launched it."""
        self.instance, self.restarts = instance, instance.life.restarts
        self.log.adopt(instance.name, instance.pid)
        instance.note(ready=True)
        self.apply(SlotEvent.ADOPTED)
        self._context.plane.occupy(self.name)
        self._context.registry.launched(instance)
        self._context.tasks.start_soon(self._watch_exit, instance)
        self._context.tasks.start_soon(self._watch_liveness, instance)

    def inherit(self, instance: WorkerProcess) -> None:
        """Take a worker of an earlier daemon, to be drained once another one has its traffic."""
        self.instance = instance
        instance.slot = self.name
        self._context.registry.launched(instance)  # a still later daemon finds it in this slot
        self.apply(SlotEvent.INHERITED)
        self._context.plane.occupy(self.name)
        self._context.tasks.start_soon(self._watch_exit, instance)

    async def dismiss(self, instance: WorkerProcess) -> None:
        """End an earlier daemon's worker that is in no slot; return once it accepts nothing more.

        It has the time of a drain.
        """
        ports, allowed = self._context.plane.ports(self.name), self._context.settings
        drain = self._context.drains.begin(Drain(instance, ports, allowed.drain_timeout_seconds))
        self._context.tasks.start_soon(instance.wait)
        drain.detached = await drain.stops_accepting()
        if drain.detached:
            self._context.tasks.start_soon(self._finish, drain)
        else:
            await self._finish(drain)

    async def _watch_exit(self, instance: WorkerProcess) -> None:
        clear_contextvars()  # a worker outlives the deploy that its log lines would name
        await instance.wait()
        if self.state is not SlotState.STARTING:
            await self._report_down(instance, f"it {instance.exit_text}")

    async def _watch_liveness(self, instance: WorkerProcess) -> None:
        clear_contextvars()  # as above
        cause = await until_hung(instance, self.port, self._context.prober, self._context.settings)
        if cause is not None:
            await self._report_down(instance, cause)

    async def _report_down(self, instance: WorkerProcess, cause: str) -> None:
        """Report it once: a worker that hangs may end before it is stopped."""
        if not instance.expected_to_exit:
            instance.expected_to_exit = True
            self.last_exit = cause
            await self._context.on_down(self, instance, cause)

    @seam("drain")
    async def drain(self, freed: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Drain the worker, and return how that went; see `workers.drain`.

        To be called once nothing new is steered here. `freed` is called once, as soon as another
        worker may be started here: at the end, or when this one may linger.
        """
        instance, settings = self.instance, self._context.settings
        if instance is None:
            self.apply(SlotEvent.CLEARED)
            self._free(freed)
            return {"message": f"{self.name} was empty", "by_itself": True}
        self.apply(SlotEvent.DRAIN_STARTED)
        ports = self._context.plane.ports(self.name)
        drain = self._context.drains.begin(
            Drain(instance, ports, settings.drain_timeout_seconds, settings.drain_quiet_seconds)
        )
        try:
            await drain.settle(self._context.plane)
            if self._may_linger(instance) and await drain.stops_accepting():
                return await self._linger(drain, freed)
            drain.keeps_slot = True
            drain.by_itself = await self.stop(drain_seconds=drain.seconds_left)
        finally:
            if not drain.detached:
                self._context.drains.end(drain)
        self._free(freed)
        return drain.story()

    def _free(self, freed: Callable[[], None]) -> None:
        """Hand the slot's queues to the other slot: they may be the next worker's at any moment."""
        self._context.plane.vacate(self.name, self.name.other)
        freed()

    def _may_linger(self, instance: WorkerProcess) -> bool:
        return instance.kit and self._context.settings.socket_passing is not SocketPassing.PORT

    async def _linger(self, drain: Drain, freed: Callable[[], None]) -> dict[str, Any]:
        """Leave the slot as soon as one more may linger; return once the worker has ended.

        It ends in a task of the daemon's: if our caller is cancelled, it still has its time.
        """
        drain.detached = True
        self._context.tasks.start_soon(self._finish, drain)
        # It may have to wait for room to linger; connections must not wait in its queues for that.
        self._context.plane.vacate(self.name, self.name.other)
        if await self._context.drains.linger(drain) and self.instance is drain.instance:
            self.instance = None
            self.apply(SlotEvent.LEFT)
            log.info("worker_lingers", **drain.instance.facts, pid=drain.instance.pid)
        else:
            await drain.gone.wait()
        self._free(freed)
        await drain.gone.wait()
        return drain.story()

    async def _finish(self, drain: Drain) -> None:
        """End a worker that accepts nothing more, whether or not it is still in its slot."""
        clear_contextvars()  # as above
        instance = drain.instance
        bind_contextvars(**instance.facts)
        try:
            drain.by_itself = await instance.stop(
                stop_seconds=self._context.settings.stop_timeout_seconds,
                drain_seconds=drain.seconds_left,
                ports=drain.ports,
                poll_seconds=_LINGERING_POLL_SECONDS,
            )
            await self._clear(instance)
        finally:
            self._context.drains.end(drain)

    async def stop(self, *, drain_seconds: float = 0.0, answers_first: bool = False) -> bool:
        """End the worker with all its descendants; return whether it went by itself.

        `answers_first`: a worker without the kit, which may cut them off, is asked to end once its
        queue is empty and its answers are given. It must get no new connections.
        """
        instance, plane = self.instance, self._context.plane
        if instance is None:
            self.apply(SlotEvent.CLEARED)
            return True
        if self.state is not SlotState.STARTING:
            self.apply(SlotEvent.DRAIN_STARTED)
        settings, ports, age = self._context.settings, plane.ports(self.name), Stopwatch()
        if answers_first and instance.answers and not instance.kit:
            with anyio.move_on_after(drain_seconds):
                while instance.alive and plane.queued(self.name):  # noqa: ASYNC110  # no event
                    await anyio.sleep(_QUEUE_POLL_SECONDS)
                await instance.answered(ports, settings.drain_quiet_seconds, plane.answers)
        by_itself = await instance.stop(
            stop_seconds=settings.stop_timeout_seconds,
            drain_seconds=max(drain_seconds - age.seconds, 0),
            ports=ports,
        )
        await self._clear(instance)
        return by_itself

    async def _clear(self, instance: WorkerProcess) -> None:
        """Forget a worker that ended, and make sure that nothing of it is left."""
        await instance.kill()
        await self._end_sharers(instance)
        await in_thread(self.log.close, instance.name)
        if self.instance is instance:
            self.instance = None
            self.apply(SlotEvent.CLEARED)
        log.info("worker_exited", **instance.facts, pid=instance.pid, how=instance.exit_text)
        self._context.registry.gone(instance)

    async def _end_sharers(self, instance: WorkerProcess) -> None:
        """End what left the worker's family and may still accept from a socket of this slot.

        Only while no other worker, not even one that is being launched, has the slot's sockets. The
        other slot's worker carries some of them as its spare, so those prove nothing.
        """
        drains = [each for each in self._context.drains if each.instance.slot is self.name]
        if self.instance is not instance or any(each.instance is not instance for each in drains):
            return
        plane = self._context.plane
        spare = plane.inherited(self.name.other).spare
        own = [sock for sock in plane.inherited(self.name).named.values() if sock not in spare]
        if own:
            await end_sharers({inode_of(sock) for sock in own})


async def until_hung(
    instance: WorkerProcess, port: int, prober: HttpProber, settings: Settings
) -> str | None:
    """Probe it while it lives; return why it counts as hung, or None once it ends.

    Any HTTP response in time shows that it does not hang: a restart brings no database back. With
    `LIVENESS_PATH` the application itself says whether it is to be restarted. Only failures in a
    row count, and an error of the prober itself is no evidence.
    """
    failures, own_path = 0, settings.liveness_path
    while True:
        with anyio.move_on_after(settings.liveness_interval_seconds):
            await instance.exited.wait()
        if not instance.alive or instance.expected_to_exit:
            return None
        probed = await prober.probe_response(
            port,
            own_path or settings.health_path,
            timeout_seconds=settings.health_timeout_seconds,
            expect_instance=instance.name,
        )
        result = probed.result
        if result.verdict is Verdict.INCONCLUSIVE:
            continue
        lives = result.verdict is Verdict.PASS if own_path else probed.answered
        instance.answers = lives
        failures = 0 if lives else failures + 1
        if failures:
            log.warning("liveness_failed", **instance.facts, times=failures, why=result.message)
        if failures >= settings.liveness_failures:
            return f"it failed {failures} liveness probes in a row: {result.message}"
