r"""This machine's part in its fleet: runs the parts that take part, and answers for the fleet.

    KillFollower         follows the kill switch, always
    Membership           joins, and announces this host
    Agent                deploys in this host's turn           \  while no other supervisor
    EvidencePublisher    publishes the canary's counts         /  has this host's name

None of them is needed by this machine itself: while the engine is away, they try again at growing
pauses, and all else goes on. What they do is little and bounded; an error in one of them, which
would be a bug, ends neither the daemon nor the others.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import structlog
from prometheus_client import Metric

from atlas_supervisor import errors
from atlas_supervisor.config import Settings
from atlas_supervisor.fleet.agent import Agent
from atlas_supervisor.fleet.documents import (
    HOSTS,
    PRESENT,
    KillSwitch,
    Presence,
    UnreadableDocumentError,
)
from atlas_supervisor.fleet.engine import NOTHING, Engine, EngineError, Snapshot
from atlas_supervisor.fleet.evidence import EvidencePublisher
from atlas_supervisor.fleet.gauges import fleet_gauges
from atlas_supervisor.fleet.kill_switch import KillFollower, read_record
from atlas_supervisor.fleet.local import LocalSupervisor
from atlas_supervisor.fleet.overview import Knowledge, Sighting, is_served, overview
from atlas_supervisor.fleet.presence import FEW_HOSTS, Membership, forget, installation_of
from atlas_supervisor.fleet.rollouts import Rollouts
from atlas_supervisor.fleet.this_machine import as_kills
from atlas_supervisor.fleet.view import FleetView
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.canary import Kills
from atlas_supervisor.store.audit import AuditStore
from atlas_supervisor.system.clock import jittered, now
from atlas_supervisor.system.program import own_version
from atlas_supervisor.system.threads import in_thread

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 1.0
"""Between two looks at this machine's own state, and the age of an answer that is given again."""
_ANSWER_SECONDS = 2.0
"""How long a look at the fleet waits for the engine."""
_GLANCE_SECONDS, _GLANCE_SECONDS_PER_HOST = 10.0, 2.0
"""Between two looks at the whole fleet if no one asks: of a thousand hosts, one reads it each two
seconds. Each such answer has a megabyte, and takes etcd and the host as long as a hundred reads of
the kill switch. So the hosts are counted first: else a thousand that start, or that find the engine
again, would read it all at once, and keep it from answering anything.
"""
_GAUGE_SECONDS = 60.0
"""How old a look may be whose numbers are exposed: of a thousand hosts, thirty expose them."""
_CATCH_UP_SECONDS = 1.0
_AFTER_BUG_SECONDS = 10.0


def recorded_kills(settings: Settings) -> Kills | None:
    """Return the kill switch to start with, however long the engine is away.

    None leaves the one in the state file in force: without a fleet an operator may end it.
    """
    record = read_record(settings.state_dir) if settings.fleet_etcd_endpoints else None
    return as_kills(record.switch) if record else None


def known_switch(settings: Settings, kills: Kills | None) -> KillSwitch | None:
    """Return the kill switch that is in force at the start; None if this fleet never set one.

    By the record, or if that is lost, by the state file's copy.
    """
    record = read_record(settings.state_dir)
    if record is not None:
        return record.switch if record.fleet == settings.fleet_name else None
    if kills is None:
        return None
    return KillSwitch(
        epoch=kills.epoch,
        every_feature=kills.every_feature,
        features=kills.features,
        set_ts=kills.since_ts,
        set_by=kills.by,
    )


class Fleet:
    """The fleet that this machine belongs to; it satisfies `api.ports.FleetPort`."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        local: LocalSupervisor,
        audit: AuditStore,
        *,
        kills: Kills | None,
    ) -> None:
        """`engine` is open, or opened before `run`; `kills` are those that canaries apply now."""
        self.name, self.host = settings.fleet_name, settings.host_in_fleet
        self._features = settings.canary_features
        self.engine = engine
        self.rollouts = Rollouts(engine)
        self._local = local
        self._audit = audit
        self._installation = installation_of(Path(settings.state_dir))
        self.membership = Membership(engine, self.host, self._installation, self._presence)
        self._agent = Agent(engine, local, self.host, announce=self.membership.announce)
        self._evidence = EvidencePublisher(
            engine, local, self.host, lambda: self.membership.fleet_size
        )
        known = known_switch(settings, kills)
        self._former_kills = kills if known is None else None
        """Those in force of a fleet that this host was in before."""
        self.kills = KillFollower(
            engine,
            local,
            self.name,
            state_dir=settings.state_dir,
            applied=known,
            acknowledge=self.membership.wake,
        )
        self._snapshot: Snapshot | None = None
        self._seen_at = float("-inf")
        self._sightings: dict[str, Sighting] = {}
        self._shown: FleetView | None = None
        self._shown_at = float("-inf")
        """The last view, and when it was made, by the monotonic clock."""
        self._looking = anyio.Lock()
        self._scope: anyio.CancelScope | None = None
        self._ended = anyio.Event()

    # The parts.

    async def run(self) -> None:
        """Take part until stopped. What has begun on this machine goes on without it."""
        parts = (
            *(self.kills.run, self.membership.run, self._take_part),
            *(self._note_changes, self._note_outages, self._keep_looking),
        )
        self._scope = anyio.CancelScope()
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    for part in parts:
                        tasks.start_soon(_kept, part)
        finally:
            self._ended.set()

    async def catch_up(self) -> None:
        """Learn of a kill that was set meanwhile, before workers start; within a second."""
        await self.kills.catch_up(within=_CATCH_UP_SECONDS)

    async def stop(self) -> None:
        """End `run`, and return once it has ended: nothing is reported any more."""
        if self._scope is not None:
            self._scope.cancel()
            await self._ended.wait()

    async def _take_part(self) -> None:
        """Take part in rollouts, and publish evidence, while this host's name is its own."""
        while True:
            await self.membership.alone.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._agent.run)
                tasks.start_soon(self._evidence.run)
                await self.membership.doubled.wait()
                tasks.cancel_scope.cancel()

    async def _note_changes(self) -> None:
        """Announce at once what others decide by, and whether this host begins or ends to wait.

        Why it waits changes with each slot that is taken: of a thousand hosts, all would announce
        themselves at each step of a rollout. So in a large fleet that can wait. So can the health
        score, unless the host begins or ends to serve.
        """
        announced = None
        while True:
            state, waits_for = self._local.state(), self._agent.waits_for
            serves = is_served(state.version, state.health_score)
            waits = waits_for if self.membership.fleet_size <= FEW_HOSTS else bool(waits_for)
            changed = (state.version, serves, state.mode, state.last_deploy, state.deploying, waits)
            if changed != announced:
                announced = changed
                self.membership.wake()
            await anyio.sleep(_LOOK_SECONDS)

    async def _note_outages(self) -> None:
        """Log when the engine goes away, and when it is back."""
        logged = None
        while True:
            outage = self.engine.outage
            if outage is not None and logged is None:
                since = outage.since_ts.isoformat()
                log.warning("fleet_engine_away", since_ts=since, why=outage.reason)
            if outage is None and logged is not None:
                log.info("fleet_engine_back", since_ts=logged.since_ts.isoformat())
            logged = outage
            await anyio.sleep(_LOOK_SECONDS)

    def _presence(self) -> Presence:
        state, applied = self._local.state(), self.kills.applied
        return Presence(
            version=state.version,
            daemon_version=own_version(),
            health_score=state.health_score,
            mode=state.mode,
            last_deploy=state.last_deploy,
            waits_for=self._agent.waits_for,
            kill_epoch=applied.epoch if applied else 0,
            installation=self._installation,
            sent_ts=now(),
        )

    async def _keep_looking(self) -> None:
        """Look now and then, so that gauges are of today, and a host that dies has been seen."""
        least = 0.0
        while True:
            with suppress(EngineError):
                self.membership.fleet_size = await self.engine.count(HOSTS)
            seconds = max(least, self.membership.fleet_size * _GLANCE_SECONDS_PER_HOST)
            await anyio.sleep(jittered(seconds))
            await self.view()
            least = _GLANCE_SECONDS

    # Answers.

    def gauges(self) -> Iterator[Metric]:
        """Yield the fleet's gauges, from memory: of all hosts, if they were looked at just now."""
        is_young = time.monotonic() - self._shown_at < _GAUGE_SECONDS
        is_connected = self.engine.outage is None
        return fleet_gauges(self.name, self._shown if is_young else None, connected=is_connected)

    def known(self) -> Knowledge:
        """Return this machine's knowledge of its fleet, from memory."""
        outage, has_double = self.engine.outage, self.membership.other is not None
        return Knowledge(
            fleet=self.name,
            host=self.host,
            snapshot=self._snapshot or NOTHING,
            outage=outage,
            own=self._presence() if outage and not has_double else None,
            has_double=has_double,
            sightings=dict(self._sightings),
            features=self._features,
            former_kills=self._former_kills,
            applied=self.kills.applied,
        )

    async def view(self) -> FleetView:
        """Return the fleet: by the engine's answer, or while it is away by what is known."""
        if self.engine.outage is None:
            with anyio.move_on_after(_ANSWER_SECONDS):
                await self._look()
        # In a thread: of a thousand hosts it takes some 60 ms, and the relay goes on meanwhile.
        self._shown = await in_thread(overview, self.known())
        self._shown_at = time.monotonic()
        return self._shown

    async def _look(self) -> None:
        """Read the whole fleet, unless that was done just now."""
        async with self._looking:
            if anyio.current_time() - self._seen_at < _LOOK_SECONDS:
                return
            try:
                snapshot = await self.engine.read("")
            except EngineError as error:
                log.debug("fleet_not_read", why=str(error))
                return
            self._snapshot, self._seen_at = snapshot, anyio.current_time()
            self._note_sightings(snapshot)

    def _note_sightings(self, snapshot: Snapshot) -> None:
        seen_ts = now()
        for entry in snapshot.entries:
            if entry.key.startswith(PRESENT):
                try:
                    presence = Presence.read(entry.key, entry.value)
                except UnreadableDocumentError:
                    continue  # the view names it
                host = entry.key.removeprefix(PRESENT)
                self._sightings[host] = Sighting(presence, seen_ts)

    async def _changed(
        self, actor: Actor, action: str, outcome: str, **detail: object
    ) -> FleetView:
        """Audit a change, and return the fleet after it."""
        subject = detail.pop("subject", None)
        await self._audit.record(
            actor, action, outcome, subject=str(subject) if subject else None, **detail
        )
        self._seen_at = float("-inf")
        return await self.view()

    # An operator's commands. They raise RefusedError, and EngineError.

    def _by(self, actor: Actor) -> str:
        return f"{actor.name} on {self.host}"

    async def begin(
        self, release: str, *, max_unavailable: int, waves: Sequence[float], actor: Actor
    ) -> FleetView:
        """Begin a rollout of a release that this host has; it is one of those that deploy it."""
        await self._local.find_release(release)
        rollout = await self.rollouts.begin(
            release, by=self._by(actor), max_unavailable=max_unavailable, waves=waves
        )
        return await self._changed(
            actor, "fleet_rollout", "begun", subject=rollout.rollout_id, release=release
        )

    async def steer(self, action: str, actor: Actor) -> FleetView:
        """Pause, resume or abort the rollout, or let the hosts that have it go back."""
        rollouts = self.rollouts
        if action == "rollback":
            rollout = await rollouts.roll_back(by=self._by(actor))
        else:
            commands = {"pause": rollouts.pause, "resume": rollouts.resume, "abort": rollouts.abort}
            rollout = await commands[action]()
        return await self._changed(
            actor, "fleet_rollout", str(action), subject=rollout.undoes or rollout.rollout_id
        )

    async def break_slot(self, host: str, generation: int, actor: Actor) -> FleetView:
        """Take the slot away that a host took at this generation."""
        await self.rollouts.break_slot(host, generation, by=self._by(actor))
        return await self._changed(
            actor, "fleet_slot", "broken", subject=host, generation=generation
        )

    async def kill(self, feature: str | None, actor: Actor) -> FleetView:
        """Switch a feature's canary off on every host; without one, all features."""
        try:
            switch = await self.kills.kill(feature, by=self._by(actor))
        except EngineError as error:
            name = feature or "FEATURE"
            raise errors.FLEET_KILL_UNAVAILABLE.error(problem=error, name=name) from error
        subject = feature or "every feature"
        return await self._changed(actor, "fleet_kill", "set", subject=subject, epoch=switch.epoch)

    async def reset(self, actor: Actor) -> FleetView:
        """End all kills: the settings of each host count again."""
        switch = await self.kills.reset(by=self._by(actor))
        return await self._changed(actor, "fleet_kill", "reset", epoch=switch.epoch)

    async def forget(self, host: str, actor: Actor) -> FleetView:
        """Remove a host that is gone for good."""
        await forget(self.engine, host)
        self._sightings.pop(host, None)
        return await self._changed(actor, "fleet_host", "forgotten", subject=host)


async def _kept(part: Callable[[], Awaitable[None]]) -> None:
    """Run a part, and again after a bug in it."""
    while True:
        try:
            await part()
        except Exception:
            log.exception("fleet_part_failed")
        await anyio.sleep(_AFTER_BUG_SECONDS)
