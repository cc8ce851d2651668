"""Checks the active worker and the daemon in the background, so that reports come from memory.

There are four checks, each in a task of its own, so that one that hangs delays no other. A check
of the active worker counts for that very instance alone: after a switch or a crash the previous
result is dropped, and the new instance is checked at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

import anyio

from atlas_supervisor.config import Settings
from atlas_supervisor.health import daemon_checks
from atlas_supervisor.health.score import score, status_of
from atlas_supervisor.health.worker_checks import (
    ActiveWorker,
    WorkerChecks,
    WorkerReading,
    no_worker,
    not_checked_yet,
)
from atlas_supervisor.model.health import Check, CheckStatus, Health
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.traffic import Plane
from atlas_worker.contract import STATE_FILE

INTERVAL_SECONDS = 2.0
"""The pause between two checks of the active worker, and of the state folder."""
DATABASE_INTERVAL_SECONDS = 5.0
"""The same for the database: each check is a durable write."""
FIRST_CHECK_SECONDS = 0.1
"""How long a report waits at most for the very first check. Later, a new instance has as long
before a missing result is held against it."""
OVERDUE_WARN_SECONDS, OVERDUE_FAIL_SECONDS = 2.0, 10.0
"""A check of the daemon itself that runs for so long warns, or fails."""

T = TypeVar("T")

_UPTIME = "since the start of the daemon"


class Poller(Generic[T]):
    """Runs one check again and again and keeps the last result, with `interval` seconds between.

    A report takes the last result at once. A check that hangs delays its own next run only.
    """

    def __init__(self, check: Callable[[], Awaitable[T]], *, interval: float) -> None:
        self._check = check
        self._interval = interval
        self._last: T | None = None
        self._finished = anyio.Event()
        self._running: Stopwatch | None = None
        self._scope = anyio.CancelScope()

    @property
    def last(self) -> T | None:
        """The last result; None before the first."""
        return self._last

    @property
    def running_seconds(self) -> float:
        """For how long the current check has been running; 0 between two checks."""
        return self._running.seconds if self._running else 0.0

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            with anyio.CancelScope() as self._scope:
                self._running = Stopwatch()
                try:
                    self._last = await self._check()
                finally:
                    self._running = None
                self._finished.set()
                self._finished = anyio.Event()
                await anyio.sleep(self._interval)

    def restart(self) -> None:
        """Check again at once: end the pause, or the check in progress."""
        self._scope.cancel()

    async def next(self) -> None:
        """Wait until a check has finished."""
        await self._finished.wait()


class HealthMonitor:
    """Runs the checks, and reports their results."""

    def __init__(
        self,
        *,
        settings: Settings,
        prober: HttpProber,
        plane: Plane,
        database: Database,
        state: StateKeeper,
        subject: Callable[[], ActiveWorker],
        canaries: Callable[[], Check],
        watched: Callable[[], Check | None] = lambda: None,
    ) -> None:
        self._subject = subject
        self._plane = plane
        self._canaries = canaries
        self._uptime = Stopwatch()
        self._checks = WorkerChecks(settings, prober)
        self._checking: ActiveWorker | None = None
        """The worker of the check in progress, else of the last one."""
        self._worker = Poller(self._check_worker, interval=INTERVAL_SECONDS)
        folder = settings.state_dir
        file = StateFile(folder / STATE_FILE)
        self._daemon = {
            "database": Poller(
                partial(daemon_checks.database, state, database), interval=DATABASE_INTERVAL_SECONDS
            ),
            "disk_free": Poller(
                partial(daemon_checks.disk_free, folder), interval=INTERVAL_SECONDS
            ),
            "steering": Poller(
                partial(daemon_checks.steering, plane, file, settings.slot_ports, watched),
                interval=INTERVAL_SECONDS,
            ),
        }

    async def run(self) -> None:
        """Check until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._worker.run)
            for poller in self._daemon.values():
                tasks.start_soon(poller.run)

    async def _check_worker(self) -> WorkerReading:
        self._checking, steered = self._subject(), self._steered()
        reading = await self._checks.check(self._checking, **steered)
        if (now := self._steered()) != steered:  # the check's own connection may have waited,
            reading = await self._checks.check(self._checking, **now)  # or reached the other one
        return reading

    def _steered(self) -> dict[str, bool]:
        return {"held": self._plane.held, "split": bool(self._plane.policy.split)}

    def _reading_of(self, subject: ActiveWorker) -> WorkerReading | None:
        """Return the last result, if it is about this very instance."""
        last = self._worker.last
        return last if last is not None and last.subject.is_same(subject) else None

    def switched(self) -> None:
        """Check the new active worker at once, even if the check of the old one hangs."""
        self._worker.restart()

    def _notice_restart(self) -> None:
        """Check at once if the active worker is not the one that is or was checked."""
        subject, checking = self._subject(), self._checking
        if checking is None or not checking.is_same(subject):
            self._worker.restart()

    async def first_checks(self) -> None:
        """Wait until everything was checked, for `FIRST_CHECK_SECONDS` of a check at most."""
        with anyio.move_on_after(FIRST_CHECK_SECONDS):
            for poller in self._daemon.values():
                while poller.last is None and poller.running_seconds < FIRST_CHECK_SECONDS:
                    await poller.next()
            while self._must_wait():
                self._notice_restart()
                await self._worker.next()

    def _must_wait(self) -> bool:
        """Return whether to wait for the daemon's first check; there is no wait after a switch."""
        subject = self._subject()
        if subject.instance is None or self._checked_before():
            self._notice_restart()
            return False
        checked = self._reading_of(subject) is not None
        return not checked and self._checking_seconds(subject) < FIRST_CHECK_SECONDS

    def _checked_before(self) -> bool:
        """Return whether any instance was checked before."""
        return self._worker.last is not None and self._worker.last.age is not None

    def _checking_seconds(self, subject: ActiveWorker) -> float:
        """Return for how long the check of this very instance has been running."""
        checking = self._checking
        same = checking is not None and checking.is_same(subject)
        return self._worker.running_seconds if same else 0.0

    async def report(self) -> Health:
        """Return the health, in `FIRST_CHECK_SECONDS` at most."""
        await self.first_checks()
        return self.health()

    def health(self) -> Health:
        """Return the health from memory."""
        subject = self._subject()
        reading = no_worker(subject) if subject.instance is None else self._reading_of(subject)
        if reading is None:
            waited = self._checking_seconds(subject)
            fresh = self._checked_before() and waited < FIRST_CHECK_SECONDS
            reading = not_checked_yet(subject, waited, fresh=fresh)
        seconds = round(self._uptime.seconds, 3)
        uptime = Check(status=CheckStatus.PASS, value=seconds, unit="s", message=_UPTIME)
        checks = {**reading.checks, "uptime": uptime}
        checks |= {name: _result(poller) for name, poller in self._daemon.items()}
        checks["canaries"] = self._canaries()
        if checks["database"].status is CheckStatus.FAIL:  # one fault counts once
            message = "counts can't be written: see database"
            checks["canaries"] = Check(status=CheckStatus.SKIPPED, message=message)
        points = score({name: check.status for name, check in checks.items()})
        return Health(
            score=points,
            status=status_of(points),
            checks=checks,
            slot=subject.slot,
            version=subject.version,
            age_seconds=round(reading.age.seconds, 3) if reading.age else None,
        )


def _result(poller: Poller[Check]) -> Check:
    """Return the last result, unless the current check has been running for too long."""
    seconds = poller.running_seconds
    if seconds > OVERDUE_WARN_SECONDS:
        status = CheckStatus.FAIL if seconds > OVERDUE_FAIL_SECONDS else CheckStatus.WARN
        message = f"no result for {seconds:.0f} s"
        return Check(status=status, value=round(seconds, 1), unit="s", message=message)
    if poller.last is None:
        return Check(status=CheckStatus.SKIPPED, message="not checked yet")
    return poller.last
