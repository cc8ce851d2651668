"""Both slots: which one is active, what is restarted, and when staging is free for a deploy.

The active slot's worker is restarted when it crashes. The staging slot belongs to deploys: after
a switch it is occupied by the version before, which stays warm and then drains. The next deploy
asks for it with `free_staging`. The deploy that occupies it sees `staging_needed` and ends its
guard and warm time; drains are hurried; then the slot is free.

After a daemon was killed, its workers are adopted (`adoption`): each slot goes on with its own. One
that can't be has the traffic and the staging slot's sockets until the active slot's fresh worker is
ready; then it is drained like a version before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup

from atlas_supervisor.config import Settings
from atlas_supervisor.health.worker_checks import ActiveWorker
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import Role, SlotName, SlotState, SlotView
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.adoption import Inherited
from atlas_supervisor.workers.drain import SETTLE_SECONDS, Drains
from atlas_supervisor.workers.launch import LaunchSettings
from atlas_supervisor.workers.outage import Outage
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.restarts import Restarter, as_recorded
from atlas_supervisor.workers.slot import InstanceRegistry, Slot, SlotContext

log = structlog.get_logger(__name__)

_HURRY_AGAIN_SECONDS = 0.1
_MEASURE_SECONDS = 5.0
MEASURE_OFTEN_SECONDS = 1.0
"""The same where memory is limited: a leak may be fast."""
_STEER_AGAIN_SECONDS = 1.0


async def _no_deploys(_slot: Slot, _cause: str) -> bool:
    return False


class Slots:
    """Owns both slots, their restarts, and the roles."""

    def __init__(
        self,
        *,
        settings: Settings,
        plane: Plane,
        prober: HttpProber,
        registry: InstanceRegistry,
        tasks: TaskGroup,
        active: SlotName,
        inherited: Inherited | None = None,
        checked: Callable[[Release], Release] = as_recorded,
    ) -> None:
        self.drains = Drains()
        self.on_worker_down: Callable[[Slot, str], Awaitable[bool]] = _no_deploys
        """Called when a worker went down; returns whether a deploy dealt with it."""
        self.complaint: str | None = None
        """What speaks against the active version, which has the traffic all the same."""
        self._launch_settings = LaunchSettings(settings)
        context = SlotContext(
            settings=settings,
            plane=plane,
            prober=prober,
            registry=registry,
            tasks=tasks,
            drains=self.drains,
            launch_settings=self._launch_settings,
            on_down=self._worker_down,
            on_change=self._note_service,
        )
        self._slots = {
            name: Slot(name, port, context) for name, port in settings.slot_ports.items()
        }
        self._restarters = {
            name: Restarter(slot, wanted=partial(self._is_wanted, slot), checked=checked)
            for name, slot in self._slots.items()
        }
        self._plane = plane
        self._outage = Outage(plane, settings)
        self._drain_seconds = settings.drain_timeout_seconds
        self._measure_seconds = (
            MEASURE_OFTEN_SECONDS if settings.worker_max_rss_mb else _MEASURE_SECONDS
        )
        self._active = active
        self._stopping = False
        self._needed = anyio.Event()
        self._free = anyio.Event()
        self._free.set()
        self._tasks = tasks
        self._inherited = inherited or Inherited()
        self._replaced = not self._inherited.serving
        """Whether no worker of an earlier daemon has the traffic (any more)."""
        self._unshared = anyio.Event()
        """Set once no earlier worker accepts from the active socket, but its own."""

    def __iter__(self) -> Iterator[Slot]:
        """Yield blue, then green."""
        yield from self._slots.values()

    def __getitem__(self, name: SlotName) -> Slot:
        return self._slots[name]

    @property
    def active(self) -> Slot:
        """The slot that has the traffic."""
        return self._slots[self._active]

    @property
    def staging(self) -> Slot:
        """The other one."""
        return self._slots[self._active.other]

    @property
    def serves(self) -> bool:
        """Whether clients are served: by the active worker, or still by an earlier daemon's."""
        return self.active.answers or self._earlier_serves

    @property
    def _earlier_serves(self) -> bool:
        return not self._replaced and any(each.alive for each in self._inherited.serving)

    @property
    def settings_pending(self) -> bool:
        """Whether the active worker was launched with other settings than there are now."""
        instance = self.active.instance
        if instance is None or not instance.life.launched_with:
            return False
        return instance.life.launched_with != self._launch_settings.digest(instance.release)

    @property
    def launching(self) -> bool:
        """Whether a worker is being launched whose process is not known yet."""
        return any(slot.state is SlotState.STARTING and slot.instance is None for slot in self)

    def ports(self) -> tuple[int, int]:
        """Return the active and the staging port."""
        return self.active.port, self.staging.port

    def views(self) -> list[SlotView]:
        """Return both slots as the status shows them, blue first."""
        return [slot.view(Role.ACTIVE if slot is self.active else Role.STAGING) for slot in self]

    async def measure(self) -> None:
        """Measure what each instance uses, every few seconds, until cancelled."""
        while True:
            for instance in self.instances():
                instance.measure()
            await anyio.sleep(self._measure_seconds)

    def instances(self) -> set[WorkerProcess]:
        """Return the instances in the slots and those that drain."""
        in_slots = {slot.instance for slot in self if slot.instance is not None}
        return in_slots | {drain.instance for drain in self.drains}

    def active_worker(self) -> ActiveWorker:
        """Return the worker that the health is about."""
        slot, instance = self.active, self.active.instance
        version = instance.release.version if instance else None
        if instance is not None and slot.serving:
            problem = instance.release.problem or instance.not_recycled or self.complaint
            return ActiveWorker(slot.name, slot.port, instance.name, version, problem=problem)
        why = f"{slot.name} is {slot.state}"
        if slot.last_exit:
            why += f"; the last time, {slot.last_exit}"
        if self._earlier_serves:
            why += "; the worker of an earlier daemon serves until then"
        return ActiveWorker(slot.name, slot.port, None, version, absence=why)

    # The roles.

    def exchange(self) -> None:
        """Exchange the roles, after a durable switch; the version before occupies staging."""
        source, target = self.active, self.staging
        self._active, self.complaint = target.name, None
        target.activate()
        source.deactivate()
        self._note_service()
        if self._free.is_set():
            self._free = anyio.Event()

    @property
    def staging_needed(self) -> anyio.Event:
        """Set while a deploy waits for the staging slot."""
        return self._needed

    @property
    def staging_is_free(self) -> bool:
        """Whether the next deploy need not wait for the version before to leave."""
        return self._free.is_set()

    async def free_staging(self) -> None:
        """Return once staging is free for the next deploy; what occupies it is asked to leave."""
        if not self._free.is_set():
            await self._until_replaced()
            await self._clear_staging()
        await self.cancel_staging_restarts()
        if self.staging.instance is not None:  # left behind by a step that failed
            await self.staging.stop()
        self.staging.forget_crashes()

    async def _until_replaced(self) -> None:
        """Let the active slot's start replace an earlier daemon's worker; if it fails, don't."""
        starting = {SlotState.EMPTY, SlotState.STARTING}
        while not self._replaced and self.active.state in starting:  # noqa: ASYNC110  # no event
            await anyio.sleep(_HURRY_AGAIN_SECONDS)
        self._replace_inherited()

    async def _clear_staging(self) -> None:
        """Ask for staging, and wait until the version before has left it."""
        self._needed.set()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._hurry_drains)
                await self._free.wait()
                group.cancel_scope.cancel()
        finally:
            self._needed = anyio.Event()

    async def _hurry_drains(self) -> None:
        """Hurry the drains that there are, and those that begin meanwhile."""
        while True:
            self.drains.hurry()
            await anyio.sleep(_HURRY_AGAIN_SECONDS)

    async def cancel_staging_restarts(self) -> None:
        """Return once nothing starts a worker in staging but a deploy."""
        restarter = self._restarters[self.staging.name]
        if not restarter.idle.is_set():
            await restarter.cancel()

    @property
    def adopted(self) -> list[dict[str, Any]]:
        """The workers of an earlier daemon with which slots have gone on."""
        return [{**each.facts, "pid": each.pid} for each in self._inherited.adopted.values()]

    @property
    def adopted_in_staging(self) -> Release | None:
        """The release of the adopted worker in staging; None if there is none."""
        slot = self.staging
        adopted = slot.instance is not None and slot.name in self._inherited.adopted
        return slot.instance.release if slot.instance and adopted and slot.can_serve else None

    def take_in(self) -> None:
        """Go on with the workers of an earlier daemon; without one, staging is vacated.

        One that is in staging is kept warm until it is known what its deploy needs it for.
        """
        occupants = self._inherited.serving or self._inherited.waiting
        for slot in self:
            if instance := self._inherited.adopted.get(slot.name):
                slot.adopt(instance)
        if self.staging.alive:
            self.staging.deactivate()
        elif occupants:
            self.staging.inherit(occupants[0])
        else:
            self.vacate_staging()
            return
        self._free = anyio.Event()

    def keep_staging(self) -> None:
        """Leave an adopted worker in staging to a deploy that waits to switch to it."""
        self.staging.activate()
        self._free.set()

    def abandon_staging(self) -> None:
        """Drain an adopted worker in staging that no deploy needs any more."""
        self._tasks.start_soon(self.drain_staging)

    def vacate_staging(self) -> None:
        """Pass connections that are queued for staging on to the active slot."""
        self._plane.vacate(self.staging.name, self.active.name)

    async def drain_staging(self) -> dict[str, Any]:
        """Drain the version without traffic; return how that went once its worker has ended.

        Staging is free earlier than that if the worker may linger.
        """
        slot, free = self.staging, self._free  # a later deploy may occupy the slot meanwhile
        try:
            await self.cancel_staging_restarts()
            if slot.is_down:
                return await self._clear_dead(slot)
            return await slot.drain(free.set)
        finally:
            free.set()

    async def _clear_dead(self, slot: Slot) -> dict[str, Any]:
        """Rescue what is queued for a dead worker, and end what is left of it."""
        self.vacate_staging()
        await slot.stop()  # it may hang, and its descendants may have outlived it
        self.vacate_staging()
        await anyio.sleep(SETTLE_SECONDS)
        rescued = self._plane.rescued(slot.name)
        message = f"{slot.name} was dead; {rescued} of its connections were passed on"
        return {"message": message, "rescued": rescued}

    async def stop_staging(self) -> None:
        """End a worker that never had traffic."""
        await self.staging.stop()
        self.vacate_staging()

    # What happens by itself.

    async def start_active(self, release: Release) -> None:
        """Start the active worker, unless one was adopted; if it crashes, go on trying."""
        slot = self.active
        await self._end_unwanted()
        self._unshared.set()
        if slot.name in self._inherited.adopted:
            return  # it lives, or is restarted because it went down
        self._note_service()
        if self.staging.can_serve:  # as if it had ended a moment ago
            cause = "it ended while no supervisor ran"
            if await self.on_worker_down(slot, cause) and slot is not self.active:
                return
        if not self._stopping:
            await self._restarters[slot.name].start(release)

    async def _end_unwanted(self) -> None:
        """End earlier workers without traffic; return once none shares the active socket."""
        waiting, others = self._inherited.waiting, self._inherited.others
        for instance in others:
            self._tasks.start_soon(self[instance.slot].dismiss, instance)
        if not self._inherited.serving:  # then the first of them is in staging
            if waiting:
                self._tasks.start_soon(self.drain_staging)
            for instance in waiting[1:]:
                self._tasks.start_soon(self.staging.dismiss, instance)
            return
        async with anyio.create_task_group() as group:  # the fresh worker accepts where they do
            for instance in waiting:
                group.start_soon(self.active.dismiss, instance)

    def _replace_inherited(self) -> None:
        """Give the traffic to the active slot, and drain the worker that has it."""
        if self._replaced:
            return
        try:
            self._plane.steer(self._active)
        except OSError as error:  # it keeps the traffic, so it must not be drained
            log.critical("steering_uncertain", wanted=self._active, why=str(error))
            self._tasks.start_soon(self._replace_later)
            return
        self._replaced = True
        self._tasks.start_soon(self.drain_staging)
        for instance in self._inherited.serving[1:]:
            self._tasks.start_soon(self.staging.dismiss, instance)
        self._note_service()

    async def _replace_later(self) -> None:
        await anyio.sleep(_STEER_AGAIN_SECONDS)
        if not self._stopping:
            self._replace_inherited()

    def _note_service(self) -> None:
        """Note whether clients can be served, for those that wait."""
        if self._stopping:
            return
        if self.active.can_serve:
            self._replace_inherited()
        if not self._replaced:
            return  # a worker of an earlier daemon serves them
        can_serve = self.active.can_serve
        if not can_serve or self._outage.noted:
            launching = self.active.state is SlotState.STARTING
            self._outage.note(self._active, can_serve=can_serve, launching=launching)

    def _is_wanted(self, slot: Slot) -> bool:
        return slot is self.active and not self._stopping

    async def _worker_down(self, slot: Slot, instance: WorkerProcess, cause: str) -> None:
        """Decide what follows when a worker went down by itself."""
        if self._stopping:
            return
        self._note_service()
        log.error("worker_down", **instance.facts, pid=instance.pid, why=cause)
        if instance in self._inherited.serving:
            await self._unshared.wait()  # one that never passed its gates may accept there
            self._replace_inherited()
            return
        if slot is self.staging and self._plane.policy.split:
            self._take_share(slot)
        handled = await self.on_worker_down(slot, cause)
        if handled and slot is not self.active:
            return  # the deploy ends what is left of it
        if slot.instance is instance:
            await slot.stop()
        if slot.state is not SlotState.EMPTY or self._stopping:
            return  # the slot is used for something else by now
        if self._is_wanted(slot):
            restarter = self._restarters[slot.name]
            await restarter.restart(instance.release, lived_seconds=instance.age.seconds)
        else:
            self._plane.vacate(slot.name, slot.name.other)

    def _take_share(self, slot: Slot) -> None:
        """Give what staging has of the traffic to the active slot, its queue included."""
        try:
            self._plane.steer(self._active)
        except OSError as error:
            log.critical("steering_uncertain", wanted=self._active, why=str(error))
        self._plane.vacate(slot.name, self._active)

    def begin_stop(self) -> None:
        """Restart nothing from now on: a worker that goes down is expected to."""
        self._stopping = True
        self._outage.stop()

    async def stop(self) -> None:
        """Drain and stop every worker, those that linger included."""
        self.begin_stop()
        closed = self._plane.stop_accepting()
        for restarter in self._restarters.values():
            await restarter.cancel()
        async with anyio.create_task_group() as group:
            group.start_soon(self.drains.all_gone)
            for slot in self:
                stop = partial(slot.stop, drain_seconds=self._drain_seconds, answers_first=closed)
                group.start_soon(stop)
