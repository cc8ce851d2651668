"""The daemon: opens its parts in order, runs them in one task group, and closes them in reverse.

Everything that can refuse a start comes first: token, TLS, the API's sockets, database, state file,
the ports. Only then are the workers of an earlier daemon touched, which may be serving.

What a part decides is in the part, and how parts are joined in `assembly`; the process around the
daemon (lock, log, signals) is in `main`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from socket import socket

import anyio
from anyio.abc import TaskGroup

from atlas_supervisor.api.options import ApiOptions, api_options
from atlas_supervisor.api.server import Bound, bind, serve
from atlas_supervisor.assembly import Assembly
from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.initial_state import active_release
from atlas_supervisor.deploy.machine import Phase
from atlas_supervisor.deploy.recovery import SPLIT_PHASES
from atlas_supervisor.deploy.switch import split_of
from atlas_supervisor.fleet.access import opened_engine
from atlas_supervisor.fleet.neighbours import Listeners, Neighbours, listening
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.status import DaemonView, Start
from atlas_supervisor.opening import Opened, open_all, refused_by_store
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.probes.http_client import RequestShape
from atlas_supervisor.reload import LOCK, Reloads, Requests
from atlas_supervisor.system.children import become_subreaper
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.system.procfs import tag_for
from atlas_supervisor.system.program import Program, own_version
from atlas_supervisor.system.service_manager import ServiceManager
from atlas_supervisor.system.socket_store import SocketStore
from atlas_supervisor.telemetry.metrics import Metrics
from atlas_supervisor.traffic import PATIENCE_SECONDS, Endpoints, Plane, Split, make_plane
from atlas_supervisor.workers.adoption import take_over
from atlas_supervisor.workers.registry import end_strays
from atlas_supervisor.workers.releases import Releases
from atlas_supervisor.workers.slot import Slot
from atlas_supervisor.workers.slots import Slots


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
        self._opened: Opened

    async def run(self, requests: Requests) -> None:
        """Start, wait until it is time to stop, and stop.

        If the daemon itself fails, workers are left alone: they go on serving.
        """
        become_subreaper()
        async with AsyncExitStack() as stack:
            options = api_options(self._settings)
            bound = await stack.enter_async_context(bind(options, self._passed))
            listeners = stack.enter_context(listening(self._settings, self._passed))
            engine = await stack.enter_async_context(opened_engine(self._settings))
            self._store = SocketStore(
                self._settings.state_dir,
                self._manager,
                self._passed,
                reloaded=self._program.reloaded,
            )
            stack.callback(self._store.close)
            await self._store.drop_misplaced(self._passed, self._plane.addresses)
            with refused_by_store():
                self._opened = await open_all(
                    self._settings, self._metrics, stack, reloaded=self._program.reloaded
                )
                active = self._settings.slot_of_port(self._opened.state.state.active_port)
                inherited = await take_over(
                    self._settings,
                    self._plane,
                    self._opened.registry,
                    active,
                    self._passed,
                    split=self._split(),
                    held=self._program.reloaded and self._opened.state.state.hold is not None,
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
                    registry=self._opened.registry,
                    tasks=tasks,
                    active=active,
                    inherited=inherited,
                    checked=self._releases.checked,
                )
                parts = Assembly(
                    settings=self._settings,
                    opened=self._opened,
                    plane=self._plane,
                    slots=slots,
                    prober=prober,
                    releases=self._releases,
                    metrics=self._metrics,
                    tasks=tasks,
                    view=partial(self._view, slots),
                    keep=self._keep,
                    engine=engine,
                )
                neighbours = parts.neighbours(listeners, engine)
                await self._start(parts, slots, tasks)
                tasks.start_soon(neighbours.run)
                await self._serve(
                    parts,
                    slots,
                    neighbours,
                    tasks=tasks,
                    requests=requests,
                    options=options,
                    bound=bound,
                    listeners=listeners,
                )
                tasks.cancel_scope.cancel()

    async def _keep(self) -> None:
        """Have the plane's sockets kept for the next daemon."""
        # Where it relays, clients wait for the daemon, and a worker alone is of no use to them.
        relays = self._plane.name == "relay"
        tag = 0 if relays else tag_for(str(self._settings.state_dir), "")
        await self._store.keep(self._plane.sockets(), tag)

    def _split(self) -> Split | None:
        """Return the part of the traffic that staging had when the last daemon ended."""
        unfinished = self._opened.unfinished
        if unfinished is None or unfinished.record.phase not in SPLIT_PHASES:
            return None
        guarded = unfinished.record.phase == Phase.GUARD
        weight, deploy_id = self._opened.state.state.staging_weight, unfinished.record.deploy_id
        return split_of(self._settings, deploy_id, weight, holdback=guarded)

    async def _start(self, parts: Assembly, slots: Slots, tasks: TaskGroup) -> None:
        """Take in what the last daemon left: workers, a hold, a deploy; start what is missing."""
        for background in parts.background():
            tasks.start_soon(background)
        if parts.fleet is not None:
            await parts.fleet.catch_up()
        slots.take_in()
        if slots.adopted:
            audit = self._opened.database.audit
            await audit.record(SUPERVISOR, "daemon", "adopted", workers=slots.adopted)
        await parts.holds.take_in()
        with refused_by_store():
            # Before the API can ask for another deploy.
            await parts.service.resume(self._opened.unfinished)
            release = await self._active_release(slots.active)
        tasks.start_soon(slots.start_active, release)
        tasks.start_soon(parts.recycler.run, parts.service.recycle)
        if parts.fleet is not None:
            tasks.start_soon(parts.fleet.run)
        tasks.start_soon(
            self._manager.run,
            parts.queries.ready,
            parts.queries.summary,
            self._opened.registry.rows,
        )

    async def _serve(
        self,
        parts: Assembly,
        slots: Slots,
        neighbours: Neighbours,
        *,
        tasks: TaskGroup,
        requests: Requests,
        options: ApiOptions,
        bound: Bound,
        listeners: Listeners,
    ) -> None:
        """Serve the API until it is time to stop; clients wait in the queue during a reload."""
        reloads = Reloads(
            settings=self._settings,
            program=self._program,
            daemon=partial(self._view, slots),
            descriptors=partial(self._descriptors, {**bound.sockets, **listeners}),
            runs=parts.runs,
            slots=slots,
            plane=self._plane,
            database=self._opened.database,
            registry=self._opened.registry,
            state=self._opened.state,
            manager=self._manager,
        )
        tasks.start_soon(reloads.follow_signal, requests.reload)
        control = parts.control(reloads)
        while True:
            async with serve(control, options=options, bound=bound):
                await reloads.until_accepted(requests.stop)
                if requests.stop.is_set():
                    self._manager.stopping = True
                    await neighbours.stop()
                    await self._stop(parts, slots)
                    return
            await reloads.replace(requests.stop)

    async def _stop(self, parts: Assembly, slots: Slots) -> None:
        """End every deploy and every worker."""
        if parts.fleet is not None:  # the end of a deploy is reported by the next daemon
            await parts.fleet.stop()
        await parts.holds.stop()
        slots.begin_stop()
        await parts.service.stop()
        await slots.stop()
        await self._store.empty()
        await end_strays(self._settings.state_dir)
        await self._opened.requests.finish()
        await self._opened.registry.flush()
        audit = self._opened.database.audit
        await audit.record(SUPERVISOR, "daemon", "stopped", pid=os.getpid())

    def _descriptors(self, listeners: Mapping[str, socket]) -> dict[str, int]:
        """Return the descriptors that the next program gets at a reload, by name."""
        sockets = {**listeners, **self._plane.sockets()}
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
        opened = self._opened
        return await active_release(
            self._settings, opened.database, opened.state, self._releases, slot.name
        )
