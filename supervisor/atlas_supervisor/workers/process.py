"""One worker process, from its launch to its last descendant, and what it reports about itself.

A worker reports by the sd_notify protocol. Each has an abstract socket with an unguessable name:
there is no file to clean up. Only messages that the kernel attributes to one of its own processes
count: the name is in /proc/net/unix, so any process of our user could report for it. It is not
trusted either: what can't be parsed is no report, and a flood is read at a bounded rate.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import anyio
import structlog
from anyio.abc import Process
from pydantic import ValidationError

from atlas_supervisor.model.drain import DrainCounts
from atlas_supervisor.model.life import Life
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import InstanceUsage, SlotName
from atlas_supervisor.system import procfs, sockdiag
from atlas_supervisor.system.account import Account
from atlas_supervisor.system.clock import Stopwatch, now
from atlas_supervisor.system.descriptors import with_spares
from atlas_supervisor.system.failpoints import seam
from atlas_supervisor.system.pidfd import ForeignProcess
from atlas_supervisor.system.sockdiag import TcpConnection, TcpSocket
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.traffic import Answers
from atlas_worker.contract import (
    ENV_INSTANCE,
    NOTIFY_CUT,
    NOTIFY_KIT,
    NOTIFY_LEFT,
    NOTIFY_NOT_ACCEPTING,
    NOTIFY_READY,
)

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.1
_CLOCK_TICK = 0.01  # CPU seconds come in these
_KILL_SECONDS = 5.0  # a process that the kernel itself holds on to can't be waited for

_MESSAGE_LIMIT = 4096
_MESSAGES_PER_WAKE = 16  # a flood of messages must not delay the daemon
_MESSAGES_PER_PERIOD, _PERIOD_SECONDS = 64, 0.5  # further ones wait in the kernel's short queue
_CREDENTIALS = struct.Struct("=iII")


def ignore() -> None:
    """Record nothing."""


class WorkerProcess:
    """A running worker. Made by `launch`; ends with `stop` or by itself."""

    def __init__(
        self,
        *,
        name: str,
        slot: SlotName,
        release: Release,
        process: Process | ForeignProcess,
        notify: NotifySocket,
        stop_signal: signal.Signals = signal.SIGTERM,
        tag: int = 0,
        life: Life | None = None,
    ) -> None:
        self.name = name
        self.slot = slot
        self.release = release
        self.pid = process.pid
        self.life = life or Life(release=release, started_ts=now())
        # The wall clock may have been set since another daemon recorded its start.
        self.age = Stopwatch(procfs.age_seconds(self.pid) if life else 0.0)
        self.on_change: Callable[[], None] = ignore
        """Called when its life has changed, to record it."""
        self.exited = anyio.Event()
        self.reported = notify
        """Its own reports."""
        self.connected: int | None = None
        """How many connections it had when that was last looked at."""
        self.answers = True
        """Whether it passed its last liveness probe."""
        self.not_recycled: str | None = None
        """Why it could not be replaced when it was beyond a limit, in words."""
        self.took_traffic: str | None = None
        """How it took public traffic that belongs to another one, in words."""
        self.expected_to_exit = False
        """Set before it is asked to end, and once it was reported as down: its exit is no news."""
        self._process = process
        self._stop_signal = stop_signal
        self._tag = tag
        notify.read_from(self.pid)
        notify.on_change = lambda: self.note(not_accepting=notify.not_accepting.is_set())
        self._usage: InstanceUsage | None = None
        self._measured = (0.0, 0.0)
        """CPU seconds, and age at that time."""

    @property
    def alive(self) -> bool:
        """Whether the worker's first process is there."""
        return not self.exited.is_set()

    def note(self, **changes: Any) -> None:
        """Note a change in its life."""
        self.life = self.life.model_copy(update=changes)
        self.on_change()

    @property
    def facts(self) -> dict[str, str]:
        """The fields of every log line about it. None of a deploy: it outlives the one it is of."""
        return {"slot": self.slot, "instance": self.name, "release": self.release.label}

    @property
    def kit(self) -> bool:
        """Whether it runs the worker kit: it closes its connections once it is not active."""
        return self.reported.kit

    @property
    def exit_status(self) -> int | None:
        """Its exit status, negative for the signal that ended it.

        None while it lives, and if it is unknown: the kernel reports it to the parent.
        """
        return self._process.returncode

    @property
    def exit_text(self) -> str:
        """How it ended, in words."""
        code = self._process.returncode
        if code is None:
            return "is still running" if self.alive else "ended, exit status unknown"
        if code < 0:
            with suppress(ValueError):
                return f"was ended by {signal.Signals(-code).name}"
            return f"was ended by signal {-code}"
        return f"exited with status {code}"

    @property
    def usage(self) -> InstanceUsage:
        """What it uses, as measured last."""
        if self._usage is None:
            self.measure()
        return self._usage if self._usage is not None and self.alive else InstanceUsage()

    def measure(self) -> None:
        """Measure its memory, and its CPU since the last time, with all its descendants."""
        found = procfs.usage_of_tree(self.pid) if self.alive else None
        if found is None:
            self._usage = InstanceUsage()
            return
        (memory, cpu), (cpu_before, age_before) = found, self._measured
        age = self.age.seconds
        # A descendant that was not waited for takes its CPU seconds with it.
        percent = 100 * max(cpu - cpu_before, 0) / max(age - age_before, _CLOCK_TICK)
        self._measured = cpu, age
        self._usage = InstanceUsage(
            memory_mb=round(memory / 2**20, 1), cpu_percent=round(percent, 1)
        )

    async def wait(self) -> None:
        """Wait for the worker's end, and note it. May be called by several tasks."""
        ended = False
        try:
            await self._process.wait()
            ended = True
        finally:
            if ended or self._process.returncode is not None:
                self.exited.set()
                self.reported.close()

    @seam("terminate")
    def terminate(self) -> None:
        """Ask it to drain and exit; a stopped process is continued, so that it gets the signal.

        It is asked once, because a second SIGTERM has another meaning: see `hurry`. The kit drains
        on SIGTERM alone.
        """
        self.expected_to_exit = True
        if self.alive:
            if not self.life.asked_to_end:
                self.note(asked_to_end=True)
                self._signal(signal.SIGTERM if self.kit else self._stop_signal)
            self._signal(signal.SIGCONT)

    def hurry(self) -> bool:
        """Ask a draining worker to close its streams now; return whether it was asked.

        One that has no streams left may have removed its handler by now: there the second
        SIGTERM would end it before its work is done.
        """
        left = self.reported.left
        streams = left and (left.websockets or left.event_streams)
        if not (self.alive and self.life.asked_to_end and streams):
            return False
        self._signal(signal.SIGTERM)
        return True

    def _signal(self, number: int) -> None:
        """Signal it if it is there.

        A child is not signalled through its process object: that polls for the exit status and
        takes it from the task that waits for it, which would then report a made-up one.
        """
        if isinstance(self._process, ForeignProcess):
            self._process.send_signal(number)
        else:
            procfs.send_signal([self.pid], number)

    async def stops_accepting(self, ports: Collection[int]) -> bool:
        """Ask it to drain, and return whether it reported that it accepts nothing more.

        It may end, or have no connection left, without such a report.
        """
        self.terminate()
        reported = self.reported.not_accepting
        while self.alive and not reported.is_set():
            if not await in_thread(self._connected, ports):
                break
            with anyio.move_on_after(_POLL_SECONDS):
                await reported.wait()
        return self.alive and reported.is_set()

    async def stop(
        self,
        *,
        stop_seconds: float,
        drain_seconds: float = 0.0,
        ports: Collection[int] = (),
        poll_seconds: float = _POLL_SECONDS,
    ) -> bool:
        """Ask it to drain and exit, and kill it if it does not; return whether it went by itself.

        Its connections on `ports` have `drain_seconds`; then it has `stop_seconds` to exit. No
        process that it has started is left afterwards. Its connections are counted every
        `poll_seconds`, which reads all of `/proc`.
        """
        self.terminate()
        if drain_seconds:
            with anyio.move_on_after(drain_seconds):
                await self._disconnected(ports, poll_seconds)
        with anyio.move_on_after(stop_seconds):
            await self.wait()
        by_itself = not self.alive
        await self.kill()
        return by_itself

    async def _disconnected(self, ports: Collection[int], poll_seconds: float) -> None:
        """Wait until it has exited or holds no connection any more."""
        while self.alive and await in_thread(self._connected, ports):
            with anyio.move_on_after(poll_seconds):
                await self.wait()

    async def answered(
        self, ports: Collection[int], quiet_seconds: float, answers: Callable[[], Answers]
    ) -> None:
        """Wait until it has exited or has answered everything on its connections.

        `answers` knows whether an answer on a relayed connection is pending. An answer on another
        one counts as given once the connection was silent for `quiet_seconds`.
        """
        while self.alive and await in_thread(self._busy, ports, quiet_seconds, answers()):
            with anyio.move_on_after(_POLL_SECONDS):
                await self.wait()

    def _connected(self, ports: Collection[int]) -> bool:
        found = self._known_connections(ports)
        return found is None or bool(found)

    def _busy(self, ports: Collection[int], quiet_seconds: float, answers: Answers) -> bool:
        found = self._known_connections(ports)
        if found is None:
            return True
        for each in found:
            pending = answers.get((each.peer[0].removeprefix("::ffff:"), each.peer[1]))
            if each.busy(quiet_seconds) if pending is None else pending:
                return True
        return False

    def _known_connections(self, ports: Collection[int]) -> list[TcpConnection] | None:
        """Return its connections; None if they are unknown, which must not count as none."""
        try:
            found = self.connections(ports)
        except OSError as error:
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
        return with_spares(
            lambda: procfs.family_of(environment=environment, sessions={self.pid}, tag=self._tag)
        )

    def foreign_listeners(self) -> tuple[list[TcpSocket], list[str]]:
        """Return the sockets on which its processes listen and that are not the daemon's.

        First those of TCP, then the paths of Unix sockets. It reads all of `/proc`, so use a
        thread. Raises OSError.
        """
        held: set[int] = set().union(*map(procfs.sockets_of, self.family()))
        held -= procfs.sockets_of(os.getpid())
        tcp = [listener for listener in sockdiag.listeners() if listener.inode in held]
        return tcp, [path for inode, path in sockdiag.unix_listeners().items() if inode in held]

    @seam("kill")
    async def kill(self) -> None:
        """Kill the worker and all that is left of its descendants."""
        self.expected_to_exit = True
        with anyio.move_on_after(_KILL_SECONDS) as limit:
            if self.alive:
                self._signal(signal.SIGKILL)
                await self.wait()
            await self._kill_descendants()
        if limit.cancelled_caught:
            log.critical("processes_left", **self.facts, pid=self.pid)

    async def _kill_descendants(self) -> None:
        """Kill them until none is left: they may start more of them meanwhile."""
        reported = False
        while True:
            try:
                left = await in_thread(self.family)
            except OSError as error:  # nothing is known, which must not count as none
                if not reported:
                    log.error("processes_unknown", **self.facts, pid=self.pid, why=str(error))
                reported = True
                await anyio.sleep(_POLL_SECONDS)
                continue
            if not left:
                return
            procfs.send_signal(left, signal.SIGKILL)
            await anyio.sleep(0.01)


class NotifySocket:
    """Receives one worker's reports; the public attributes hold the reports so far."""

    def __init__(
        self,
        instance: str,
        *,
        kit: bool = False,
        account: Account | None = None,
        held: bool = False,
    ) -> None:
        """Bind the socket. `held`: nothing is read until `read_from`. Raises OSError."""
        self._senders = {0, account.uid if account else os.getuid()}
        self.ready = anyio.Event()
        self.kit = kit
        self.on_change: Callable[[], None] = ignore
        """Called once it has reported that it has the kit, or that it accepts nothing more."""
        self.not_accepting = anyio.Event()
        """Set once it accepts no more connections; that is final."""
        self.left: DrainCounts | None = None
        """Its connections by its last report."""
        self.most: DrainCounts | None = None
        """The greatest count of each kind that it has reported."""
        self.cut: DrainCounts | None = None
        """Connections cut off at its deadline; None if it reported none."""
        self.address = f"@atlas-notify-{instance}"
        self._pid = self._session = 0
        """The worker's first process and its session; 0: any process may report."""
        self._count, self._period = 0, Stopwatch()
        self._paused: asyncio.TimerHandle | None = None
        self._refused = self._flooded = False
        """Whether that was logged."""
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind("\0" + self.address[1:])
        except OSError:
            self._socket.close()
            raise
        if not held:
            self._resume()

    def read_from(self, pid: int) -> None:
        """Let the processes of the worker that began with this one report, and no others."""
        self._pid, self._session = pid, procfs.session(pid)
        self._resume()

    def _resume(self) -> None:
        self._paused, self._count, self._period = None, 0, Stopwatch()
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    def _is_full(self) -> bool:
        """Count a message; with too many of them stop reading for the rest of the period."""
        if self._period.seconds >= _PERIOD_SECONDS:
            self._count, self._period = 0, Stopwatch()
        self._count += 1
        if self._count < _MESSAGES_PER_PERIOD:
            return False
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket.fileno())
        self._paused = loop.call_later(_PERIOD_SECONDS - self._period.seconds, self._resume)
        if not self._flooded:
            self._flooded = True
            log.warning("worker_reports_delayed", address=self.address, why="there are too many")
        return True

    def _is_own(self, pid: int) -> bool:
        """Return whether it is a process of the worker; one that is gone by now is unknown.

        Sessions and ancestors can't be forged, as a variable or a tag can.
        """
        if not self._pid or pid == self._pid or procfs.session(pid) == self._session:
            return True
        if self._pid in procfs.ancestors(pid):
            return True
        if not self._refused:
            self._refused = True
            sender = procfs.describe(pid)
            log.warning("worker_report_refused", address=self.address, sender=sender)
        return False

    def _read(self) -> None:
        for _ in range(_MESSAGES_PER_WAKE):
            try:
                data, ancillary, *_ = self._socket.recvmsg(
                    _MESSAGE_LIMIT, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except (BlockingIOError, InterruptedError):
                return
            pid, uid = _sender(ancillary)
            if uid in self._senders and self._is_own(pid):
                self._handle(data.decode(errors="replace").splitlines())
            if self._is_full():
                return

    def _handle(self, lines: list[str]) -> None:
        if NOTIFY_KIT in lines and not self.kit:
            self.kit = True
            self.on_change()
        if NOTIFY_READY in lines:
            self.ready.set()
        if NOTIFY_NOT_ACCEPTING in lines and not self.not_accepting.is_set():
            self.not_accepting.set()
            self.on_change()
        for line in lines:
            if line.startswith(NOTIFY_LEFT) and (left := _counts(line, NOTIFY_LEFT)):
                self.left = left
                self.most = left.most(self.most)
            elif line.startswith(NOTIFY_CUT):
                self.cut = _counts(line, NOTIFY_CUT) or self.cut

    def close(self) -> None:
        """Read the last messages, and close the socket."""
        if self._socket.fileno() >= 0:
            if self._paused is not None:
                self._paused.cancel()
            self._count = 0
            self._read()
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()


def _counts(line: str, prefix: str) -> DrainCounts | None:
    """Return the reported counts; None for anything else: a worker is not trusted."""
    try:
        return DrainCounts.model_validate_json(line.removeprefix(prefix))
    except ValidationError:
        return None


def _sender(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    """Return the sender's pid and uid, as the kernel attributes them; -1 if it does not."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid, uid, _ = _CREDENTIALS.unpack_from(data)
            return pid, uid
    return -1, -1
