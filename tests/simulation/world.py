"""The world around a daemon: worker processes, the kernel's listening group, disks that fail.

It goes on while no daemon runs. Every choice is drawn from the seed's own random numbers. What the
world can see that a promise is broken, it notes at once, in `broken`.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from atlas_supervisor.model.slot import SlotName
from tests.simulation.clock import Timeline

GOOD = ("v1", "v2", "v3", "v4")
IRREVERSIBLE = "v4"
"""One of the good ones."""
BAD = ("never-ready", "crashes-at-once", "fails-smoke", "fails-health")
"""Releases that never pass the gates; none of them may ever have traffic."""

OUTAGE_SECONDS = 3.0
HANG_SECONDS = 16.0
"""How long a version with traffic may be dead, or hung, while another one lives and is warm."""
HOLD_SECONDS, RELEASE_SECONDS = 6.0, 8.0
"""How long a hold lasts at most, and how long its end may take while the kernel refuses it."""
SWITCH_SECONDS = 0.1
"""How long a switch may take until it is durable, or undone."""


class Daemon(Protocol):
    """What the world knows of a running daemon."""

    stopping_began: bool
    up: bool
    """Whether it has all its parts."""

    @property
    def is_killed(self) -> bool:
        """Whether nothing of it goes on any more."""

    def notified(self, instance: str, what: str) -> None:
        """A worker reports something."""

    def ended(self, pid: int) -> None:
        """A process has ended."""


@dataclass(eq=False)
class Worker:
    """A worker process."""

    pid: int
    instance: str
    slot: SlotName
    release: str
    socket: int
    """The public socket that it accepts from."""
    kit: bool
    drains_for: float
    ignores_term: bool
    started_at: float
    ready: bool = False
    accepting: bool = True
    hung: bool = False
    sick: bool = False
    """Whether it answers probes with 500."""
    draining: bool = False
    asked_to_end: bool = False
    had_traffic: bool = False
    """Whether it had the traffic for longer than a switch takes that is undone."""
    traffic_since: float | None = None
    returncode: int | None = None

    @property
    def alive(self) -> bool:
        return self.returncode is None

    @property
    def serves(self) -> bool:
        return self.alive and self.ready and self.accepting and not self.hung

    def __str__(self) -> str:
        return f"{self.slot} pid {self.pid} ({self.release})"


@dataclass
class DiskFault:
    """A disk that fails some of its writes."""

    kind: str
    targets: frozenset[str]
    share: float

    def error(self) -> OSError:
        number = {"full": errno.ENOSPC, "eio": errno.EIO, "readonly": errno.EROFS}[self.kind]
        return OSError(number, os.strerror(number))

    def sqlite_error(self) -> sqlite3.OperationalError:
        code, text = {
            "full": (sqlite3.SQLITE_FULL, "database or disk is full"),
            "eio": (sqlite3.SQLITE_IOERR, "disk I/O error"),
            "readonly": (sqlite3.SQLITE_READONLY, "attempt to write a readonly database"),
        }[self.kind]
        error = sqlite3.OperationalError(text)
        error.sqlite_errorcode = code
        return error


@dataclass
class Kernel:
    """The public port: two sockets, and which of them gets the connections."""

    group: tuple[int, int] | None = None
    traffic: int = 0
    relayed: dict[int, SlotName] = field(default_factory=dict)
    """Sockets whose connections the daemon passes on, and the slot that gets them."""
    made: int = 0
    held: bool = False
    """Whether new connections wait in the parked queue."""
    has_parked: bool = False
    """Whether there is such a queue, where the sockets are held besides by workers."""
    is_passed: bool = False
    """Whether the sockets are on their way to the next program of the daemon's process."""
    is_kept: bool = False
    """Whether they are held by a process besides daemon and workers."""

    @property
    def outlives(self) -> bool:
        """Whether the sockets stay without daemon and workers."""
        return self.is_passed or self.is_kept


class World:
    """Everything but the daemon."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  # a seed is the purpose
        self.timeline = Timeline()
        self.kernel = Kernel()
        self.workers: list[Worker] = []
        self.daemon: Daemon | None = None
        self.fault: DiskFault | None = None
        self.story: list[tuple[float, str]] = []
        self.broken: list[str] = []
        self.on_write: Callable[[dict[str, Any]], None] = lambda _state: None
        """Called with what the state file holds, after each write of it."""
        self.failure: BaseException | None = None
        """What the daemon first failed with; for its traceback."""
        self.copies_sockets = self.random.random() < 0.85
        """Whether a daemon may copy its workers' sockets (ptrace_scope)."""
        self.has_keeper = self.random.random() < 0.4
        """Whether another process holds the sockets as well."""
        self.calm = False
        """Whether no worker of a good release goes wrong any more."""
        self._kit = self.random.random() < 0.8
        self._unserved_since: float | None = None
        self._checked = -1.0
        self._held_since: float | None = None

    def tell(self, text: str) -> None:
        """Note an event of the story."""
        self.story.append((self.timeline.now, text))

    def breach(self, promise: str) -> None:
        """Note that a promise is broken; once for each."""
        if promise not in self.broken:
            self.broken.append(promise)
            self.tell(f"!! {promise}")

    # Workers.

    @property
    def living(self) -> list[Worker]:
        return [each for each in self.workers if each.alive]

    def find(self, pid: int) -> Worker | None:
        return next((each for each in self.workers if each.pid == pid), None)

    def in_slot(self, slot: SlotName) -> Worker | None:
        """Return the worker that accepts from the slot's own port."""
        found = [each for each in self.living if each.slot is slot and each.accepting]
        return found[-1] if found else None

    def launch(self, instance: str, slot: SlotName, release: str, socket: int) -> Worker:
        """Start a worker; what becomes of it is drawn now."""
        draw, after = self.random, self.timeline.after
        worker = Worker(
            pid=1000 + len(self.workers),
            instance=instance,
            slot=slot,
            release=release,
            socket=socket,
            kit=self._kit,
            drains_for=draw.choice((0.05, 0.3, 1.0, 2.5, 20.0)),
            ignores_term=draw.random() < 0.06,
            started_at=self.timeline.now,
        )
        self.workers.append(worker)
        self.tell(f"worker {worker} is started")
        boot = draw.choice((0.1, 0.4, 1.0, 3.0))
        fate = draw.random()
        if release == "crashes-at-once" or (not self.calm and fate < 0.05):
            after(boot / 2, lambda: self.exit(worker, 1))
        elif release != "never-ready":
            after(boot, lambda: self._become_ready(worker))
            if not self.calm and fate < 0.30:
                self._doom(worker, boot + draw.choice((0.1, 0.5, 2.0, 6.0, 20.0)))
        self.look()
        return worker

    def _doom(self, worker: Worker, seconds: float) -> None:
        end = self.random.choice(("crash", "crash", "hang", "sick"))
        if end == "crash":
            self.timeline.after(seconds, lambda: self.exit(worker, 3))
        else:
            self.timeline.after(seconds, lambda: self._fall(worker, end))

    def _fall(self, worker: Worker, end: str) -> None:
        if not worker.alive or self.calm:
            return
        self.tell(f"worker {worker} {'hangs' if end == 'hang' else 'answers 500'}")
        worker.hung, worker.sick = worker.hung or end == "hang", worker.sick or end == "sick"
        self.look()

    def _become_ready(self, worker: Worker) -> None:
        if worker.alive:
            worker.ready = True
            if worker.kit:
                self._report(worker, "KIT")
            self._report(worker, "READY")
            self.look()

    def _report(self, worker: Worker, what: str) -> None:
        if self.daemon is not None:
            self.daemon.notified(worker.instance, what)

    def exit(self, worker: Worker, status: int) -> None:
        """Let a worker end."""
        if not worker.alive:
            return
        worker.returncode, worker.accepting = status, False
        self.tell(f"worker {worker} ends: {status}")
        if self.daemon is not None:
            self.daemon.ended(worker.pid)
        elif not self.living and not self.kernel.outlives:
            self.kernel.group = None  # its last holder is gone
            self.kernel.held = False
        self.look()

    def signal(self, pid: int, number: int) -> None:
        """Let the daemon send a signal."""
        worker = self.find(pid)
        if worker is None or not worker.alive or number == signal.SIGCONT:
            return
        self.tell(f"daemon: {signal.Signals(number).name} to {worker}")
        self._refuse_to_end_the_only_one(worker)
        if number == signal.SIGKILL:
            self.timeline.after(0.001, lambda: self.exit(worker, -number))
        elif not worker.ignores_term and not worker.hung:
            seconds = 0.05 if worker.draining else worker.drains_for
            worker.draining = True
            self.timeline.after(0.01, lambda: self._stop_accepting(worker))
            self.timeline.after(0.02 + seconds, lambda: self.exit(worker, 0))

    def _stop_accepting(self, worker: Worker) -> None:
        if worker.alive:
            worker.accepting = False
            if worker.kit and worker.ready:
                self._report(worker, "NOT_ACCEPTING")
            self.look()

    def _refuse_to_end_the_only_one(self, worker: Worker) -> None:
        asked_before, worker.asked_to_end = worker.asked_to_end, True
        stops = self.daemon is None or self.daemon.stopping_began
        has_sockets = self.copies_sockets or self.has_keeper
        if stops or asked_before or not worker.serves or not has_sockets:
            return
        if worker.socket != self.kernel.traffic or worker.sick:
            return
        if not any(each.serves for each in self._takers() if each is not worker):
            self.breach(f"{worker}, which has the traffic, is ended before another one has it")

    # Traffic.

    def _takers(self) -> Iterator[Worker]:
        """Yield the workers that get new connections."""
        for each in self.living:
            if each.socket == self.kernel.traffic and each.accepting:
                yield each
        heir = self.kernel.relayed.get(self.kernel.traffic)
        if heir is not None and self.daemon is not None and (worker := self.in_slot(heir)):
            yield worker

    def look(self) -> None:
        """See whether clients are served by a version that has passed its gates."""
        self._watch_hold()
        takers = list(self._takers())
        for each in takers:
            if each.release in BAD:
                self.breach(f"{each} has traffic, and never passed its gates")
        self._note_traffic(takers)
        self._watch_outage(takers)

    def _note_traffic(self, takers: list[Worker]) -> None:
        """Note which workers have the traffic, and which had it."""
        for each in self.living:
            since = each.traffic_since
            if since is not None and self.timeline.now - since > SWITCH_SECONDS:
                each.had_traffic = True
            if each not in takers or not each.serves:
                each.traffic_since = None
            elif since is None:
                each.traffic_since = self.timeline.now

    def _watch_hold(self) -> None:
        """See whether a hold ends in its time."""
        excused = self.daemon is None or not self.daemon.up
        if not self.kernel.held or excused:
            self._held_since = None
        elif self._held_since is None:
            self._held_since = self.timeline.now
            self.timeline.after(HOLD_SECONDS + RELEASE_SECONDS, self._overdue)

    def _overdue(self) -> None:
        since = self._held_since
        if (
            since is not None
            and self.timeline.now - since >= HOLD_SECONDS + RELEASE_SECONDS - 0.001
        ):
            self.breach("a hold goes on beyond its time")

    def _watch_outage(self, takers: list[Worker]) -> None:
        """See whether a warm version would have to take over, and does not."""
        others = [
            each
            for each in self.living
            if each.serves and each.had_traffic and not each.draining and not each.sick
        ]
        excused = self.daemon is None or not self.daemon.up or self.daemon.stopping_began
        excused = excused or self.kernel.held
        served = any(each.serves for each in takers)
        if served or excused or self.fault or not others:
            self._unserved_since = None
            return
        if self._unserved_since is None:
            self._unserved_since = self.timeline.now
        limit = HANG_SECONDS if takers else OUTAGE_SECONDS
        self.timeline.after(limit, self._late)

    def _late(self) -> None:
        takers = list(self._takers())
        limit = HANG_SECONDS if takers else OUTAGE_SECONDS
        self._watch_outage(takers)
        since = self._unserved_since
        if since is not None and self.timeline.now - since >= limit - 0.001:
            self.breach(f"clients wait for {limit:g} s while a warm version could serve them")
            self._unserved_since = None

    # Disks.

    def fails(self, target: str) -> DiskFault | None:
        """Return the fault that this write meets, if it does."""
        fault = self.fault
        if fault is None or target not in fault.targets:
            return None
        return fault if self.random.random() < fault.share else None
