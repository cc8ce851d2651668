"""A slot: the place of one instance, and the care for it.

It launches, waits until the instance is ready, watches it live, tells when it went down, and
stops it. What follows when one went down (start it again, give up a deploy, rescue connections)
is decided by whoever listens to `on_down`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import structlog
from anyio.abc import TaskGroup
from structlog.contextvars import bind_contextvars, bound_contextvars, clear_contextvars

from atlas_supervisor.config import Settings
from atlas_supervisor.errors import SettingsError
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import Role, SlotName, SlotState, SlotView
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.system.procfs import describe_listeners
from atlas_supervisor.traffic import Plane
from atlas_supervisor.traffic.listeners import strangers
from atlas_supervisor.workers.drain import Drain, Drains
from atlas_supervisor.workers.environment import worker_environment
from atlas_supervisor.workers.output import WorkerLog
from atlas_supervisor.workers.process import (
    FIRST_DESCRIPTOR,
    WorkerProcess,
    launch,
    new_instance_id,
)
from atlas_supervisor.workers.readiness import LaunchError, until_ready

log = structlog.get_logger(__name__)

SETTLE_SECONDS = 0.25
"""How long a queue must stay empty: a handshake that began before a flip still ends in it."""

HURRY_SECONDS = 1.0
"""How much longer a drain waits for a foreign worker's clients once the next deploy has begun."""

_POLL_SECONDS = 0.02
_LINGERING_LOOK_SECONDS = 1.0  # one with the kit ends by itself; this is for who looks at it


class InstanceRegistry(Protocol):
    """Remembers processes, so that a later daemon finds what this one may leave behind."""

    async def launched(self, instance: WorkerProcess) -> None:
        """Note that the process is there."""

    async def gone(self, instance: WorkerProcess) -> None:
        """Note that nothing of it is left."""


@dataclass(frozen=True)
class SlotContext:
    """What both slots share."""

    settings: Settings
    plane: Plane
    prober: HttpProber
    ledger: InstanceRegistry
    tasks: TaskGroup
    on_down: Callable[[Slot, WorkerProcess, str], Awaitable[None]]
    """Told when an instance ended or hangs without having been asked to, and the cause."""
    departures: Drains


class Slot:
    """One of the two slots."""

    def __init__(self, name: SlotName, port: int, around: SlotContext) -> None:
        self.name = name
        self.port = port
        self.state = SlotState.EMPTY
        self.restarts = 0
        self.last_exit: str | None = None
        """How an instance last went down, or did not come up, without having been asked to."""
        self.instance: WorkerProcess | None = None
        self.log = WorkerLog(around.settings.state_dir / "logs" / f"worker-{name}.log", name)
        self.departures = around.departures
        """All instances that drain, those of the other slot included."""
        self._around = around
        self._drain_limit: anyio.CancelScope | None = None

    @property
    def alive(self) -> bool:
        """Whether an instance is there that can serve."""
        return self.instance is not None and self.instance.alive

    @property
    def serving(self) -> bool:
        """Whether an instance is there that has become ready."""
        return self.alive and self.state in {SlotState.RUNNING, SlotState.WARM}

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
            started_ts=instance.started_ts if instance else None,
            restarts=self.restarts,
            last_exit=self.last_exit,
        )

    async def start(self, release: Release) -> dict[str, Any]:
        """Launch an instance, and return how it went once it is ready. Raises LaunchError.

        After an error, or when cancelled, nothing of the instance is left.
        """
        name = new_instance_id(self.name)
        with bound_contextvars(slot=self.name, instance=name, release=release.label):
            return await self._start(release, name)

    async def _start(self, release: Release, name: str) -> dict[str, Any]:
        self.state = SlotState.STARTING
        # From now on the queue is the new worker's; else a probe of it would reach the other slot.
        self._around.plane.occupy(self.name)
        try:
            instance = await self._launch(release, name)
            how = await until_ready(
                instance, self.port, self.log, self._around.prober, self._around.settings
            )
            self._around.plane.refresh(self.name)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self.stop()
            if isinstance(error, OSError):  # no descriptors left, a full disk, a folder gone
                self.last_exit = f"the worker could not be started: {error}"
                raise LaunchError(self.last_exit, instance=name) from error
            if isinstance(error, LaunchError):
                self.last_exit = str(error)
                error.detail.setdefault("instance", name)
            raise
        self.state = SlotState.RUNNING
        self._around.tasks.start_soon(self._watch_life, instance)
        boot_ms = instance.age.milliseconds
        log.info("worker_ready", pid=instance.pid, boot_ms=boot_ms)
        return {
            "message": f"pid {instance.pid} was ready after {boot_ms:.0f} ms: {how}",
            "pid": instance.pid,
            "instance": instance.name,
            "kit": instance.kit,
        }

    async def _launch(self, release: Release, name: str) -> WorkerProcess:
        settings = self._around.settings
        await anyio.to_thread.run_sync(self._refuse_taken_port)
        command = settings.worker_argv(slot=self.name, port=self.port, fd=FIRST_DESCRIPTOR)
        try:
            environment = worker_environment(
                settings, slot=self.name, port=self.port, instance=name, release=release
            )
        except SettingsError as error:  # the file of extra variables was changed since the start
            raise LaunchError(f"the worker's environment can't be had: {error}") from error
        output = await anyio.to_thread.run_sync(self.log.open)
        try:
            instance = await launch(
                slot=self.name,
                release=release,
                name=name,
                command=command,
                environment=environment,
                handed=self._around.plane.handed(self.name),
                announce=settings.hand_over is SocketPassing.ACTIVATION,
                output=output,
            )
        finally:
            os.close(output)
        self.instance = instance
        self._around.tasks.start_soon(self._watch_exit, instance)
        log.info("worker_launched", pid=instance.pid, version=release.version)
        await self._around.ledger.launched(instance)
        return instance

    def _refuse_taken_port(self) -> None:
        """Raise LaunchError if a stranger listens where the worker is going to bind by itself."""
        if self._around.settings.hand_over is not SocketPassing.PORT:
            return
        if found := strangers("127.0.0.1", self.port):
            raise LaunchError(f"port {self.port} is taken: {describe_listeners(found)}")

    async def _watch_exit(self, instance: WorkerProcess) -> None:
        clear_contextvars()  # an instance outlives the deploy that its log lines would name
        await instance.wait()
        if self.state is not SlotState.STARTING:
            await self._tell_down(instance, f"it {instance.exit_text}")

    async def _tell_down(self, instance: WorkerProcess, cause: str) -> None:
        """Tell it once: an instance that hangs may end before anybody has come to stop it."""
        if not instance.expected_to_exit:
            instance.expected_to_exit = True
            self.last_exit = cause
            await self._around.on_down(self, instance, cause)

    async def _watch_life(self, instance: WorkerProcess) -> None:
        """Probe the running instance, and tell when it has hung for long enough."""
        clear_contextvars()  # as above
        settings = self._around.settings
        failures = 0
        while True:
            with anyio.move_on_after(settings.liveness_interval_seconds):
                await instance.exited.wait()
            if not instance.alive or instance.expected_to_exit:
                return
            result = await self._around.prober.probe(
                self.port,
                settings.health_path,
                timeout_seconds=settings.health_timeout_seconds,
                expect_instance=instance.name,
            )
            if result.verdict is Verdict.INCONCLUSIVE:
                continue
            failures = failures + 1 if result.verdict is Verdict.FAIL else 0
            if failures:
                log.warning("liveness_failed", **instance.facts, times=failures, why=result.message)
            if failures >= settings.liveness_failures:
                cause = f"it failed {failures} liveness probes in a row: {result.message}"
                await self._tell_down(instance, cause)
                return

    async def drain(self, freed: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Let the instance finish what it has, then end it; return how that went.

        To be called once nothing new is steered here. It goes on accepting until its queue has
        been empty for a while, and has `DRAIN_TIMEOUT_SECONDS` in all for its connections. A
        worker with the kit knows when it is done; for any other, whose SIGTERM may cut answers
        off, we look ourselves and wait until it owes none.

        `freed` is called once, as soon as another instance may be started here: at the end, or
        when this one has said that it accepts nothing more and may linger.
        """
        self.state = SlotState.DRAINING
        instance, settings = self.instance, self._around.settings
        if instance is None:
            await self.stop()
            freed()
            return {"message": f"{self.name} was empty", "by_itself": True}
        ports = self._around.plane.ports(self.name)
        departure = Drain(instance, ports, settings.drain_timeout_seconds)
        self.departures.begin(departure)
        try:
            await self._settle(departure)
            if await self._can_linger(departure):
                return await self._linger(departure, freed)
            departure.stays = True
            departure.by_itself = await self.stop(drain_seconds=departure.seconds_left)
        finally:
            if not departure.leaves_alone:
                self.departures.end(departure)
        freed()
        return departure.story()

    async def _settle(self, departure: Drain) -> None:
        """Wait until its queue is empty, and a foreign one owes no answer."""
        with anyio.move_on_after(departure.seconds_left) as limit:
            self._drain_limit = limit
            await self._queue_settled()
            if not departure.instance.kit:
                await departure.instance.answers_given(departure.ports)
        self._drain_limit = None

    async def _can_linger(self, departure: Drain) -> bool:
        """Ask it to drain, and tell whether it leaves the sockets of the slot alone from now on.

        One that binds its port by itself can't be told from the next one on it.
        """
        if not departure.instance.kit or self._around.settings.hand_over is SocketPassing.PORT:
            return False
        with anyio.move_on_after(departure.seconds_left):
            return await departure.instance.accepts_no_more(departure.ports)
        return False

    async def _linger(self, departure: Drain, freed: Callable[[], None]) -> dict[str, Any]:
        """Leave the slot as soon as one more may linger; return once the instance is gone.

        It ends in a task of the daemon's: should our caller be cancelled, it still has its time.
        """
        departure.leaves_alone = True
        self._around.tasks.start_soon(self._see_off, departure)
        # It may have to wait for its place to linger: nobody is to wait in its queues for that.
        self._around.plane.vacate(self.name, self.name.other)
        if await self.departures.linger(departure) and self.instance is departure.instance:
            self.instance = None
            self.state = SlotState.EMPTY
            log.info("worker_lingers", **departure.instance.facts, pid=departure.instance.pid)
            freed()
        else:
            await departure.gone.wait()
            freed()
        await departure.gone.wait()
        return departure.story()

    async def _see_off(self, departure: Drain) -> None:
        """End an instance that accepts nothing more, wherever its slot is by then."""
        clear_contextvars()  # as above
        instance = departure.instance
        bind_contextvars(**instance.facts)
        try:
            departure.by_itself = await instance.stop(
                stop_seconds=self._around.settings.stop_timeout_seconds,
                drain_seconds=departure.seconds_left,
                ports=departure.ports,
                look_seconds=_LINGERING_LOOK_SECONDS,
            )
            await self.clear(instance)
        finally:
            self.departures.end(departure)

    def hurry(self) -> None:
        """Bound a drain that waits for foreign clients, or for a place: the slot is needed."""
        self.departures.hurry()
        if self._drain_limit is not None:
            soon = anyio.current_time() + HURRY_SECONDS
            self._drain_limit.deadline = min(self._drain_limit.deadline, soon)

    async def _queue_settled(self) -> None:
        quiet = Stopwatch()
        while self.alive and quiet.seconds < SETTLE_SECONDS:
            if self._around.plane.queued(self.name):
                quiet = Stopwatch()
            await anyio.sleep(_POLL_SECONDS)

    async def stop(self, *, drain_seconds: float = 0.0) -> bool:
        """End the instance, with all that it started; return whether it went by itself."""
        instance = self.instance
        if instance is None:
            self.state = SlotState.EMPTY
            return True
        if self.state is not SlotState.STARTING:
            self.state = SlotState.DRAINING
        by_itself = await instance.stop(
            stop_seconds=self._around.settings.stop_timeout_seconds,
            drain_seconds=drain_seconds,
            ports=self._around.plane.ports(self.name),
        )
        await self.clear(instance)
        return by_itself

    async def clear(self, instance: WorkerProcess) -> None:
        """Forget an instance that ended, and make sure that nothing of it is left."""
        await instance.kill()
        if self.instance is instance:
            self.instance = None
            self.state = SlotState.EMPTY
        log.info("worker_gone", **instance.facts, pid=instance.pid, how=instance.exit_text)
        await self._around.ledger.gone(instance)
