"""The supervisor on this machine, as its fleet asks for it: it satisfies `LocalSupervisor`.

A rollout's deploy is an ordinary one, with the machine's own gates, guard and mode, under an
idempotency key: the key is written together with the deploy's record, so that a daemon that was
killed finds the deploy again, however far it was.
"""

from __future__ import annotations

from contextlib import suppress

import anyio

from atlas_supervisor.canary.service import FeatureCanaries
from atlas_supervisor.canary.stats.counts import Arm
from atlas_supervisor.deploy.machine import Event, Phase
from atlas_supervisor.deploy.recorder import Runs
from atlas_supervisor.deploy.rollback import is_named
from atlas_supervisor.deploy.service import DeployService
from atlas_supervisor.deploy.status import DeployQueries
from atlas_supervisor.errors import AtlasError, RefusedError
from atlas_supervisor.fleet.documents import (
    ArmCount,
    Evidence,
    FeatureCount,
    HostDeploy,
    KillSwitch,
)
from atlas_supervisor.fleet.local import LocalOutcome, LocalState
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.canary import Kills
from atlas_supervisor.model.deploy import DeployRecord, Result, Transition
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.store.keys import KeyStore
from atlas_supervisor.system.clock import now
from atlas_supervisor.workers.slots import Slots

_ACTOR = Actor(name="fleet", origin="internal")

_THROUGH = frozenset({Phase.WARM, Phase.DRAIN, Phase.DRAIN_REVERTED, Phase.ENDED})
"""Phases after the guard, or after a deploy's failure."""

_AGAIN_SECONDS = 1.0
"""The pause before a record is read again that could not be read or followed."""


class ThisMachine:
    """Deploys, kills and evidence of this machine."""

    def __init__(
        self,
        *,
        deploys: DeployService,
        queries: DeployQueries,
        runs: Runs,
        slots: Slots,
        keys: KeyStore,
        canaries: FeatureCanaries,
    ) -> None:
        self._deploys = deploys
        self._queries = queries
        self._runs = runs
        self._slots = slots
        self._keys = keys
        self._canaries = canaries

    def state(self) -> LocalState:
        """Return the version that runs, its health and its last deploy that has a result."""
        status = self._queries.status()
        last = self._runs.answered
        return LocalState(
            version=status.version,
            health_score=status.health_score,
            mode=status.mode.value,
            last_deploy=_as_host_deploy(last) if last else None,
            deploying=status.deploy_in_progress,
        )

    async def find_release(self, release: str) -> None:
        """Raise RefusedError unless this machine has a release."""
        await self._deploys.find_release(release)

    async def deploy(self, release: str, *, key: str) -> LocalOutcome:
        """Deploy a release and wait until its guard has ended. Raises RefusedError."""
        record = await self._deploys.deploy(
            release=release, dry_run=False, actor=_ACTOR, key=_key(key, f"deploy {release}")
        )
        return await self._forward(record.deploy_id)

    async def go_back(self, release: str, *, key: str) -> LocalOutcome:
        """Go back to the version before a release; nothing is done where it does not run."""
        if (known := await self.outcome(key=key)) is not None:
            return known
        active = self._slots.active.instance
        if active is None or not is_named(active.release, release):
            version = active.release.version if active else None
            reason = f"{release} does not run here: there is nothing to go back from"
            return LocalOutcome(passed=True, deploy_id=None, version=version, reason=reason)
        record = await self._deploys.rollback(_ACTOR, _key(key, _back_from(release)))
        return await self._back(record.deploy_id)

    async def outcome(self, *, key: str) -> LocalOutcome | None:
        """Return the outcome of what was begun with a key, and wait for it if need be."""
        row = await self._keys.get(key)
        if row is None or row.deploy_id is None:
            return None
        is_back = row.fingerprint.startswith(_key(key, _back_from("")).fingerprint)
        return await (self._back if is_back else self._forward)(row.deploy_id)

    async def abort(self, *, key: str) -> None:
        """Give up what was begun with a key, if it is in progress and has not switched yet."""
        row, current = await self._keys.get(key), self._runs.current
        if row is not None and current is not None and current.record.deploy_id == row.deploy_id:
            with suppress(RefusedError):  # it has switched, or ended
                await self._deploys.abort(_ACTOR)

    async def kill(self, switch: KillSwitch) -> None:
        """Apply the fleet's kill switch; workers read it then. Raises OSError, unchanged then."""
        await self._canaries.kill(as_kills(switch))

    def evidence(self) -> Evidence:
        """Return all canary calls that were ever counted on this machine."""
        totals = self._canaries.totals()
        features = sorted(totals.canary.keys() | totals.stable.keys())
        return Evidence(
            boot_epoch=totals.origin,
            features={
                name: FeatureCount(
                    canary=_count(totals.canary.get(name)), stable=_count(totals.stable.get(name))
                )
                for name in features
            },
            counted_ts=now(),
        )

    async def _forward(self, deploy_id: str) -> LocalOutcome:
        """Wait for a deploy's guard: it has passed if the new version kept the traffic."""
        record = await self._through(deploy_id)
        passed, reason = record.result is Result.SWITCHED, record.reason or ""
        guard = [each for each in await self._transitions(deploy_id) if each.source == Phase.GUARD]
        if passed and guard and guard[-1].event != Event.PASSED:
            passed, reason = False, f"its guard did not end: {guard[-1].cause}"
        if not passed and not reason:
            reason = f"the deploy ended as {record.result}"
        return LocalOutcome(passed, deploy_id, record.version, "" if passed else reason)

    async def _back(self, deploy_id: str) -> LocalOutcome:
        """Wait for a way back: the deploy that was reverted, or one of the version before."""
        record = await self._through(deploy_id)
        if (record.requested or "").startswith("rollback"):
            return await self._forward(deploy_id)
        passed = record.result is Result.ROLLED_BACK
        version = self._queries.status().version
        reason = "" if passed else f"the deploy that was to be reverted ended as {record.result}"
        return LocalOutcome(passed, deploy_id, version, reason)

    async def _transitions(self, deploy_id: str) -> list[Transition]:
        while True:
            with suppress(AtlasError):
                return await self._queries.transitions(deploy_id)
            await anyio.sleep(_AGAIN_SECONDS)

    async def _through(self, deploy_id: str) -> DeployRecord:
        """Wait until a deploy's guard has ended, and return its record."""
        while True:
            with suppress(AtlasError):  # the database or the feed failed: they are tried again
                feed = await self._queries.events(after=None, deploy_id=deploy_id)
                try:
                    while True:
                        record = await self._queries.find(deploy_id)
                        if record is None:
                            raise LookupError(deploy_id)
                        if record.result is not None and record.phase in _THROUGH:
                            return record
                        if await feed.next() is None:
                            break
                finally:
                    feed.close()
            await anyio.sleep(_AGAIN_SECONDS)


def as_kills(switch: KillSwitch) -> Kills:
    """Return the fleet's kill switch as canaries apply it."""
    return Kills(
        epoch=switch.epoch,
        every_feature=switch.every_feature,
        features=switch.features,
        since_ts=switch.set_ts,
        by=switch.set_by,
    )


def _key(value: str, request: str) -> IdempotencyKey:
    return IdempotencyKey(value, fingerprint=f"fleet: {request}")


def _back_from(release: str) -> str:
    return f"go back from {release}"


def _count(arm: Arm | None) -> ArmCount:
    return ArmCount(calls=arm.calls, errors=arm.errors) if arm else ArmCount(calls=0, errors=0)


def _as_host_deploy(record: DeployRecord) -> HostDeploy:
    return HostDeploy(
        deploy_id=record.deploy_id,
        result=str(record.result),
        release=record.release,
        version=record.version,
        ended_ts=record.ended_ts,
    )
