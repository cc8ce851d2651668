"""One life of a daemon in the simulated world: from its start to its stop, or its death.

A daemon that is killed is dropped where it stands: its loop is not run again, its database
connection is closed without a commit, and no cleanup of its tasks reaches the world.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio

from atlas_supervisor.api.ports import Control
from atlas_supervisor.config import Settings
from atlas_supervisor.daemon import Daemon
from atlas_supervisor.errors import StartRefusedError
from tests.simulation.clock import HaltedError, KilledError, VirtualLoop
from tests.simulation.seams import Process, Processes, Reports, SimulatedPlane
from tests.simulation.world import World


class Life:
    """A daemon, as the world and its operator see it."""

    def __init__(self, world: World, settings: Settings) -> None:
        self.world = world
        self.loop = VirtualLoop(world.timeline)
        self.loop.set_exception_handler(self._task_failed)
        self.plane = SimulatedPlane(self)
        self.procfs = Processes(self)
        self.processes: dict[int, list[Process]] = {}
        self.reports: dict[str, Reports] = {}
        self.connections: list[sqlite3.Connection] = []
        self.control: Control | None = None
        self.on_control: Callable[[], object] = bool
        self.dead = self.up = self.stopping_began = False
        self.canaries_fail = False
        self.doomed_at: tuple[int, bool] | None = None
        """After how many effects it is killed, and whether that one still happens."""
        self._settings = settings
        self._stopping: anyio.Event | None = None

    # Its course.

    def run(self) -> str:
        """Run it to its end, and return how it ended."""
        self.world.daemon = self
        try:
            self.loop.run_until_complete(self._main())
            end = "stopped"
        except KilledError:
            end = "killed"
        except HaltedError as error:
            end = "halted"
            self.world.breach(str(error))
        except BaseException as error:  # noqa: BLE001  # every failure is a finding
            end = self._failure(error)
        self._die()
        return end

    async def _main(self) -> None:
        self._stopping = anyio.Event()
        if self.stopping_began:
            self._stopping.set()
        await Daemon(self._settings).run(self._stopping)

    def _failure(self, error: BaseException) -> str:
        leaves = list(_leaves(error))
        if all(isinstance(each, StartRefusedError) for each in leaves):
            self.world.tell(f"the start is refused: {leaves[0]}")
            return "refused"
        self.world.breach(f"the daemon failed: {leaves[0]!r}")
        self.world.failure = self.world.failure or error
        return "failed"

    def _die(self) -> None:
        self.dead, self.control, self.up = True, None, False
        for connection in self.connections:
            with suppress(sqlite3.Error):
                connection.close()
        self.world.daemon = None  # nothing that it says from now on is heard
        self.loop.discard()
        kernel = self.world.kernel
        kernel.relayed.clear()
        if not self.world.living:
            kernel.group = None
        self.world.look()

    def stop(self) -> None:
        """Ask it to stop."""
        self.stopping_began = True
        if self._stopping is not None:
            self._stopping.set()

    def serve(self, control: Control) -> None:
        """Note that its API can be asked."""
        self.control, self.up = control, True
        self.on_control()

    def _task_failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.world.breach(f"a task failed: {context.get('exception') or context.get('message')!r}")
        self.world.failure = self.world.failure or context.get("exception")

    # What the seams ask.

    def latency(self) -> float:
        """Return how long a thread or a disk takes."""
        draw = self.world.random
        return draw.random() * (0.3 if draw.random() < 0.01 else 0.004)

    async def live(self) -> None:
        """Go on, unless the daemon was killed: then never."""
        if self.dead or self.loop.killed:
            await asyncio.get_running_loop().create_future()

    def effect(self, what: str) -> bool:
        """Note that the daemon is about to do something; return whether that is refused.

        It may be killed just then: before it, which the seam sees at `loop.killed`, or after it.
        """
        if self.doomed_at is not None:
            left, happens = self.doomed_at
            self.doomed_at = (left - 1, happens) if left > 1 else None
            if self.doomed_at is None:
                self.world.tell(f"kill -9 {'after' if happens else 'before'}: {what}")
                if happens:
                    self.loop.kill_after(1)
                else:
                    self.loop.killed = True
        refusable = what in {"steer", "launch"} and self.up and not self.world.calm
        return refusable and self.world.random.random() < 0.01

    async def disk(self, target: str, work: Callable[..., Any]) -> Any:
        """Commit what was written to the database."""
        await asyncio.sleep(self.latency())
        await self.live()
        self.effect(f"write {target}")
        await self.live()
        self.refuse_write(target)
        done = work()
        await asyncio.sleep(self.latency())
        await self.live()
        return done

    def refuse_write(self, target: str) -> None:
        """Raise what the disk answers, if it fails."""
        if fault := self.world.fails(target):
            raise fault.sqlite_error()

    def wrote(self, what: str, content: str) -> None:
        """Note what the state file holds by now."""
        if what == "state file":
            self.world.on_write(json.loads(content))

    # What the world reports.

    def notified(self, instance: str, what: str) -> None:
        if instance in self.reports:
            self.reports[instance].hear(what)

    def ended(self, pid: int) -> None:
        for each in self.processes.get(pid, ()):
            each.end()


def _leaves(error: BaseException) -> Any:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
