"""The split as an operator sees and sets it, while a deploy that has passed its gates waits."""

from __future__ import annotations

from atlas_supervisor.config import Settings, Sticky
from atlas_supervisor.deploy import errors
from atlas_supervisor.deploy.machine import Event
from atlas_supervisor.deploy.recorder import Runs
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.deploy.switch import NoSplitError, Switch
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.status import SplitView
from atlas_supervisor.store.audit import AuditStore
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.slots import Slots


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
    ) -> None:
        self._settings = settings
        self._plane = plane
        self._slots = slots
        self._switch = switch
        self._runs = runs
        self._audit = audit

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
        if not run.offer(Event.SPLIT_REQUESTED, f"{what}, requested by {actor.name}"):
            raise self._too_late(run)  # what came first takes the share away
        await run.settled.wait()

    def _too_late(self, run: DeployRun) -> RefusedError:
        return errors.nothing_to("split", run)
