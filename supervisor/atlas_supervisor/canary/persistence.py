"""Writes counts, evidence, epochs and ring positions to the database, in one transaction.

Changes are queued and written by the next `write`. A write that fails is retried; until it
succeeds the space in the rings is not released, so a daemon that is killed reads the same events
again. Audit entries enter the outbox after the commit, so an entry never precedes its change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import structlog

from atlas_supervisor.canary.call_collector import CallCollector
from atlas_supervisor.canary.evidence import Evidence, Moment, SavedState
from atlas_supervisor.canary.stats.ramp import Feature, resumed
from atlas_supervisor.canary.stats.rollups import HOUR, MINUTE
from atlas_supervisor.config import Settings
from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.canary import CanaryPolicy, CountsRow, EpochRow, FallbackView, KeyRow
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.state import DeployState
from atlas_supervisor.store.canary import CanaryCommit
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.system.clock import now as wall_clock

log = structlog.get_logger(__name__)

_COUNTS_SECONDS = 1.0
"""The least time between writes of counts alone: each write waits for the disk."""
_TRIM_SECONDS = 3600.0
_FALLBACK_ACTION = "canary_fallback"


_Audit = tuple[Actor, str, str, str | None, dict[str, Any]]


class QueuedChanges(NamedTuple):
    """Queued epochs, audit entries, and the ramps whose keys are kept."""

    epochs: list[EpochRow]
    audits: list[_Audit]
    ramps: list[int] | None


class CanaryPersistence:
    """The changes that are not in the database yet, and the number of the newest epoch."""

    def __init__(self, database: Database, settings: Settings, newest_epoch: int) -> None:
        self._database = database
        self._retention_days = settings.canary_retention_days
        self._newest_epoch = newest_epoch
        self._pending = False
        self._urgent = False
        self._epochs: list[EpochRow] = []
        self._keys: list[KeyRow] = []
        self._ramps: list[int] | None = None
        self._state: Callable[[], DeployState] | None = None
        self._audits: list[_Audit] = []
        self._audited_fallback = ""
        """The `since_ts` of the last fallback in the audit trail."""
        self._since_write = Stopwatch()
        self._since_trim = Stopwatch()
        self.failure: str | None = None
        """Why the last write failed; None if it did not."""

    def new_epoch(self) -> int:
        """Return the next unused epoch number."""
        self._newest_epoch += 1
        return self._newest_epoch

    def release_epochs(self, newest: int) -> None:
        """Make the numbers after this one unused again, as they were never published."""
        self._newest_epoch = newest

    @property
    def newest_epoch(self) -> int:
        """The newest epoch number in use."""
        return self._newest_epoch

    def queue_counts(self, *, at_once: bool = False) -> None:
        """Request a write of the counts, within a second or with the next `write`."""
        self._pending = True
        self._urgent = self._urgent or at_once

    def queue_epoch(self, row: EpochRow) -> None:
        """Queue a new epoch."""
        self._epochs.append(row)
        self._urgent = True

    def queue_features(self, ramps: Collection[int]) -> None:
        """Queue changed features; `ramps` are the current ones, whose keys are kept."""
        self._ramps = list(ramps)
        self._urgent = True

    def queue_state(self, state: Callable[[], DeployState]) -> None:
        """Queue the copy of a state file that has changed; it is the one at the time of writing."""
        self._state = state
        self._urgent = True

    def queue_audit(
        self, actor: Actor, action: str, outcome: str, subject: str | None, **detail: Any
    ) -> None:
        """Queue an entry of the audit trail."""
        self._audits.append((actor, action, outcome, subject, detail))
        self._urgent = True

    def queue_fallback(self, fallback: FallbackView) -> None:
        """Queue the audit entry of a fallback."""
        detail = fallback.model_dump(mode="json")
        self.queue_audit(SUPERVISOR, _FALLBACK_ACTION, "latched", None, **detail)

    def queue_unaudited(
        self,
        policy: CanaryPolicy | None,
        saved: Mapping[str, Feature],
        progress: Mapping[str, str],
    ) -> None:
        """Queue audit entries of changes that are in the state file, but not in the database."""
        self._audited_fallback = json.loads(progress.get("fallback_told", '""'))
        if policy is None:
            return
        if policy.fallback and policy.fallback.since_ts.isoformat() != self._audited_fallback:
            self.queue_fallback(policy.fallback)
        for name, current in policy.features.items():
            known = saved.get(name) or Feature(name=name, percentage=current.share)
            if current.epoch > known.epoch and current.stage != known.stage:
                why = "decided shortly before the daemon was killed"
                self.queue_audit(
                    SUPERVISOR, "canary", current.stage, name, reason=why, share=current.share
                )

    async def write(
        self,
        evidence: Evidence,
        features: Mapping[str, Feature],
        collector: CallCollector,
        now: Moment,
    ) -> None:
        """Write pending changes if it is time; a failure is logged and retried."""
        if self._urgent or (self._pending and self._since_write.seconds >= _COUNTS_SECONDS):
            with suppress(StoreError):
                await self.commit(evidence, features, collector, now)

    async def commit(
        self,
        evidence: Evidence,
        features: Mapping[str, Feature],
        collector: CallCollector,
        now: Moment,
    ) -> None:
        """Write pending changes. Raises StoreError, and they stay pending."""
        self._since_write = Stopwatch()
        self._keys += evidence.pop_new_keys()
        commit = CanaryCommit(
            counts=evidence.rollups.unwritten(),
            rings=collector.positions(),
            gone=collector.removed(),
            epochs=list(self._epochs),
            keys=list(self._keys),
            ramps=self._ramps,
            state=self._state() if self._state else None,
            progress={
                **evidence.progress(),
                **self._fallback_progress(),
                "features": _features_text(features),
                "dropped": collector.saved(),
                "saved_at": json.dumps(now.unix),
            },
        )
        try:
            await self._database.canary.commit(commit)
        except StoreError as error:
            log.error("canary_write_failed", why=str(error))
            self.failure = str(error)
            raise
        self.failure = None
        self._committed(commit, evidence, collector, now)
        await self._enqueue_audits()
        await self._trim(now)

    def queued(self) -> QueuedChanges:
        """Return a copy of the queue, for `restore_queue`."""
        return QueuedChanges(list(self._epochs), list(self._audits), self._ramps)

    def restore_queue(self, queued: QueuedChanges) -> None:
        """Drop the epochs and audit entries that were queued since; their numbers stay used."""
        self._epochs, self._audits, self._ramps = queued

    def _fallback_progress(self) -> dict[str, str]:
        return {"fallback_told": json.dumps(self._audited_fallback)}

    def _committed(
        self, commit: CanaryCommit, evidence: Evidence, collector: CallCollector, now: Moment
    ) -> None:
        collector.acknowledge(commit.rings, commit.gone)
        evidence.rollups.mark_written(commit.counts)
        evidence.rollups.forget_old(now.unix)
        del self._epochs[: len(commit.epochs)]
        del self._keys[: len(commit.keys)]
        self._ramps = self._state = None
        self._pending = self._urgent = False

    async def _enqueue_audits(self) -> None:
        for actor, action, outcome, subject, detail in self._audits:
            self._database.audit.enqueue(actor, action, outcome, subject=subject, **detail)
            if action == _FALLBACK_ACTION:
                since = datetime.fromisoformat(detail["since_ts"]).isoformat()
                self._database.outbox.put(partial(self._mark_audited, since))
        if self._audits:
            self._audits.clear()
            await self._database.outbox.attempt()

    async def _mark_audited(self, since: str) -> None:
        self._audited_fallback = since
        await self._database.canary.commit(CanaryCommit(progress=self._fallback_progress()))

    async def _trim(self, now: Moment) -> None:
        """Delete old counts, but none by a clock that was far ahead at the start and was set since.

        So the first time is not at the start, and the earlier one of two clocks counts.
        """
        if self._since_trim.seconds < _TRIM_SECONDS:
            return
        self._since_trim = Stopwatch()
        until = min(now.unix, wall_clock().timestamp())
        try:
            await self._database.canary.trim(until, kept_days=self._retention_days)
        except StoreError as error:
            log.error("canary_trim_failed", why=str(error))

    async def is_repeated(self, key: IdempotencyKey | None) -> bool:
        """Return whether this request was done before. Raises RefusedError, StoreError."""
        return key is not None and await self._database.keys.find(key) is not None

    async def remember(self, key: IdempotencyKey | None) -> None:
        """Store the key of a request that was done; a failure is logged."""
        if key is None or key.repeated:
            return
        try:
            await self._database.keys.add(key)
        except StoreError as error:
            log.error("key_not_saved", why=str(error))

    async def counts(self, now: float, hours: int) -> tuple[list[CountsRow], list[EpochRow]]:
        """Return the counts of the last hours, and the epochs. Raises StoreError.

        The counts are of whole hours, and of minutes before the first whole hour.
        """
        since = int(now) - hours * HOUR
        first_hour = -(-since // HOUR) * HOUR
        rows = await self._database.canary.counts(HOUR, first_hour, int(now) + HOUR)
        first_minute = -(-since // MINUTE) * MINUTE
        rows += await self._database.canary.counts(MINUTE, first_minute, first_hour)
        return rows, await self._database.canary.epochs(since)


async def read_saved(database: Database, now: float) -> tuple[SavedState, dict[str, Feature]]:
    """Return the state that the last daemon has saved. Raises StoreError."""
    progress = await database.canary.progress()
    saved = SavedState(
        counts=[
            *await database.canary.counts(MINUTE, int(now) - HOUR - MINUTE, int(now) + MINUTE),
            *await database.canary.counts(HOUR, int(now) - 2 * HOUR, int(now) + HOUR),
        ],
        epochs=await database.canary.epochs(int(now) - 2 * HOUR),
        keys=await database.canary.keys(),
        progress=progress,
        unix=now,
    )
    features = [Feature.model_validate(each) for each in json.loads(progress.get("features", "[]"))]
    saved_at = json.loads(progress.get("saved_at", "null"))
    return saved, {feature.name: resumed(feature, saved_at, now) for feature in features}


def newest_epoch(saved: SavedState, policy: CanaryPolicy | None) -> int:
    """Return the newest epoch in the database and the state file."""
    published = [feature.epoch for feature in policy.features.values()] if policy else []
    return max([0, *published, *(row.epoch for row in saved.epochs)])


def _features_text(features: Mapping[str, Feature]) -> str:
    return json.dumps([feature.model_dump(mode="json") for feature in features.values()])
