"""The scheduler: claims due jobs, runs them, and renews their leases.

Only the leading instance (the active one, or one without a supervisor) claims jobs: a version that
has not passed its gates, or that was replaced, must not work on real jobs. Safety does not depend
on it: each job is claimed in a transaction.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from atlas_worker.app.jobs import Claim, JobStore
from atlas_worker.app.kinds import KINDS, Run
from atlas_worker.app.memory import Memory

_log = logging.getLogger("atlas.worker")

LEASE_SECONDS = 10.0
POLL_SECONDS = 0.5
CONCURRENCY = 4
_CLEANING_SECONDS = 3600.0


class Scheduler:
    """Runs jobs of one store until stopped. `may_claim` is asked before each claim."""

    def __init__(
        self,
        store: JobStore,
        memory: Memory | None,
        *,
        may_claim: Callable[[], bool],
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.store = store
        self._memory = memory
        self._may_claim = may_claim
        self._renew_seconds = lease_seconds / 3
        self._wake = asyncio.Event()
        self._stopping = False
        self._running: set[asyncio.Task[None]] = set()
        self._loop_task: asyncio.Task[None] | None = None
        self._last_turn = time.monotonic()
        self._clean_at = 0.0

    def start(self) -> None:
        """Start to claim."""
        self._loop_task = asyncio.create_task(self._claim_jobs(), name="scheduler")

    def wake(self) -> None:
        """Poll now."""
        self._wake.set()

    async def stop(self, timeout_seconds: float = math.inf) -> None:
        """Claim no more and finish running jobs; release those that do not end in time."""
        self._stopping = True
        self.wake()
        if self._loop_task is not None:
            await self._loop_task
        if self._running:
            limit = None if math.isinf(timeout_seconds) else timeout_seconds
            _, late = await asyncio.wait(self._running, timeout=limit)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def silence(self) -> float:
        """Return the seconds since the last poll; infinite if the scheduler has died."""
        if self._loop_task is None or self._loop_task.done():
            return math.inf
        return time.monotonic() - self._last_turn

    def running(self) -> int:
        """Return how many jobs run here at the moment."""
        return len(self._running)

    async def _claim_jobs(self) -> None:
        while not self._stopping:
            self._wake.clear()
            claim = None
            try:
                await self._clean()
                if len(self._running) < CONCURRENCY and self._may_claim():
                    claim = await self.store.claim()
                self._last_turn = time.monotonic()
            except sqlite3.Error as error:
                _log.warning("the scheduler's database failed: %s", error)
            if claim is not None:
                task = asyncio.create_task(self._run(claim))
                self._running.add(task)
                task.add_done_callback(self._ended)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self.wake()

    async def _clean(self) -> None:
        if time.monotonic() >= self._clean_at:
            await self.store.forget_old()
            self._clean_at = time.monotonic() + _CLEANING_SECONDS

    async def _run(self, claim: Claim) -> None:
        job = asyncio.create_task(self._perform(claim))
        lease = asyncio.create_task(self._hold(claim))
        try:
            await asyncio.wait({job, lease}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                _log.warning("lost the lease of job %s to another instance", claim.id)
                return
            await self._record(claim, job.result())
        except asyncio.CancelledError:
            await _settle(job)
            with suppress(sqlite3.Error):
                await self.store.release(claim)
            raise
        finally:
            await _settle(job)
            await _settle(lease)

    async def _record(self, claim: Claim, outcome: dict[str, Any]) -> None:
        """Record the outcome under the lease: a locked database must not cause a second run."""
        while True:
            try:
                if not await self.store.finish(claim, **outcome):
                    _log.warning("job %s was taken over before its result was recorded", claim.id)
            except sqlite3.Error as error:
                _log.warning("the result of job %s can't be recorded yet: %s", claim.id, error)
                await asyncio.sleep(POLL_SECONDS)
            else:
                return

    async def _perform(self, claim: Claim) -> dict[str, Any]:
        """Run the job; return its outcome."""
        kind = KINDS.get(claim.kind)
        if kind is None:
            return {"error": f"this version has no kind {claim.kind!r}"}
        try:
            return {"result": await kind.run(Run(claim.id, claim.payload, self._memory))}
        except Exception as error:  # noqa: BLE001 - any exception of a job is its outcome
            _log.exception("job %s failed", claim.id)
            return {"error": f"{type(error).__name__}: {error}"}

    async def _hold(self, claim: Claim) -> None:
        """Renew the lease; return when it is lost."""
        held = True
        while held:
            await asyncio.sleep(self._renew_seconds)
            with suppress(sqlite3.Error):
                held = await self.store.renew(claim)


async def _settle(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
