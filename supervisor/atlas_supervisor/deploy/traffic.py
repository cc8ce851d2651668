"""Split and ramp as an operator sees and steers them, once a deploy has passed its gates."""

from __future__ import annotations

from contextlib import nullcontext

import anyio

from atlas_supervisor.config import Settings, Sticky
from atlas_supervisor.deploy import errors
from atlas_supervisor.deploy.idempotency import IdempotentRequests
from atlas_supervisor.deploy.machine import Event, Phase
from atlas_supervisor.deploy.recorder import Runs
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.deploy.status import DeployQueries
from atlas_supervisor.deploy.switch import NoSplitError, Switch
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.deploy import DeployRecord
from atlas_supervisor.model.idempotency_key import IdempotencyKey
from atlas_supervisor.model.ramp import RampAction, RampView
from atlas_supervisor.model.status import SplitView
from atlas_supervisor.store.audit import AuditStore
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.slots import Slots

_EVENTS = {
    RampAction.PAUSE: Event.PAUSE_REQUESTED,
    RampAction.RESUME: Event.RESUME_REQUESTED,
    RampAction.ADVANCE: Event.ADVANCE_REQUESTED,
}


class TrafficControl:
    """Splits the traffic between both versions; it satisfies `api.ports.TrafficPort`."""

    def __init__(
        self,
        *,
        settings: Settings,
        plane: Plane,
        slots: Slots,
        switch: Switch,
        runs: Runs,
        audit: AuditStore,
        queries: DeployQueries,
        requests: IdempotentRequests,
    ) -> None:
        self._settings = settings
        self._plane = plane
        self._slots = slots
        self._switch = switch
        self._runs = runs
        self._audit = audit
        self._queries = queries
        self._requests = requests
        self._steering = anyio.Lock()
        """Held while a request under a key is looked up and carried out."""

    def view(self) -> SplitView:
        """Return the split as it is now. Raises RefusedError if there can be none."""
        return self._view(self._sharing())

    def _view(self, run: DeployRun) -> SplitView:
        policy, active, staging = self._plane.policy, self._slots.active, self._slots.staging
        return SplitView(
            deploy_id=run.record.deploy_id,
            version=run.record.version,
            active_version=active.instance.release.version if active.instance else None,
            staging_slot=staging.name,
            staging_weight=policy.split.weight,
            weights=policy.weights,
            sticky=self._settings.traffic_sticky,
            testers=[str(network) for network in policy.split.testers],
        )

    def _sharing(self) -> DeployRun:
        """Return the deploy whose version may have a part of the traffic. Raises RefusedError."""
        if not self._settings.public_port:
            raise errors.no_public_port()
        for run in self._runs:
            if run.accepts(Event.SPLIT_REQUESTED):
                return run
        raise errors.nothing_to("split", self._runs.current)

    async def set_weight(self, weight: float, actor: Actor) -> SplitView:
        """Give staging this share of the new connections; return once that is durable."""
        if self._runs.stopping:
            raise errors.stopping()
        run, staging = self._sharing(), self._slots.staging.name
        by_address = self._settings.traffic_sticky is Sticky.ADDRESS
        what = "client addresses" if by_address else "new connections"
        outcome = "failed"
        try:
            await self._set(run, weight, f"{staging} gets {weight * 100:.6g} % of {what}", actor)
            outcome = "split"
        finally:
            subject = run.record.deploy_id
            await self._audit.record(
                actor, "traffic", outcome, subject=subject, staging_weight=weight
            )
        return self._view(run)

    async def _set(self, run: DeployRun, weight: float, what: str, actor: Actor) -> None:
        try:
            await self._switch.set_weight(weight)
        except NoSplitError as error:
            raise self._too_late(run) from error
        except OSError as error:
            raise errors.not_durable("the traffic is split as before", error) from error
        if run.phase is Phase.RAMP:
            what = f"{what}, which pauses the ramp"
        cause = f"{what}, requested by {actor.name}"
        if not await run.handled(Event.SPLIT_REQUESTED, cause, weight):
            raise self._too_late(run)  # what came first takes the share away

    async def ramp(
        self, action: RampAction, actor: Actor, key: IdempotencyKey | None = None
    ) -> RampView:
        """Pause, resume or advance the ramp; return it once that is published."""
        async with self._steering if key else nullcontext():
            if (deploy_id := await self._requests.before(key)) is None:
                return await self._steer(action, actor, key)
        record = await self._queries.find(deploy_id)
        if record is None or record.ramp is None:
            raise errors.nothing_to("ramp", self._runs.current)
        return _ramp_view(record)

    async def _steer(
        self, action: RampAction, actor: Actor, key: IdempotencyKey | None
    ) -> RampView:
        if self._runs.stopping:
            raise errors.stopping()
        event = _EVENTS[action]
        run = next((run for run in self._runs if run.phase is Phase.RAMP), None)
        if run is None or (ramp := run.record.ramp) is None or not run.accepts(event):
            raise errors.nothing_to("ramp", self._runs.current)
        if action is not RampAction.ADVANCE and ramp.paused == (action is RampAction.PAUSE):
            raise errors.ramp_not_possible(ramp)
        cause = f"{action} requested by {actor.name}"
        if action is RampAction.ADVANCE and ramp.next_share == 1:
            event = Event.SWITCH_REQUESTED
        taken = await self._requests.ramp(run, event, cause, key)
        outcome, subject = action.value if taken else "failed", run.record.deploy_id
        await self._audit.record(actor, "ramp", outcome, subject=subject, share=ramp.share)
        if not taken or run.record.ramp is None:
            raise errors.nothing_to("ramp", run)
        return _ramp_view(run.record)

    def _too_late(self, run: DeployRun) -> RefusedError:
        return errors.nothing_to("split", run)


def _ramp_view(record: DeployRecord) -> RampView:
    assert record.ramp is not None  # noqa: S101  # the callers have looked
    return RampView(
        **dict(record.ramp),
        deploy_id=record.deploy_id,
        version=record.version,
        phase=record.phase,
    )
