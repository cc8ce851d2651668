"""Recycles the active worker: beyond a limit, a fresh one of the same release takes its place.

That is a deploy through all gates (`DeployService.recycle`), so a leak costs no client a request.
It is the least urgent thing that the daemon does: it waits until no other deploy is in progress or
keeps a version for a rollback, and gives way to every request. If it fails the old worker stays,
and it is tried again after growing pauses.

Memory is the resident set of the worker and its descendants, as the status shows it; only several
measurements in a row count, so that a spike does not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.machine import Phase
from atlas_supervisor.deploy.recorder import Runs
from atlas_supervisor.errors import AtlasError
from atlas_supervisor.model.deploy import Cause, DeployRecord, Result
from atlas_supervisor.model.slot import InstanceUsage
from atlas_supervisor.model.status import RecycleView, Suggestion
from atlas_supervisor.system.clock import Stopwatch, now
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.slots import Slots

log = structlog.get_logger(__name__)

MEASUREMENTS = 3
"""So many in a row must be over the limit; there is one each `slots.MEASURE_OFTEN_SECONDS`."""
_LOOK_SECONDS = 0.5
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 10.0, 3600.0
_DRAINS = frozenset({Phase.DRAIN, Phase.DRAIN_REVERTED})
"""Phases in which a deploy keeps no version for a rollback any more."""
_FAILURES = frozenset({Result.FAILED, Result.ROLLED_BACK})

Recycle = Callable[[WorkerProcess, str], Awaitable[DeployRecord | None]]


class Reason(StrEnum):
    """What limit a worker is beyond."""

    MEMORY = "memory"
    AGE = "age"


@dataclass
class Patience:
    """When one worker is due, and when to try again after a failure. Pure."""

    max_rss_mb: float
    max_age_seconds: float
    over: int = 0
    """Measurements in a row that were over the limit."""
    memory_mb: float = 0.0
    """The last one."""
    attempts: int = 0
    """How often it was tried in vain."""

    def measured(self, memory_mb: float | None) -> None:
        """Note a measurement; None is none."""
        if memory_mb is not None:
            self.memory_mb = memory_mb
            self.over = self.over + 1 if 0 < self.max_rss_mb < memory_mb else 0

    def due(self, age_seconds: float) -> tuple[Reason, str] | None:
        """Return the limit that the worker is beyond, and that in words; None if it is not."""
        if self.over >= MEASUREMENTS:
            limit = f"WORKER_MAX_RSS_MB={self.max_rss_mb:g}"
            return Reason.MEMORY, f"the worker has {self.memory_mb:g} MiB, with {limit}"
        if 0 < self.max_age_seconds <= age_seconds:
            limit = f"WORKER_MAX_AGE_SECONDS={self.max_age_seconds:g}"
            return Reason.AGE, f"the worker is {age_seconds:.0f} s old, with {limit}"
        return None

    @property
    def pause_seconds(self) -> float:
        """How long to wait after the last attempt."""
        if not self.attempts:
            return 0.0
        doublings = min(self.attempts - 1, 20)  # many more are no number
        return min(_FIRST_PAUSE_SECONDS * 2.0**doublings, _LONGEST_PAUSE_SECONDS)


@dataclass
class _Subject:
    """The worker that is looked at."""

    worker: WorkerProcess
    patience: Patience
    usage: InstanceUsage | None = None
    """The last measurement, so that none counts twice."""
    tried: Stopwatch = field(default_factory=Stopwatch)
    """When it was tried last."""

    @property
    def pause_left(self) -> float:
        return max(self.patience.pause_seconds - self.tried.seconds, 0.0)

    def look(self) -> tuple[Reason, str] | None:
        """Take in what was measured; return why it is due."""
        if (usage := self.worker.usage) is not self.usage:
            self.usage = usage
            self.patience.measured(usage.memory_mb)
        due = self.patience.due(self.worker.age.seconds)
        if due is None and self.patience.attempts:  # its memory has shrunk
            self.patience.attempts, self.worker.not_recycled = 0, None
        return due

    def rest(self) -> None:
        """Note an attempt in vain, so that the next one is later."""
        self.patience.attempts += 1
        self.tried = Stopwatch()

    def fail(self, why: str) -> None:
        """Note one that has failed."""
        self.rest()
        self.worker.not_recycled = f"the worker can't be recycled, and serves on: {why}"


class Recycler:
    """Looks at the active worker, and recycles it when it is due and nothing else is going on."""

    def __init__(
        self,
        settings: Settings,
        slots: Slots,
        runs: Runs,
        *,
        held: Callable[[], bool],
        counted: Callable[[Reason], None],
    ) -> None:
        self._limits = settings.worker_max_rss_mb, settings.worker_max_age_seconds
        self._slots = slots
        self._runs = runs
        self._held = held
        """Returns whether traffic is held: someone is at work then."""
        self._counted = counted
        """Called once for each that has begun."""
        self._subject: _Subject | None = None

    async def run(self, recycle: Recycle) -> None:
        """Look until cancelled; without a limit, return."""
        if not any(self._limits):
            return
        while True:
            subject = self._subject = self._current()
            due = subject.look() if subject else None
            if subject is not None and due is not None and self._waits(subject) is None:
                await self._attempt(recycle, subject, *due)
            await anyio.sleep(_LOOK_SECONDS)

    def _current(self) -> _Subject | None:
        """Return the active worker with its measurements so far; None while it can't serve."""
        active, last = self._slots.active, self._runs.latest
        if active.instance is None or not active.can_serve:
            return None
        if self._subject is not None and self._subject.worker is active.instance:
            return self._subject
        subject = _Subject(active.instance, Patience(*self._limits))
        began = active.instance.life.started_ts
        if last and last.cause is Cause.RECYCLED and last.started_ts > began:
            self._note_failure(subject, last)  # an earlier daemon tried
        return subject

    async def _attempt(self, recycle: Recycle, subject: _Subject, reason: Reason, why: str) -> None:
        log.info("recycle_due", **subject.worker.facts, pid=subject.worker.pid, why=why)
        try:
            record = await recycle(subject.worker, why)
        except (AtlasError, OSError) as error:
            log.error("recycle_failed", why=str(error))
            subject.fail(str(error))
            return
        if record is not None:
            self._counted(reason)
            if record.result is Result.ABORTED:  # it was not its fault
                subject.rest()
            self._note_failure(subject, record)

    def _note_failure(self, subject: _Subject, record: DeployRecord) -> None:
        if record.result in _FAILURES:
            subject.fail(f"deploy {record.deploy_id}: {record.reason}")

    def _waits(self, subject: _Subject) -> str | None:
        """Return in words why the worker can't be recycled now; None if it can."""
        if busy := next((run for run in self._runs if run.phase not in _DRAINS), None):
            doing = "recycles it and" if busy.plan.recycle else "comes first and"
            return f"deploy {busy.record.deploy_id} {doing} is in {busy.phase}"
        if self._held():
            return "traffic is held"
        if not self._slots.staging_is_free:
            return "the worker before it drains"
        if left := subject.pause_left:
            return f"the next attempt is in {left:.0f} s"
        return None

    # What it shows.

    def view(self) -> RecycleView | None:
        """Return the limits and how far the worker is from them; None without a limit."""
        if not any(self._limits):
            return None
        memory, age = self._limits
        subject = self._subject
        due = subject.look() if subject else None
        left = age - subject.worker.age.seconds if subject and age else None
        return RecycleView(
            max_rss_mb=memory or None,
            max_age_seconds=age or None,
            due_ts=None if left is None else now() + timedelta(seconds=left),
            due=due[1] if due else None,
            waits=self._waits(subject) if subject and due else None,
            failure=subject.worker.not_recycled if subject else None,
            attempts=subject.patience.attempts if subject else 0,
        )

    def suggestions(self) -> list[Suggestion]:
        """Return that it could not be recycled, or waits for an operator."""
        subject, last = self._subject, self._runs.latest
        if subject is None:
            return []
        if (failure := subject.worker.not_recycled) is not None:
            left = subject.pause_left
            return [
                Suggestion(
                    code="recycle_failed",
                    message=f"{failure[0].upper()}{failure[1:]}. Next attempt in {left:.0f} s.",
                    action="See `atlasctl show`; deploy a release that passes its gates with "
                    "`atlasctl deploy`.",
                )
            ]
        due = subject.look()
        if due and last and last.phase == Phase.AWAITING_SWITCH:
            return [
                Suggestion(
                    code="recycle_waits",
                    message=f"The active worker is due to be recycled ({due[1]}), and a deploy "
                    "waits for its switch.",
                    action="Switch to it with `atlasctl switch`, or abort with `atlasctl abort`.",
                )
            ]
        return []
