"""Publishes this machine's canary counts to its fleet, whose evidence is the sum over hosts.

At most one write in ten seconds, and only if a count has changed; in a fleet of more than three
hundred hosts it is longer by as much, so that they are thirty writes a second in all. The counts
never fall. They are saved in this machine's database with the position up to which events were
read, so a restart neither loses nor repeats a call; and where that database was lost, what the host
published before is added to what it counts anew.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping
from contextlib import suppress

import anyio
import structlog

from atlas_supervisor.fleet.documents import (
    EVIDENCE,
    ArmCount,
    Evidence,
    FeatureCount,
    UnreadableDocumentError,
)
from atlas_supervisor.fleet.engine import Engine, EngineError, Put, Unchanged
from atlas_supervisor.fleet.local import LocalSupervisor

log = structlog.get_logger(__name__)

LEAST_SECONDS, _SECONDS_PER_HOST = 10.0, 0.03
"""Between two writes."""

Counts = Mapping[str, FeatureCount]


def combined(one: Counts, other: Counts, by: Callable[[int, int], int]) -> dict[str, FeatureCount]:
    """Return counts of which each number is that of both `by` a function."""
    none = ArmCount(calls=0, errors=0)
    nothing = FeatureCount(canary=none, stable=none)

    def arm(first: ArmCount, second: ArmCount) -> ArmCount:
        calls, errors = by(first.calls, second.calls), by(first.errors, second.errors)
        return ArmCount(calls=calls, errors=errors)

    both = {name: (one.get(name, nothing), other.get(name, nothing)) for name in {*one, *other}}
    return {
        name: FeatureCount(
            canary=arm(first.canary, second.canary), stable=arm(first.stable, second.stable)
        )
        for name, (first, second) in sorted(both.items())
    }


def continued(counted: Evidence, published: Evidence | None) -> Evidence:
    """Return the evidence to publish, by the one that this host has published last."""
    if published is None:
        return counted
    is_same_life = published.boot_epoch == counted.boot_epoch
    earlier = published.earlier if is_same_life else published.features
    features = combined(counted.features, earlier, operator.add)
    # The machine went down with calls that were published and not written to its disk yet.
    features = combined(features, published.features, max)
    return counted.model_copy(update={"features": features, "earlier": dict(earlier)})


class EvidencePublisher:
    """Publishes the counts of one host."""

    def __init__(
        self, engine: Engine, local: LocalSupervisor, host: str, fleet_size: Callable[[], int]
    ) -> None:
        self._engine = engine
        self._fleet_size = fleet_size
        self._local = local
        self._key = EVIDENCE + host
        self._published: Evidence | None = None
        """By this process."""
        self._stands: Evidence | None = None
        self._revision: int | None = None
        """Of what stands in the engine; None if it has to be read first."""

    async def run(self) -> None:
        """Publish until cancelled."""
        await anyio.sleep(random.uniform(0, LEAST_SECONDS))  # noqa: S311 - it spreads the load
        while True:
            try:
                await self.publish()
            except EngineError as error:
                self._revision = None  # it may have been written
                log.debug("fleet_evidence_not_published", why=str(error))
            seconds = max(LEAST_SECONDS, self._fleet_size() * _SECONDS_PER_HOST)
            await anyio.sleep(seconds * random.uniform(1.0, 1.2))  # noqa: S311 - as above

    async def publish(self) -> None:
        """Publish the counts if they have changed. Raises EngineError."""
        if self._revision is None:
            found = await self._engine.read(self._key)
            value = found.value(self._key)
            self._revision = found.revision_of(self._key)
            self._stands = None
            if value is not None:
                with suppress(UnreadableDocumentError):  # it is written anew
                    self._stands = Evidence.read(self._key, value)
        # What this process has published is right, also if the engine has lost it.
        evidence = continued(self._local.evidence(), self._published or self._stands)
        if not evidence.features or _counts(evidence) == _counts(self._stands):
            return
        condition = Unchanged(self._key, self._revision)
        self._revision = await self._engine.commit([condition], Put(self._key, evidence.written()))
        if self._revision is not None:
            self._published = self._stands = evidence


def _counts(evidence: Evidence | None) -> tuple[str, Counts] | None:
    return (evidence.boot_epoch, evidence.features) if evidence else None
