"""Builds the parts that run on open sockets and files, and joins them.

This is wiring alone, in the order in which the parts need each other: what watches the active
worker, what deploys, what the API calls. `daemon` starts and stops them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from anyio.abc import TaskGroup

from atlas_supervisor.api.ports import Control
from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.collector import GaugeCollector
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.executor import Executor
from atlas_supervisor.deploy.hold import Holds
from atlas_supervisor.deploy.idempotency import IdempotentRequests
from atlas_supervisor.deploy.landing_watch import LandingWatch
from atlas_supervisor.deploy.machine import Phase
from atlas_supervisor.deploy.recorder import Recorder, Runs
from atlas_supervisor.deploy.recycler import Recycler
from atlas_supervisor.deploy.service import DeployService
from atlas_supervisor.deploy.status import DeployQueries
from atlas_supervisor.deploy.switch import Switch
from atlas_supervisor.deploy.traffic import TrafficControl
from atlas_supervisor.fleet.engine import Engine
from atlas_supervisor.fleet.fleet import Fleet
from atlas_supervisor.fleet.neighbours import Listeners, Neighbours
from atlas_supervisor.fleet.this_machine import ThisMachine
from atlas_supervisor.health.monitor import HealthMonitor
from atlas_supervisor.logs.log_service import LogService
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.judgement import ComparisonRules
from atlas_supervisor.model.status import DaemonView
from atlas_supervisor.opening import Opened
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.reload import Reloads
from atlas_supervisor.requests.collector import InstanceName
from atlas_supervisor.store.state_folder import LOGS_DIRECTORY
from atlas_supervisor.system.children import Reaper
from atlas_supervisor.telemetry.logging_setup import OWN_LOG
from atlas_supervisor.telemetry.metrics import Metrics
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.launch import address_secret
from atlas_supervisor.workers.output import keep_bounded
from atlas_supervisor.workers.releases import Releases
from atlas_supervisor.workers.slots import Slots
from atlas_worker.contract.addresses import key_id


class Assembly:
    """The parts of one daemon that has its sockets, files and slots."""

    def __init__(
        self,
        *,
        settings: Settings,
        opened: Opened,
        plane: Plane,
        slots: Slots,
        prober: HttpProber,
        releases: Releases,
        metrics: Metrics,
        tasks: TaskGroup,
        view: Callable[[], DaemonView],
        keep: Callable[[], Awaitable[None]],
        engine: Engine | None,
    ) -> None:
        """Join them.

        `view` gives the daemon's part of the status, `keep` has the plane's sockets kept, `engine`
        is the fleet's, if there is a fleet.
        """
        self._settings = settings
        self._opened = opened
        self._plane = plane
        self._slots = slots
        self._metrics = metrics
        audit, database = opened.database.audit, opened.database
        self._watch = LandingWatch(settings=settings, slots=slots, plane=plane, audit=audit)
        self._events = EventHub(database.transitions, metrics.deploys.count)
        self.runs = Runs()
        self.recycler = Recycler(
            settings,
            slots,
            self.runs,
            held=lambda: plane.held,
            counted=metrics.deploys.recycled,
        )
        self._monitor = HealthMonitor(
            settings=settings,
            prober=prober,
            plane=plane,
            database=database,
            state=opened.state,
            subject=slots.active_worker,
            watched=self._watch.health,
            canaries=opened.canaries.check,
        )
        self.holds = Holds(
            settings=settings,
            plane=plane,
            state=opened.state,
            runs=self.runs,
            audit=audit,
            tasks=tasks,
            keep=keep,
        )
        switch = Switch(
            settings=settings,
            plane=plane,
            slots=slots,
            state=opened.state,
            tasks=tasks,
            changed=self._monitor.switched,
        )
        self.queries = DeployQueries(
            settings=settings,
            slots=slots,
            plane=plane,
            releases=releases,
            database=database,
            events=self._events,
            state=opened.state,
            runs=self.runs,
            canaries=opened.canaries,
            request_figures=opened.requests.figures,
            recent_requests=opened.requests.recent,
            health_score=lambda: self._monitor.health().score,
            recycler=self.recycler,
            daemon=view,
        )
        self.service = self._deploys(switch, prober, releases, tasks)
        self._traffic = TrafficControl(
            settings=settings,
            plane=plane,
            slots=slots,
            switch=switch,
            runs=self.runs,
            audit=audit,
            queries=self.queries,
            requests=IdempotentRequests(database.keys),
        )
        slots.on_worker_down = self.service.worker_down
        self.fleet = self._fleet(engine) if engine is not None else None
        self._count_requests()

    def _deploys(
        self, switch: Switch, prober: HttpProber, releases: Releases, tasks: TaskGroup
    ) -> DeployService:
        opened = self._opened
        executor = Executor(
            settings=self._settings,
            slots=self._slots,
            switch=switch,
            plane=self._plane,
            prober=prober,
            requests=opened.requests,
            save_ramp=opened.database.deploys.save_ramp,
            check_landing=self._watch.request,
        )
        recorder = Recorder(
            opened.database, opened.state, self._events, self._settings.after_failure
        )
        return DeployService(
            settings=self._settings,
            slots=self._slots,
            executor=executor,
            recorder=recorder,
            releases=releases,
            database=opened.database,
            events=self._events,
            state=opened.state,
            runs=self.runs,
            queries=self.queries,
            tasks=tasks,
        )

    def _fleet(self, engine: Engine) -> Fleet:
        """Return this machine's part in the fleet that the engine is of."""
        opened = self._opened
        local = ThisMachine(
            deploys=self.service,
            queries=self.queries,
            runs=self.runs,
            slots=self._slots,
            keys=opened.database.keys,
            canaries=opened.canaries,
        )
        kills = opened.canaries.view().kills
        return Fleet(self._settings, engine, local, opened.database.audit, kills=kills)

    def _count_requests(self) -> None:
        """Say whose requests are collected, and how versions are compared."""
        requests, settings, slots = self._opened.requests, self._settings, self._slots
        requests.present = lambda: [
            InstanceName(each.name, each.slot, each.release.version, each.kit)
            for each in slots.instances()
        ]
        requests.relayed = self._plane.tallies
        secret = address_secret(settings)
        for tally in self._plane.tallies().values():
            tally.secret = secret
        requests.compare_by(
            ComparisonRules(
                alpha=settings.alpha_of_a_test,
                margin=settings.guard_margin,
                promote_alpha=settings.canary_promote_alpha,
                latency_margin=settings.canary_latency_margin,
                key_id=key_id(secret),
            )
        )

    def background(self) -> Iterator[Callable[[], Coroutine[Any, Any, None]]]:
        """Yield what runs beside deploys, from before the first worker is taken in."""
        opened, audit = self._opened, self._opened.database.audit
        put_back = partial(audit.record, SUPERVISOR, "state_file", "put_back")
        yield from (
            opened.database.outbox.run,
            opened.registry.run,
            Reaper().run,
            opened.canaries.run,
            opened.requests.run,
            self._monitor.run,
            self._watch.run,
            partial(opened.state.watch, put_back),
            self._metrics.loop.sample,
            self._slots.measure,
            partial(keep_bounded, [slot.log for slot in self._slots]),
        )

    def neighbours(self, listeners: Listeners, engine: Engine | None) -> Neighbours:
        """Return the answers to HAProxy and FleetLock; `engine` is None without a fleet."""
        runs = self.runs
        return Neighbours(
            listeners,
            engine,
            self._settings.host_in_fleet,
            serves=self.queries.ready,
            ramps=lambda: any(run.record.phase == Phase.RAMP for run in runs),
            deploys=lambda: runs.current is not None,
            audit=self._opened.database.audit.enqueue,
        )

    def control(self, reloads: Reloads) -> Control:
        """Return the operations behind the API."""
        settings, opened = self._settings, self._opened
        collector = GaugeCollector(
            queries=self.queries,
            slots=self._slots,
            plane=self._plane,
            events=self._events,
            state=opened.state,
            requests=opened.requests.exposed,
            more=self.fleet.gauges if self.fleet is not None else tuple,
        )
        own_log = settings.state_dir / LOGS_DIRECTORY / OWN_LOG
        return Control(
            deploys=self.service,
            queries=self.queries,
            traffic=self._traffic,
            requests=opened.requests,
            holds=self.holds,
            reloads=reloads,
            canary=opened.canaries,
            health=self._monitor,
            audit=opened.database.audit,
            trail=opened.database.trail,
            logs=LogService(own_log, {slot.name: slot.log for slot in self._slots}),
            metrics=collector.exposition(self._metrics),
            fleet=self.fleet,
        )
