"""Writes down what is known of canaries: counts, evidence and the rings' positions, all at once.

What could not be written is owed and written later; until then the rings are not told that it was,
so a daemon that is killed reads it again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import structlog

from atlas_supervisor.canary.call_collector import CallCollector
from atlas_supervisor.canary.evidence import Evidence, Kept, Moment
from atlas_supervisor.canary.stats.ramp import Feature
from atlas_supervisor.canary.stats.rollups import HOUR, MINUTE
from atlas_supervisor.config import Settings
from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.canary import CanaryPolicy, CountsRow, EpochRow, FallbackView
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.store.canary import CanaryCommit
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.clock import Stopwatch

log = structlog.get_logger(__name__)

_COUNTS_SECONDS = 1.0
"""Counts alone are written so often: each time the disk is waited for."""
_TRIM_SECONDS = 600.0
_LATCH = "canary_fallback"


class CanaryPersistence:
    """What is owed to the database, and the numbers of epochs, of which each is given once."""

    def __init__(self, database: Database, settings: Settings, newest_epoch: int) -> None:
        self._database = database
        self._kept_days = settings.canary_retention_days
        self._newest_epoch = newest_epoch
        self._owed = False
        self._urgent = False
        self._epochs: list[EpochRow] = []
        self._keys: list[tuple[int, int]] = []
        self._ramps: list[int] | None = None
        self._audits: list[tuple[Actor, str, str, str | None, dict[str, Any]]] = []
        self._fallback_told = ""
        """When the fallback turned canaries off that the audit trail knows of."""
        self._since_write = Stopwatch()
        self._since_trim: Stopwatch | None = None

    def new_epoch(self) -> int:
        """Return a number that no epoch has had."""
        self._newest_epoch += 1
        return self._newest_epoch

    def take_back(self, newest: int) -> None:
        """Forget numbers that nobody was told."""
        self._newest_epoch = newest

    @property
    def newest_epoch(self) -> int:
        """The last number that was given."""
        return self._newest_epoch

    def owe_counts(self, *, at_once: bool = False) -> None:
        """Note that there is something to write: soon, or with the next `write`."""
        self._owed = True
        self._urgent = self._urgent or at_once

    def owe_epoch(self, row: EpochRow) -> None:
        """Note an epoch that has begun."""
        self._epochs.append(row)
        self._urgent = True

    def owe_features(self, ramps: Collection[int]) -> None:
        """Note that features have changed, and which ramps go on."""
        self._ramps = list(ramps)
        self._urgent = True

    def owe_audit(
        self, actor: Actor, action: str, outcome: str, subject: str | None, **detail: Any
    ) -> None:
        """Note what has happened, for the audit trail."""
        self._audits.append((actor, action, outcome, subject, detail))
        self._urgent = True

    def owe_fallback(self, fallback: FallbackView) -> None:
        """Note that the fallback has turned canaries off, for the audit trail."""
        told = fallback.model_dump(mode="json")
        self.owe_audit(SUPERVISOR, _LATCH, "latched", None, **told)

    def make_up(
        self,
        policy: CanaryPolicy | None,
        kept: Mapping[str, Feature],
        progress: Mapping[str, str],
    ) -> None:
        """Owe what the state file says and a daemon that was killed did not get to audit."""
        self._fallback_told = json.loads(progress.get("fallback_told", '""'))
        if policy is None:
            return
        if policy.fallback and policy.fallback.since_ts.isoformat() != self._fallback_told:
            self.owe_fallback(policy.fallback)
        for name, told in policy.features.items():
            known = kept.get(name) or Feature(name=name, percentage=told.share)
            if told.epoch > known.epoch and told.stage != known.stage:
                why = "decided right before the daemon was killed"
                self.owe_audit(SUPERVISOR, "canary", told.stage, name, reason=why, share=told.share)

    async def write(
        self,
        evidence: Evidence,
        features: Mapping[str, Feature],
        intake: CallCollector,
        now: Moment,
    ) -> None:
        """Write what is owed, if it is time; a failing disk is logged, and tried again."""
        due = self._urgent or (self._owed and self._since_write.seconds >= _COUNTS_SECONDS)
        if not due:
            return
        self._since_write = Stopwatch()
        self._keys += evidence.take_keys()
        commit = CanaryCommit(
            counts=evidence.spans.changed(),
            rings=intake.positions(),
            gone=intake.removed(),
            epochs=list(self._epochs),
            keys=list(self._keys),
            ramps=self._ramps,
            progress={
                **evidence.progress(),
                **self._told(),
                "features": _features_text(features),
            },
        )
        try:
            await self._database.canary.commit(commit)
        except StoreError as error:
            log.error("canary_not_written", why=str(error))
            return
        self._settle(commit, evidence, intake, now)
        await self._write_audits()
        await self._trim(now)

    def _told(self) -> dict[str, str]:
        return {"fallback_told": json.dumps(self._fallback_told)}

    def _settle(
        self, commit: CanaryCommit, evidence: Evidence, intake: CallCollector, now: Moment
    ) -> None:
        """Note that a commit is on the disk."""
        intake.accounted(commit.rings, commit.gone)
        evidence.spans.written(commit.counts)
        evidence.spans.forget(now.unix)
        del self._epochs[: len(commit.epochs)]
        del self._keys[: len(commit.keys)]
        self._ramps = None
        self._owed = self._urgent = False

    async def _write_audits(self) -> None:
        while self._audits:
            actor, action, outcome, subject, detail = self._audits[0]
            try:
                await self._database.audit.write(actor, action, outcome, subject=subject, **detail)
                if action == _LATCH:
                    self._fallback_told = datetime.fromisoformat(detail["since_ts"]).isoformat()
                    await self._database.canary.commit(CanaryCommit(progress=self._told()))
            except StoreError as error:
                self._urgent = True
                log.error("audit_failed", action=action, why=str(error))
                return
            self._audits.pop(0)

    async def _trim(self, now: Moment) -> None:
        if self._since_trim is not None and self._since_trim.seconds < _TRIM_SECONDS:
            return
        self._since_trim = Stopwatch()
        try:
            await self._database.canary.trim(now.unix, kept_days=self._kept_days)
        except StoreError as error:
            log.error("canary_not_trimmed", why=str(error))

    async def done_before(self, key: IdempotencyKey | None) -> bool:
        """Tell whether this was asked for before under its key. Raises RefusedError, StoreError."""
        return await self._database.keys.find(key) is not None

    async def remember(self, key: IdempotencyKey | None) -> None:
        """Remember the key of what was done; without it, it would be done once more."""
        if key is None or key.repeated:
            return
        try:
            await self._database.keys.add(key)
        except StoreError as error:
            log.error("key_not_remembered", why=str(error))

    async def counts(self, now: float, hours: int) -> tuple[list[CountsRow], list[EpochRow]]:
        """Return what is written down of the last hours, and the epochs.

        Whole hours where there are, and the minutes of the first one that is not whole. Raises
        StoreError.
        """
        since = int(now) - hours * HOUR
        first_hour = -(-since // HOUR) * HOUR
        rows = await self._database.canary.counts(HOUR, first_hour, int(now) + HOUR)
        first_minute = -(-since // MINUTE) * MINUTE
        rows += await self._database.canary.counts(MINUTE, first_minute, first_hour)
        return rows, await self._database.canary.epochs(since)


async def kept_by(database: Database, now: float) -> tuple[Kept, dict[str, Feature]]:
    """Return what was written down by the last daemon. Raises StoreError."""
    progress = await database.canary.progress()
    kept = Kept(
        counts=[
            *await database.canary.counts(MINUTE, int(now) - HOUR - MINUTE, int(now) + MINUTE),
            *await database.canary.counts(HOUR, int(now) - 2 * HOUR, int(now) + HOUR),
        ],
        epochs=await database.canary.epochs(int(now) - 2 * HOUR),
        keys=await database.canary.keys(),
        progress=progress,
    )
    features = [Feature.model_validate(each) for each in json.loads(progress.get("features", "[]"))]
    return kept, {feature.name: feature for feature in features}


def newest_epoch(kept: Kept, policy: CanaryPolicy | None) -> int:
    """Return the newest epoch that anybody may have been told of."""
    told = [feature.epoch for feature in policy.features.values()] if policy else []
    return max([0, *told, *(row.epoch for row in kept.epochs)])


def _features_text(features: Mapping[str, Feature]) -> str:
    return json.dumps([feature.model_dump(mode="json") for feature in features.values()])
