"""The daemon: opens everything in order, runs it in one task group, and closes it in reverse.

The process around it (lock, log, signals) is `process`.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from importlib.metadata import version

import anyio
import structlog
from anyio.abc import TaskGroup

from atlas_supervisor.api.options import ApiOptions
from atlas_supervisor.api.ports import Control
from atlas_supervisor.api.server import serve
from atlas_supervisor.api.token import load_or_create_token
from atlas_supervisor.canary.service import FeatureCanaries, open_canaries
from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.collector import GaugeCollector
from atlas_supervisor.deploy.event_hub import EventHub
from atlas_supervisor.deploy.executor import Executor
from atlas_supervisor.deploy.recovery import finish_interrupted, last_active, read_state, resumed
from atlas_supervisor.deploy.service import DeployService
from atlas_supervisor.deploy.status import subject
from atlas_supervisor.deploy.switch import Switch
from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.health.monitor import HealthMonitor
from atlas_supervisor.logs.log_service import LogService
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.probe import ProbeResult
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName, SlotState
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.store.database import Database, open_database
from atlas_supervisor.store.deploys import UnfinishedDeploy
from atlas_supervisor.store.state_keeper import StateFile, StateKeeper
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.telemetry.logging_setup import OWN_LOG
from atlas_supervisor.telemetry.metrics import Metrics
from atlas_supervisor.telemetry.metrics.exposition import Exposition
from atlas_supervisor.telemetry.sanitize import keep_secret
from atlas_supervisor.traffic import Endpoints, Plane, make_plane
from atlas_supervisor.workers.drain import Drains
from atlas_supervisor.workers.output import keep_bounded
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.registry import WorkerRegistry, end_orphans
from atlas_supervisor.workers.releases import Releases, UnknownReleaseError
from atlas_supervisor.workers.restarts import Restarter
from atlas_supervisor.workers.slot import Slot, SlotContext
from atlas_worker.contract import STATE_FILE, SUPERVISOR_SOCKET

log = structlog.get_logger(__name__)


@contextmanager
def _refused_by_store() -> Iterator[None]:
    """Refuse to start on a database that can't be read or written."""
    try:
        yield
    except StoreError as error:
        raise StartRefusedError(str(error)) from error


class Daemon:
    """All parts of one running daemon, and what connects them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._plane: Plane = make_plane(
            Endpoints(
                str(settings.public_host),
                settings.public_port,
                {SlotName.BLUE: settings.active_port, SlotName.GREEN: settings.staging_port},
            ),
            settings.hand_over,
        )
        self._releases = Releases(
            directory=settings.worker_directory, releases_dir=settings.releases_dir
        )
        self._metrics = Metrics(
            version=version("atlas-supervisor"),
            features=settings.canary_features,
            state_dir=settings.state_dir,
        )
        self._keepers: dict[SlotName, Restarter] = {}
        self._departures = Drains()
        self._stopped = False
        # Made by `run`, in this order.
        self._database: Database
        self._state: StateKeeper
        self._canaries: FeatureCanaries
        self._switch: Switch
        self._monitor: HealthMonitor
        self._service: DeployService
        self._exposition: Exposition

    async def run(self, stopping: anyio.Event) -> None:
        """Start, wait until it is time to stop, and stop.

        If anything of the daemon itself fails, workers are left alone: they go on serving.
        """
        async with AsyncExitStack() as stack:
            with _refused_by_store():
                waiting = await self._open_store(stack)
                self._canaries = await open_canaries(
                    self._settings, self._state, self._database, self._metrics.canaries.observe
                )
            stack.callback(self._canaries.close)
            prober = await stack.enter_async_context(HttpProber(self._probed))
            self._plane.open(self._slot_of(self._state.state.active_port))
            stack.push_async_callback(self._plane.close)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._database.audit.run)
                self._assemble(prober, tasks)
                tasks.start_soon(self._canaries.run)
                tasks.start_soon(self._monitor.run)
                tasks.start_soon(self._metrics.loop.sample)
                self._plane.vacate(self._switch.staging.name, self._switch.active.name)
                with _refused_by_store():
                    await self._resume(waiting)  # before anybody can ask for another deploy
                    release = await self._active_release(self._switch.active)
                async with serve(self._control(), _api_options(self._settings)):
                    if release is not None:
                        tasks.start_soon(self._keepers[self._switch.active.name].start, release)
                    await stopping.wait()
                    await self._stop()
                tasks.cancel_scope.cancel()

    async def _open_store(self, stack: AsyncExitStack) -> UnfinishedDeploy | None:
        """Open database and state file, and put in order what the last daemon left."""
        folder = self._settings.state_dir
        storage = self._metrics.storage
        self._database, aside = await stack.enter_async_context(
            open_database(folder / "atlas.db", storage.database.written)
        )
        if aside is not None:
            log.error("database_unreadable", aside=aside.name)
            await self._database.audit.write(SUPERVISOR, "database", "set_aside", aside=aside.name)
        await self._database.audit.record(
            SUPERVISOR, "daemon", "started", pid=os.getpid(), version=version("atlas-supervisor")
        )
        known = await self._database.instances.all()
        await end_orphans(folder, known, seconds=self._settings.stop_timeout_seconds)
        for row in known:
            await self._database.instances.remove(row.instance)
        file = StateFile(folder / STATE_FILE)
        state = await read_state(self._settings, file, self._database)
        state, waiting = await finish_interrupted(self._database, state, self._settings)
        self._state = StateKeeper(file, self._database.state, state, storage.state_file.written)
        try:
            await self._state.change()
        except OSError as error:
            raise StartRefusedError(f"{file.path} can't be written: {error}") from error
        await self._state.copy_to_database()
        return waiting

    def _probed(self, port: int, result: ProbeResult) -> None:
        slot = self._slot_of(port)
        self._metrics.probes.probed(slot, result.verdict, result.duration_ms / 1000)

    def _slot_of(self, port: int) -> SlotName:
        return SlotName.BLUE if port == self._settings.active_port else SlotName.GREEN

    def _assemble(self, prober: HttpProber, tasks: TaskGroup) -> None:
        settings, database, state = self._settings, self._database, self._state
        around = SlotContext(
            settings=settings,
            plane=self._plane,
            prober=prober,
            ledger=WorkerRegistry(database.instances),
            tasks=tasks,
            on_down=self._on_down,
            departures=self._departures,
        )
        slots = {
            SlotName.BLUE: Slot(SlotName.BLUE, settings.active_port, around),
            SlotName.GREEN: Slot(SlotName.GREEN, settings.staging_port, around),
        }
        self._monitor = HealthMonitor(
            settings=settings,
            prober=prober,
            plane=self._plane,
            database=database,
            state=state,
            subject=lambda: subject(self._switch.active),
        )
        self._switch = Switch(
            settings=settings,
            plane=self._plane,
            slots=slots,
            state=state,
            active=self._slot_of(state.state.active_port),
            changed=self._monitor.notice,
        )
        for slot in slots.values():
            self._keepers[slot.name] = Restarter(slot, wanted=partial(self._is_wanted, slot))
        events = EventHub(database.transitions, self._metrics.deploys.count)
        self._activities = Executor(
            settings=settings,
            switch=self._switch,
            plane=self._plane,
            prober=prober,
            database=database,
            events=events,
            state=state,
            make_room=self._make_room,
            let_go=self._let_go,
        )
        tasks.start_soon(keep_bounded, [slot.log for slot in slots.values()])
        self._service = DeployService(
            settings=settings,
            switch=self._switch,
            plane=self._plane,
            activities=self._activities,
            releases=self._releases,
            database=database,
            events=events,
            state=state,
            canaries=self._canaries,
            health_score=lambda: self._monitor.health().score,
            tasks=tasks,
        )
        self._exposition = GaugeCollector(
            knowledge=self._service,
            switch=self._switch,
            plane=self._plane,
            events=events,
            state=state,
        ).exposition(self._metrics)

    def _control(self) -> Control:
        slots = (self._switch.active, self._switch.staging)
        folder = self._settings.state_dir / "logs"
        logs = LogService(folder / OWN_LOG, {slot.name: slot.log for slot in slots})
        return Control(
            deploys=self._service,
            canary=self._canaries,
            health=self._monitor,
            audit=self._database.audit,
            logs=logs,
            metrics=self._exposition,
        )

    async def _make_room(self) -> None:
        await self._service.make_room()

    def _is_wanted(self, slot: Slot) -> bool:
        return self._switch.active is slot and not self._stopped

    async def _let_go(self, slot: SlotName) -> None:
        await self._keepers[slot].let_go()

    async def _active_release(self, active: Slot) -> Release | None:
        """Return what had the traffic last; None if it is gone."""
        try:
            return await last_active(self._database, self._state, self._releases, active.name)
        except UnknownReleaseError as error:
            log.critical("active_release_gone", slot=active.name, why=str(error))
            active.state = SlotState.FAILED
            return None

    async def _resume(self, waiting: UnfinishedDeploy | None) -> None:
        """Let a waiting deploy go on, and show the latest one."""
        database = self._database
        if waiting is not None:
            run = await resumed(database, waiting, self._releases, self._activities)
            if run is not None:
                self._service.resume(run)
                return
        recent = await database.deploys.latest(1)
        self._service.remember_last(recent[0] if recent else None)

    async def _on_down(self, slot: Slot, instance: WorkerProcess, cause: str) -> None:
        """Decide what follows when an instance went down by itself."""
        if self._stopped:
            return
        log.error("worker_down", **instance.facts, pid=instance.pid, why=cause)
        concerned = await self._service.went_down(slot, cause)
        if concerned and self._switch.active is not slot:
            return  # the deploy ends what is left of it
        if slot.instance is instance:
            await slot.stop()
        if slot.state is not SlotState.EMPTY or self._stopped:
            return  # somebody else has begun to use the slot meanwhile
        if self._is_wanted(slot):
            await self._keepers[slot.name].revive(
                instance.release, lived_seconds=instance.age.seconds
            )
        else:
            self._plane.vacate(slot.name, slot.name.other)

    async def _stop(self) -> None:
        """End deploys in a way that their records explain, then drain and stop the workers."""
        self._stopped = True
        await self._service.stop()
        for keeper in self._keepers.values():
            await keeper.let_go()
        seconds = self._settings.drain_timeout_seconds
        async with anyio.create_task_group() as group:
            group.start_soon(self._departures.all_gone)
            for slot in (self._switch.active, self._switch.staging):
                group.start_soon(partial(slot.stop, drain_seconds=seconds))
        await self._database.audit.record(SUPERVISOR, "daemon", "stopped", pid=os.getpid())


def _api_options(settings: Settings) -> ApiOptions:
    tls = None
    if settings.control_tls_cert and settings.control_tls_key:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(settings.control_tls_cert, settings.control_tls_key)
    token = load_or_create_token(settings.control_token_file)
    keep_secret([token])
    return ApiOptions(
        socket_path=settings.state_dir / SUPERVISOR_SOCKET,
        token=token,
        token_file=settings.control_token_file,
        version=version("atlas-supervisor"),
        host=str(settings.control_host),
        port=settings.control_port,
        tls=tls,
    )
