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
from typing import Any, cast

from atlas_supervisor.api.ports import Control
from atlas_supervisor.config import Settings
from atlas_supervisor.daemon import Daemon
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.reload import Requests
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.system.program import Program
from atlas_supervisor.traffic import Plane
from tests.simulation.clock import HaltedError, KilledError, VirtualLoop
from tests.simulation.fakes import Process, Processes, Reports
from tests.simulation.plane import SimulatedPlane
from tests.simulation.world import World


class Ambush:
    """What goes wrong at one effect of the daemon's: the next one of its kind, or a later one."""

    def __init__(self, world: World, fail_disk: Callable[[], None]) -> None:
        draw = world.random
        self._world = world
        self._kind = draw.choice(("steer", "write state file", "write database", "launch", ""))
        self._left = draw.randint(1, 3 if self._kind else 25)
        self._what = draw.choice(("kill", "kill", "kill", "worker", "disk"))
        self._happens = draw.random() < 0.5
        """Whether the effect itself still happens, if the daemon is killed."""
        self._fail_disk = fail_disk

    def is_due(self, what: str) -> bool:
        """Return whether it is this effect's turn."""
        if self._kind in what:
            self._left -= 1
        return self._left <= 0

    def happen(self, life: Life, what: str) -> None:
        """Let it go wrong."""
        world = self._world
        if self._what == "disk":
            self._fail_disk()
        elif self._what == "worker" and world.living:
            world.exit(world.random.choice(world.living), -9)
        elif self._happens:
            world.tell(f"kill -9 after: {what}")
            life.loop.kill_after(1)
        else:
            world.tell(f"kill -9 before: {what}")
            life.loop.killed = True


class _Program:
    """The process of the daemon, as far as a reload goes."""

    def __init__(self, life: Life, *, reloaded: bool) -> None:
        self.reloaded = reloaded
        self._life = life

    def execute(self, _descriptors: object) -> None:
        """End this program; the next one gets the sockets, which nothing closes meanwhile."""
        self._life.world.tell("the daemon executes its program anew")
        self._life.world.kernel.is_passed = True
        self._life.loop.killed = True


class Life:
    """A daemon, as the world and its operator see it."""

    def __init__(self, world: World, settings: Settings) -> None:
        self.world = world
        self.loop = VirtualLoop(world.timeline)
        self.loop.set_exception_handler(self._task_failed)
        self.plane: Plane = SimulatedPlane(self)
        self.procfs = Processes(self)
        self.processes: dict[int, list[Process]] = {}
        self.reports: dict[str, Reports] = {}
        self.connections: list[sqlite3.Connection] = []
        self.control: Control | None = None
        self.on_control: Callable[[], object] = bool
        self.dead = self.up = self.stopping_began = False
        self.canaries_fail = self.requests_fail = False
        self.ambush: Ambush | None = None
        self.settings = settings
        self._program = _Program(self, reloaded=world.kernel.is_passed)
        self._requests: Requests | None = None

    # Its course.

    def run(self) -> str:
        """Run it to its end, and return how it ended."""
        self.world.daemon = self
        try:
            self.loop.run_until_complete(self._main())
            end = "stopped"
        except KilledError:
            end = "reloaded" if self.world.kernel.is_passed else "killed"
        except HaltedError as error:
            end = "halted"
            self.world.breach(str(error))
        except BaseException as error:  # noqa: BLE001  # every failure is a finding
            end = self._failure(error)
        self._die()
        return end

    async def _main(self) -> None:
        self._requests = Requests()
        if self.stopping_began:
            self._requests.stop.set()
        passed, program = PassedSockets(), cast("Program", self._program)
        await Daemon(self.settings, passed, program, lock=0).run(self._requests)

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
        if not kernel.outlives:
            kernel.held = kernel.has_parked = False
        if not self.world.living and not kernel.outlives:
            kernel.group = None
        self.world.look()

    def stop(self) -> None:
        """Ask it to stop."""
        self.stopping_began = True
        if self._requests is not None:
            self._requests.stop.set()

    def serve(self, control: Control) -> None:
        """Note that its API can be asked."""
        again = self.up  # a reload was given up
        self.control, self.up = control, True
        if not again:
            self.on_control()

    def _task_failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.world.breach(f"a task failed: {context.get('exception') or context.get('message')!r}")
        self.world.failure = self.world.failure or context.get("exception")

    @property
    def is_killed(self) -> bool:
        return self.dead or self.loop.killed

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

        Just then something may go wrong; if it is killed before it, the seam sees `loop.killed`.
        """
        ambush = self.ambush
        if ambush is not None and ambush.is_due(what):
            self.ambush = None
            ambush.happen(self, what)
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
