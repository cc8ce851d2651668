"""Watches in the background how everything is, so that every answer comes from memory.

There are looks at four things, each in a task of its own, so that one that hangs holds no other
up. A look at the active instance is about that very instance: after a switch or a death the one
before it counts no more, and another is made at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import anyio

from atlas_supervisor.config import Settings
from atlas_supervisor.health import daemon_checks
from atlas_supervisor.health.poller import Poller
from atlas_supervisor.health.score import score, status_of
from atlas_supervisor.health.worker_checks import (
    ActiveWorker,
    WorkerChecks,
    WorkerReading,
    nobody,
    not_seen_yet,
)
from atlas_supervisor.model.health import Check, CheckStatus, Health
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.traffic import Plane
from atlas_worker.contract import STATE_FILE

INTERVAL_SECONDS = 2.0
"""The pause between two looks at the active instance, and at the folder."""
DATABASE_INTERVAL_SECONDS = 5.0
"""The same for the database: each look is a durable write."""
PATIENCE_SECONDS = 0.1
"""How long an answer waits, at most, for the first look of all; a later instance's first look may
take as long before it is held against it."""
OVERDUE_WARN_SECONDS, OVERDUE_FAIL_SECONDS = 2.0, 10.0
"""A look at the daemon's own that takes so long is a finding by itself."""

_UP = "since the daemon was started"


class HealthMonitor:
    """Looks, and tells what it has seen."""

    def __init__(
        self,
        *,
        settings: Settings,
        prober: HttpProber,
        plane: Plane,
        database: Database,
        state: StateKeeper,
        subject: Callable[[], ActiveWorker],
    ) -> None:
        self._subject = subject
        self._up = Stopwatch()
        self._looks = WorkerChecks(settings, prober)
        self._looking_at: ActiveWorker | None = None
        self._instance = Poller(self._look_at_instance, interval=INTERVAL_SECONDS)
        folder = settings.state_dir
        ports = {SlotName.BLUE: settings.active_port, SlotName.GREEN: settings.staging_port}
        self._own = {
            "database": Poller(
                partial(daemon_checks.database, state, database), interval=DATABASE_INTERVAL_SECONDS
            ),
            "disk_free": Poller(
                partial(daemon_checks.disk_free, folder), interval=INTERVAL_SECONDS
            ),
            "steering": Poller(
                partial(daemon_checks.steering, plane, StateFile(folder / STATE_FILE), ports),
                interval=INTERVAL_SECONDS,
            ),
        }

    async def run(self) -> None:
        """Look until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._instance.run)
            for looker in self._own.values():
                tasks.start_soon(looker.run)

    async def _look_at_instance(self) -> WorkerReading:
        self._looking_at = self._subject()
        return await self._looks.look(self._looking_at)

    def _seen(self, subject: ActiveWorker) -> WorkerReading | None:
        """Return the last look, if it is about this very instance."""
        last = self._instance.last
        return last if last is not None and last.subject.is_same(subject) else None

    def notice(self) -> None:
        """Look at once if the instance that is or was looked at is not the active one any more."""
        subject, at = self._subject(), self._looking_at
        if at is None or not at.is_same(subject):
            self._instance.again()

    async def looked(self) -> None:
        """Wait until everything was looked at, at most `PATIENCE_SECONDS` from the look's start."""
        with anyio.move_on_after(PATIENCE_SECONDS):
            for looker in self._own.values():
                while looker.last is None and looker.waiting_seconds < PATIENCE_SECONDS:
                    await looker.next()
            while self._awaited():
                self.notice()
                await self._instance.next()

    def _awaited(self) -> bool:
        """Tell whether to wait for the daemon's first look; after a switch nobody has to."""
        subject = self._subject()
        if subject.instance is None or self._switched_from():
            self.notice()
            return False
        return self._seen(subject) is None and self._waited_for(subject) < PATIENCE_SECONDS

    def _switched_from(self) -> bool:
        """Tell whether an instance was looked at before, whichever it was."""
        return self._instance.last is not None and self._instance.last.age is not None

    def _waited_for(self, subject: ActiveWorker) -> float:
        """Return for how many seconds the look at this very instance goes on."""
        at = self._looking_at
        return self._instance.waiting_seconds if at is not None and at.is_same(subject) else 0.0

    async def report(self) -> Health:
        """Return how everything is, in `PATIENCE_SECONDS` at most."""
        await self.looked()
        return self.health()

    def health(self) -> Health:
        """Return how everything is, from memory."""
        subject = self._subject()
        look = nobody(subject) if subject.instance is None else self._seen(subject)
        if look is None:
            waited = self._waited_for(subject)
            fresh = self._switched_from() and waited < PATIENCE_SECONDS
            look = not_seen_yet(subject, waited, fresh=fresh)
        up = round(self._up.seconds, 3)
        uptime = Check(status=CheckStatus.PASS, value=up, unit="s", message=_UP)
        checks = {**look.checks, "uptime": uptime}
        checks |= {name: _own(looker) for name, looker in self._own.items()}
        points = score({name: check.status for name, check in checks.items()})
        return Health(
            score=points,
            status=status_of(points),
            checks=checks,
            slot=subject.slot,
            version=subject.version,
            age_seconds=round(look.age.seconds, 3) if look.age else None,
        )


def _own(looker: Poller[Check]) -> Check:
    """Return what was seen last, unless the next look does not come to an end."""
    waited = looker.waiting_seconds
    if waited > OVERDUE_WARN_SECONDS:
        status = CheckStatus.FAIL if waited > OVERDUE_FAIL_SECONDS else CheckStatus.WARN
        message = f"no end of it for {waited:.0f} s"
        return Check(status=status, value=round(waited, 1), unit="s", message=message)
    if looker.last is None:
        return Check(status=CheckStatus.SKIPPED, message="it has not been looked at yet")
    return looker.last
