"""One worker process, from its launch to its last descendant."""

from __future__ import annotations

import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import anyio
import structlog
from anyio.abc import Process

from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.system import procfs
from atlas_supervisor.system.clock import Stopwatch, now
from atlas_supervisor.system.sockdiag import TcpConnection
from atlas_supervisor.traffic import InheritedSockets
from atlas_supervisor.workers.notify import NotifySocket
from atlas_worker.contract import ENV_INSTANCE, ENV_NOTIFY_SOCKET

log = structlog.get_logger(__name__)

LAUNCHER = Path(__file__).with_name("launcher.py")
FIRST_DESCRIPTOR = 3

_OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""The limit that the daemon was started with; workers get it, whatever the daemon's own is now."""

_POLL_SECONDS = 0.1
_KILL_SECONDS = 5.0  # a process that the kernel itself holds on to can't be waited for


def new_instance_id(slot: SlotName) -> str:
    """Return a name that no other process has or will have."""
    return f"{slot}-{secrets.token_hex(8)}"


class WorkerProcess:
    """A running worker. Made by `launch`; ends with `stop` or by itself."""

    def __init__(
        self, *, name: str, slot: SlotName, release: Release, process: Process, notify: NotifySocket
    ) -> None:
        self.name = name
        self.slot = slot
        self.release = release
        self.pid = process.pid
        self.started_ts: datetime = now()
        self.age = Stopwatch()
        self.exited = anyio.Event()
        self.said_ready = notify.ready
        self.said = notify
        """What it has told about itself."""
        self.connected: int | None = None
        """How many connections it had when that was last looked at."""
        self.expected_to_exit = False
        """Set before it is told to stop, and once its end was told: no further news of it."""
        self._process = process
        self._told = False

    @property
    def alive(self) -> bool:
        """Whether the worker's first process is there."""
        return not self.exited.is_set()

    @property
    def facts(self) -> dict[str, str]:
        """What every log line about it says; never more, for it outlives the deploy it is of."""
        return {"slot": self.slot, "instance": self.name, "release": self.release.label}

    @property
    def kit(self) -> bool:
        """Whether it said that it gives up its clients when it is no longer active."""
        return self.said.kit

    @property
    def exit_status(self) -> int | None:
        """Its exit status, negative for the signal that ended it; None while it lives."""
        return self._process.returncode

    @property
    def exit_text(self) -> str:
        """How it ended, in words."""
        code = self._process.returncode
        if code is None:
            return "is still running"
        if code < 0:
            with suppress(ValueError):
                return f"was ended by {signal.Signals(-code).name}"
            return f"was ended by signal {-code}"
        return f"exited with status {code}"

    async def wait(self) -> None:
        """Wait for the worker's end, and note it: whoever waits first does."""
        try:
            await self._process.wait()
        finally:
            if self._process.returncode is not None:
                self.exited.set()
                self.said.close()

    def terminate(self) -> None:
        """Ask it to drain and exit; one that was stopped is let go on, to hear it.

        It is asked once, because a second SIGTERM says something else: see `hurry`.
        """
        self.expected_to_exit = True
        if self.alive:
            if not self._told:
                self._told = True
                self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)

    def hurry(self) -> bool:
        """Tell one that drains that its place is needed; return whether it was told.

        It concerns streams alone. One that has none left may be at its own tidying up by now,
        where nobody listens to a second SIGTERM and the first would end it.
        """
        left = self.said.left
        if not (self.alive and self._told and left and (left.websockets or left.event_streams)):
            return False
        self._signal(signal.SIGTERM)
        return True

    def _signal(self, number: int) -> None:
        """Signal it if it is there.

        Not by way of the process object: that looks whether the process has ended, which takes
        its exit status from whoever waits for it, who would then make one up.
        """
        procfs.send_signal([self.pid], number)

    async def accepts_no_more(self, ports: Collection[int]) -> bool:
        """Ask it to drain, and return whether it said that it takes no more connections.

        It may end, or have no connection left, without having said so.
        """
        self.terminate()
        said = self.said.not_accepting
        while self.alive and not said.is_set():
            if not await anyio.to_thread.run_sync(self._connected, ports):
                break
            with anyio.move_on_after(_POLL_SECONDS):
                await said.wait()
        return self.alive and said.is_set()

    async def stop(
        self,
        *,
        stop_seconds: float,
        drain_seconds: float = 0.0,
        ports: Collection[int] = (),
        look_seconds: float = _POLL_SECONDS,
    ) -> bool:
        """Ask it to drain and exit, and kill it if it does not; return whether it went by itself.

        It has `drain_seconds` for its connections on `ports` to be done, and from then on
        `stop_seconds` to exit. Nothing of it is left afterwards, whatever it started itself.
        Every `look_seconds` its connections are looked for, which reads all of `/proc`.
        """
        self.terminate()
        if drain_seconds:
            with anyio.move_on_after(drain_seconds):
                await self._connections_done(ports, look_seconds)
        with anyio.move_on_after(stop_seconds):
            await self.wait()
        by_itself = not self.alive
        await self.kill()
        return by_itself

    async def _connections_done(self, ports: Collection[int], look_seconds: float) -> None:
        """Wait until it has exited or holds no connection any more."""
        while self.alive and await anyio.to_thread.run_sync(self._connected, ports):
            with anyio.move_on_after(look_seconds):
                await self.wait()

    async def answers_given(self, ports: Collection[int]) -> None:
        """Wait until it has exited or owes no answer on any connection."""
        while self.alive and await anyio.to_thread.run_sync(self._busy, ports):
            with anyio.move_on_after(_POLL_SECONDS):
                await self.wait()

    def _connected(self, ports: Collection[int]) -> bool:
        found = self._look(ports)
        return found is None or bool(found)

    def _busy(self, ports: Collection[int]) -> bool:
        found = self._look(ports)
        return found is None or any(each.busy for each in found)

    def _look(self, ports: Collection[int]) -> list[TcpConnection] | None:
        try:
            found = self.connections(ports)
        except OSError as error:  # whoever can't look must not cut off
            log.warning("connections_unknown", **self.facts, pid=self.pid, why=str(error))
            return None
        self.connected = len(found)
        return found

    def connections(self, ports: Collection[int]) -> list[TcpConnection]:
        """Return the connections on these ports that the worker and its descendants hold.

        Raises OSError.
        """
        return procfs.connections_of(self.family(), ports)

    def family(self) -> list[int]:
        """Return the worker's living processes; it reads all of `/proc`, so use a thread."""
        environment = f"{ENV_INSTANCE}={self.name}".encode()
        return procfs.family_of(environment=environment, sessions={self.pid})

    async def kill(self) -> None:
        """Kill the worker and whatever is left of what it started."""
        self.expected_to_exit = True
        with anyio.move_on_after(_KILL_SECONDS) as limit:
            if self.alive:
                self._signal(signal.SIGKILL)
                await self.wait()
            # Descendants may be starting more while they are looked for.
            while left := await anyio.to_thread.run_sync(self.family):
                procfs.send_signal(left, signal.SIGKILL)
                await anyio.sleep(0.01)
        if limit.cancelled_caught:
            log.critical("processes_left", **self.facts, pids=self.family())


def launcher_command(descriptors: list[int], announced: int, command: list[str]) -> list[str]:
    """Return what to execute so that the process becomes `command` with these descriptors.

    They land at 3 and onwards; the first `announced` of them are for socket activation.
    """
    return [
        sys.executable,
        *("-I", "-S", str(LAUNCHER)),
        ",".join(map(str, descriptors)) or "-",
        str(announced),
        str(_OPEN_FILES),
        *command,
    ]


async def launch(
    *,
    slot: SlotName,
    release: Release,
    name: str,
    command: list[str],
    environment: dict[str, str],
    handed: InheritedSockets,
    announce: bool,
    output: int,
) -> WorkerProcess:
    """Start a worker process and return it, not yet ready. Raises OSError.

    `output` is the descriptor that it prints to; it stays the caller's to close.
    """
    notify = NotifySocket(name)
    descriptors = [sock.fileno() for sock in (*handed.named.values(), *handed.spare)]
    names = {"LISTEN_FDNAMES": ":".join(handed.named)} if announce and handed.named else {}
    try:
        with anyio.CancelScope(shield=True):  # a process that nobody knows of would be left over
            process = await anyio.open_process(
                launcher_command(descriptors, len(handed.named) if announce else 0, command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=release.path,
                env={**environment, ENV_NOTIFY_SOCKET: notify.address, **names},
                start_new_session=True,
                pass_fds=descriptors,
            )
    except BaseException:
        notify.close()
        raise
    return WorkerProcess(name=name, slot=slot, release=release, process=process, notify=notify)
