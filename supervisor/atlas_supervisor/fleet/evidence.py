"""Publishes this machine's canary counts to its fleet, whose evidence is the sum over hosts.

At most one write in ten seconds, and only if a count has changed: a thousand hosts are then at
most a hundred writes a second. The counts never fall. They are saved in this machine's database
with the position up to which events were read, so a restart neither loses nor repeats a call; and
where that database was lost, what the host published before is added to what it counts anew.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import anyio
import structlog

from atlas_supervisor.fleet.documents import EVIDENCE, ArmCount, Evidence, FeatureCount
from atlas_supervisor.fleet.engine import Engine, EngineError, Put, Unchanged
from atlas_supervisor.fleet.local import LocalSupervisor

log = structlog.get_logger(__name__)

LEAST_SECONDS = 10.0
"""Between two writes."""

Counts = Mapping[str, FeatureCount]


def added(one: Counts, other: Counts) -> dict[str, FeatureCount]:
    """Return the sum of two hosts' counts, or of two lives of one host."""
    none = FeatureCount(canary=ArmCount(calls=0, errors=0), stable=ArmCount(calls=0, errors=0))
    return {
        name: FeatureCount(
            canary=_sum(one.get(name, none).canary, other.get(name, none).canary),
            stable=_sum(one.get(name, none).stable, other.get(name, none).stable),
        )
        for name in sorted({*one, *other})
    }


def continued(counted: Evidence, published: Evidence | None) -> Evidence:
    """Return the evidence to publish, by the one that this host has published last."""
    earlier: Counts = {}
    if published is not None:
        is_same_life = published.boot_epoch == counted.boot_epoch
        earlier = published.earlier if is_same_life else published.features
    features = added(counted.features, earlier)
    return counted.model_copy(update={"features": features, "earlier": dict(earlier)})


class EvidencePublisher:
    """Publishes the counts of one host."""

    def __init__(self, engine: Engine, local: LocalSupervisor, host: str) -> None:
        self._engine = engine
        self._local = local
        self._key = EVIDENCE + host
        self._published: Evidence | None = None
        self._revision: int | None = None
        """Of what was published; None if it has to be read first."""

    async def run(self) -> None:
        """Publish until cancelled."""
        await anyio.sleep(random.uniform(0, LEAST_SECONDS))  # noqa: S311 - it spreads the load
        while True:
            try:
                await self.publish()
            except EngineError as error:
                self._revision = None  # it may have been written
                log.debug("fleet_evidence_not_published", why=str(error))
            await anyio.sleep(LEAST_SECONDS * random.uniform(1.0, 1.2))  # noqa: S311 - as above

    async def publish(self) -> None:
        """Publish the counts if they have changed. Raises EngineError."""
        if self._revision is None:
            found = await self._engine.read(self._key)
            value = found.value(self._key)
            self._published = None if value is None else Evidence.read(self._key, value)
            self._revision = found.revision_of(self._key)
        next_one = continued(self._local.evidence(), self._published)
        if not next_one.features or self._is_published(next_one):
            return
        condition = Unchanged(self._key, self._revision)
        self._revision = await self._engine.commit([condition], Put(self._key, next_one.written()))
        self._published = next_one if self._revision is not None else None

    def _is_published(self, evidence: Evidence) -> bool:
        known = self._published
        return known is not None and (known.boot_epoch, known.features) == (
            evidence.boot_epoch,
            evidence.features,
        )


def _sum(one: ArmCount, other: ArmCount) -> ArmCount:
    return ArmCount(calls=one.calls + other.calls, errors=one.errors + other.errors)
