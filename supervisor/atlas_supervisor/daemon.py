"""The daemon: opens its parts in order, runs them in one task group, and closes them in reverse.

Everything that can refuse a start comes first: token, TLS, the API's sockets, database, state file,
the ports. Only then are the workers of an earlier daemon touched, which may be serving.

This is wiring alone. What a part decides is in the part; the process around the daemon (lock,
log, signals) is in `main`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from functools import partial
from socket import socket

import anyio
import structlog
from anyio.abc import TaskGroup

from atlas_supervisor.api.options import api_options
from atlas_supervisor.api.ports import Control
from atlas_supervisor.api.server import bind, serve
from atlas_supervisor.canary.service import FeatureCanaries, open_canaries
from atlas_supervisor.config import Settings, Sticky
from atlas_supervisor.deploy.collector import GaugeCollector
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.executor import Executor
from atlas_supervisor.deploy.hold import Holds
from atlas_supervisor.deploy.initial_state import active_release
from atlas_supervisor.deploy.landing_watch import LandingWatch
from atlas_supervisor.deploy.machine import Phase
from atlas_supervisor.deploy.recorder import Recorder, Runs
from atlas_supervisor.deploy.recovery import SHARING, recover
from atlas_supervisor.deploy.recycler import Recycler
from atlas_supervisor.deploy.service import DeployService
from atlas_supervisor.deploy.status import DeployQueries
from atlas_supervisor.deploy.switch import Switch, split_of
from atlas_supervisor.deploy.traffic import TrafficControl
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.health.monitor import HealthMonitor
from atlas_supervisor.logs.log_service import LogService
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.judgement import ComparisonRules
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.status import DaemonView, Start
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.probes.http_client import RequestShape
from atlas_supervisor.reload import LOCK, Reloads, Requests
from atlas_supervisor.requests.collector import InstanceName, RequestCollector
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.deploys import UnfinishedDeploy
from atlas_supervisor.store.state_folder import DATABASE_FILE, LOGS_DIRECTORY
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.store.statements import StoreError, is_damage
from atlas_supervisor.system.children import Reaper, become_subreaper
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.system.procfs import tag_for
from atlas_supervisor.system.program import Program, own_version
from atlas_supervisor.system.service_manager import ServiceManager
from atlas_supervisor.system.socket_store import SocketStore
from atlas_supervisor.telemetry.logging_setup import OWN_LOG
from atlas_supervisor.telemetry.metrics import Metrics
from atlas_supervisor.traffic import PATIENCE_SECONDS, Endpoints, Plane, Split, make_plane
from atlas_supervisor.workers.adoption import take_over
from atlas_supervisor.workers.output import keep_bounded
from atlas_supervisor.workers.registry import WorkerRegistry, end_strays
from atlas_supervisor.workers.releases import Releases
from atlas_supervisor.workers.slot import Slot
from atlas_supervisor.workers.slots import Slots

log = structlog.get_logger(__name__)

_LATEST_READ = 50
"""So many deploys are read at the start to see whether the database holds what it should."""


@contextmanager
def _refused_by_store() -> Iterator[None]:
    """Refuse to start on a database that can't be read or written."""
    try:
        yield
    except StoreError as error:
        raise StartRefusedError(str(error)) from error


class Daemon:
    """One running daemon."""

    def __init__(
        self, settings: Settings, passed: PassedSockets, program: Program, lock: int
    ) -> None:
        """`lock` is the descriptor of the held lock, which a reload passes on."""
        self._settings = settings
        self._passed = passed
        self._program = program
        self._lock = lock
        self._started_ts = now()
        self._manager = ServiceManager(reloaded=program.reloaded)
        self._metrics = Metrics(
            version=own_version(),
            features=settings.canary_features,
            slot_ports=settings.slot_ports,
            state_dir=settings.state_dir,
        )
        self._plane: Plane = make_plane(
            Endpoints(
                str(settings.public_host),
                settings.public_port,
                settings.slot_ports,
                proxy_protocol=settings.relay_proxy_protocol,
                count_requests=settings.relay_count_requests,
                # The refusal of an outage comes first.
                patience_seconds=PATIENCE_SECONDS + settings.ready_timeout_seconds,
            ),
            settings.socket_passing,
        )
        self._releases = Releases.of(settings)
        # Opened by `run`, in this order.
        self._store: SocketStore
        self._database: Database
        self._registry: WorkerRegistry
        self._state: StateKeeper
        self._canaries: FeatureCanaries
        self._requests: RequestCollector

    async def run(self, requests: Requests) -> None:
        """Start, wait until it is time to stop, and stop.

        If the daemon itself fails, workers are left alone: they go on serving.
        """
        become_subreaper()
        async with AsyncExitStack() as stack:
            options = api_options(self._settings)
            bound = await stack.enter_async_context(bind(options, self._passed))
            self._store = SocketStore(
                self._settings.state_dir,
                self._manager,
                self._passed,
                reloaded=self._program.reloaded,
            )
            stack.callback(self._store.close)
            await self._store.drop_misplaced(self._passed, self._plane.addresses)
            with _refused_by_store():
                unfinished = await self._open_store(stack)
                active = self._settings.slot_of_port(self._state.state.active_port)
                inherited = await take_over(
                    self._settings,
                    self._plane,
                    self._registry,
                    active,
                    self._passed,
                    split=self._split_of(unfinished),
                    held=self._program.reloaded and self._state.state.hold is not None,
                )
            stack.push_async_callback(self._plane.close)
            await self._keep()
            self._passed.close()
            prober = await stack.enter_async_context(
                HttpProber(
                    self._metrics.probes.probed,
                    shape=RequestShape.of(self._settings),
                    reach=self._plane.probe_port,
                )
            )
            async with anyio.create_task_group() as tasks:
                slots = Slots(
                    settings=self._settings,
                    plane=self._plane,
                    prober=prober,
                    registry=self._registry,
                    tasks=tasks,
                    active=active,
                    inherited=inherited,
                    checked=self._releases.checked,
                )
                await self._serve(
                    slots,
                    prober,
                    api=partial(serve, options=options, bound=bound),
                    control=bound.sockets,
                    unfinished=unfinished,
                    tasks=tasks,
                    requests=requests,
                )
                tasks.cancel_scope.cancel()

    async def _keep(self) -> None:
        """Have the plane's sockets kept for the next daemon."""
        # Where it relays, clients wait for the daemon, and a worker alone is of no use to them.
        relays = self._plane.name == "relay"
        tag = 0 if relays else tag_for(str(self._settings.state_dir), "")
        await self._store.keep(self._plane.sockets(), tag)

    def _split_of(self, unfinished: UnfinishedDeploy | None) -> Split | None:
        """Return the part of the traffic that staging had when the last daemon ended."""
        if unfinished is None or unfinished.record.phase not in SHARING:
            return None
        weight, guarded = self._state.state.staging_weight, unfinished.record.phase == Phase.GUARD
        deploy_id = unfinished.record.deploy_id
        return split_of(self._settings, deploy_id, weight, holdback=guarded)

    async def _open_store(self, stack: AsyncExitStack) -> UnfinishedDeploy | None:
        """Open database and state file; without what the database holds if that is damaged."""
        try:
            async with AsyncExitStack() as attempt:
                unfinished = await self._read_store(attempt)
                stack.push_async_exit(attempt.pop_all())
                return unfinished
        except Exception as error:
            if not is_damage(error):
                raise
            log.error("database_damaged", why=str(error), kind=type(error).__name__)
        return await self._read_store(stack, damaged=True)

    async def _read_store(
        self, stack: AsyncExitStack, *, damaged: bool = False
    ) -> UnfinishedDeploy | None:
        """Read all that a start goes by, and end what the last daemon left unfinished."""
        folder, storage = self._settings.state_dir, self._metrics.storage
        database, aside = await stack.enter_async_context(
            open_database(folder / DATABASE_FILE, storage.database.written, damaged=damaged)
        )
        self._database = database
        if aside is not None:
            log.error("database_unreadable", aside=aside.name)
            await database.audit.write(SUPERVISOR, "database", "set_aside", aside=aside.name)
        await database.audit.record(
            SUPERVISOR,
            "daemon",
            "started",
            pid=os.getpid(),
            version=own_version(),
            reloaded=self._program.reloaded,
        )
        self._registry = WorkerRegistry(database.statements)
        self._state, unfinished = await recover(
            self._settings, database, storage.state_file.written
        )
        self._canaries = await open_canaries(
            self._settings, self._state, database, self._metrics.canaries.observe
        )
        stack.callback(self._canaries.close)
        self._requests = RequestCollector(folder, database.requests)
        await self._requests.restore()
        # Values that are read later, and would fail then.
        self._canaries.view()
        await self._registry.rows()
        await database.versions.all()
        await database.deploys.latest(_LATEST_READ)
        return unfinished

    async def _serve(
        self,
        slots: Slots,
        prober: HttpProber,
        *,
        api: Callable[[Control], AbstractAsyncContextManager[None]],
        control: Mapping[str, socket],
        unfinished: UnfinishedDeploy | None,
        tasks: TaskGroup,
        requests: Requests,
    ) -> None:
        """Run everything on the open sockets and files until it is time to stop."""
        audit = self._database.audit
        watch = LandingWatch(settings=self._settings, slots=slots, plane=self._plane, audit=audit)
        events = EventHub(self._database.transitions, self._metrics.deploys.count)
        runs = Runs()
        recycler = Recycler(
            self._settings,
            slots,
            runs,
            held=lambda: self._plane.held,
            counted=self._metrics.deploys.recycled,
        )
        monitor = self._monitor(slots, prober, watch)
        service, queries, traffic, holds = self._deploys(
            slots,
            prober,
            monitor=monitor,
            watch=watch,
            events=events,
            runs=runs,
            recycler=recycler,
            tasks=tasks,
        )
        slots.on_worker_down = service.worker_down
        self._requests.present = lambda: [
            InstanceName(each.name, each.slot, each.release.version, each.kit)
            for each in slots.instances()
        ]
        self._requests.relayed = self._plane.tallies
        self._requests.rules = ComparisonRules(
            alpha=self._settings.guard_alpha,
            margin=self._settings.guard_margin,
            promote_alpha=self._settings.canary_promote_alpha,
            latency_margin=self._settings.canary_latency_margin,
            by_address=self._settings.traffic_sticky is Sticky.ADDRESS,
        )
        for background in (
            self._database.outbox.run,
            self._registry.run,
            Reaper().run,
            self._canaries.run,
            self._requests.run,
            monitor.run,
            watch.run,
            partial(self._state.watch, partial(audit.record, SUPERVISOR, "state_file", "put_back")),
            self._metrics.loop.sample,
            slots.measure,
            partial(keep_bounded, [slot.log for slot in slots]),
        ):
            tasks.start_soon(background)
        slots.take_in()
        if slots.adopted:
            await audit.record(SUPERVISOR, "daemon", "adopted", workers=slots.adopted)
        await holds.take_in()
        with _refused_by_store():
            await service.resume(unfinished)  # before the API can ask for another deploy
            release = await self._active_release(slots.active)
        reloads = Reloads(
            settings=self._settings,
            program=self._program,
            daemon=partial(self._view, slots),
            descriptors=partial(self._descriptors, control),
            runs=runs,
            slots=slots,
            plane=self._plane,
            database=self._database,
            registry=self._registry,
            state=self._state,
            manager=self._manager,
        )
        ports = self._control(
            slots, service, queries, traffic, holds, monitor=monitor, events=events, reloads=reloads
        )
        tasks.start_soon(slots.start_active, release)
        tasks.start_soon(recycler.run, service.recycle)
        tasks.start_soon(self._manager.run, queries.ready, queries.summary, self._registry.rows)
        tasks.start_soon(reloads.follow_signal, requests.reload)
        while True:
            async with api(ports):
                await reloads.until_accepted(requests.stop)
                if requests.stop.is_set():
                    await self._stop(slots, service, holds)
                    return
            await reloads.replace(requests.stop)

    async def _stop(self, slots: Slots, service: DeployService, holds: Holds) -> None:
        """End every deploy and every worker."""
        self._manager.stopping = True
        await holds.stop()
        slots.begin_stop()
        await service.stop()
        await slots.stop()
        await self._store.empty()
        await end_strays(self._settings.state_dir)
        await self._requests.finish()
        await self._registry.flush()
        await self._database.audit.record(SUPERVISOR, "daemon", "stopped", pid=os.getpid())

    def _descriptors(self, control: Mapping[str, socket]) -> dict[str, int]:
        """Return the descriptors that the next program gets at a reload, by name."""
        sockets = {**control, **self._plane.sockets()}
        return {LOCK: self._lock, **{name: sock.fileno() for name, sock in sockets.items()}}

    def _view(self, slots: Slots) -> DaemonView:
        start = Start.ADOPTED if slots.adopted else Start.FRESH
        return DaemonView(
            version=own_version(),
            pid=os.getpid(),
            started_ts=self._started_ts,
            start=Start.RELOAD if self._program.reloaded else start,
            settings_pending=slots.settings_pending,
        )

    async def _active_release(self, slot: Slot) -> Release:
        """Return the release that runs, or is to be started. Raises StoreError."""
        if slot.alive and slot.instance is not None:
            return slot.instance.release
        return await active_release(
            self._settings, self._database, self._state, self._releases, slot.name
        )

    def _monitor(self, slots: Slots, prober: HttpProber, watch: LandingWatch) -> HealthMonitor:
        return HealthMonitor(
            settings=self._settings,
            prober=prober,
            plane=self._plane,
            database=self._database,
            state=self._state,
            subject=slots.active_worker,
            watched=watch.health,
            canaries=self._canaries.check,
        )

    def _deploys(
        self,
        slots: Slots,
        prober: HttpProber,
        *,
        monitor: HealthMonitor,
        watch: LandingWatch,
        events: EventHub,
        runs: Runs,
        recycler: Recycler,
        tasks: TaskGroup,
    ) -> tuple[DeployService, DeployQueries, TrafficControl, Holds]:
        audit = self._database.audit
        holds = Holds(
            settings=self._settings,
            plane=self._plane,
            state=self._state,
            runs=runs,
            audit=audit,
            tasks=tasks,
            keep=self._keep,
        )
        switch = Switch(
            settings=self._settings,
            plane=self._plane,
            slots=slots,
            state=self._state,
            changed=monitor.switched,
        )
        executor = Executor(
            settings=self._settings,
            slots=slots,
            switch=switch,
            plane=self._plane,
            prober=prober,
            requests=self._requests,
            save_ramp=self._database.deploys.save_ramp,
            check_landing=watch.request,
        )
        queries = DeployQueries(
            settings=self._settings,
            slots=slots,
            plane=self._plane,
            releases=self._releases,
            database=self._database,
            events=events,
            state=self._state,
            runs=runs,
            canaries=self._canaries,
            request_figures=self._requests.figures,
            health_score=lambda: monitor.health().score,
            recycler=recycler,
            daemon=partial(self._view, slots),
        )
        service = DeployService(
            settings=self._settings,
            slots=slots,
            executor=executor,
            recorder=Recorder(self._database, self._state, events, self._settings.after_failure),
            releases=self._releases,
            database=self._database,
            events=events,
            state=self._state,
            runs=runs,
            queries=queries,
            tasks=tasks,
        )
        traffic = TrafficControl(
            settings=self._settings,
            plane=self._plane,
            slots=slots,
            switch=switch,
            runs=runs,
            audit=audit,
        )
        return service, queries, traffic, holds

    def _control(
        self,
        slots: Slots,
        service: DeployService,
        queries: DeployQueries,
        traffic: TrafficControl,
        holds: Holds,
        *,
        monitor: HealthMonitor,
        events: EventHub,
        reloads: Reloads,
    ) -> Control:
        own_log = self._settings.state_dir / LOGS_DIRECTORY / OWN_LOG
        collector = GaugeCollector(
            queries=queries,
            slots=slots,
            plane=self._plane,
            events=events,
            state=self._state,
            requests=self._requests.exposed,
        )
        return Control(
            deploys=service,
            queries=queries,
            traffic=traffic,
            holds=holds,
            reloads=reloads,
            canary=self._canaries,
            health=monitor,
            audit=self._database.audit,
            trail=self._database.trail,
            logs=LogService(own_log, {slot.name: slot.log for slot in slots}),
            metrics=collector.exposition(self._metrics),
        )
