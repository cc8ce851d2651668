"""Watches that connections to the public port arrive at the active slot, and restores that.

Workers share the sockets of the public port. Any of them, one in a dry run too, can attach another
steering program to the group (SO_ATTACH_REUSEPORT_CBPF), detach ours, or lock the filters of both
sockets (SO_LOCK_FILTER); the kernel does not report that. So the check of a switch (`switch`) is
repeated at intervals, and before and after the gates of a deploy. If a connection arrives
elsewhere, the program is attached again, the release that took it is named in health, audit and
log, and it does not pass its gates. While staging has a part of the traffic, the check uses the
loopback source that the program sends to the active slot.

It can't see a program that leaves the daemon's own connections alone, and takes those of chosen
addresses or a small share of all. That ends with the next worker's start or switch, which attach
ours again (docs/adr/0041-the-steering-is-watched.md).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import NamedTuple

import anyio
import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.switch import Landing, LandingCheck, check_landing
from atlas_supervisor.model.actor import SUPERVISOR
from atlas_supervisor.model.health import Check, CheckStatus
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.store.audit import AuditStore
from atlas_supervisor.system.clock import Stopwatch
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.traffic import Plane
from atlas_supervisor.traffic.listeners import loopback_of
from atlas_supervisor.traffic.steering import DIRECT_SOURCE
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.slots import Slots

log = structlog.get_logger(__name__)

CONNECTIONS = 4
"""Per check. With our program detached, one check in sixteen sees nothing of it."""
LONGEST_INTERVAL_SECONDS = 5.0
SHOWN_SECONDS = 60.0
"""How long health shows what was restored."""


class Disturbance(NamedTuple):
    """A worker's interference with the steering."""

    outcome: str
    """`restored`, `not_restored` or `locked`."""
    text: str
    culprits: tuple[WorkerProcess, ...] = ()
    """The worker that did it; where that can't be known, those that may have."""


class LandingWatch:
    """Checks again and again, and keeps what it last found."""

    def __init__(
        self, *, settings: Settings, slots: Slots, plane: Plane, audit: AuditStore
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._plane = plane
        self._audit = audit
        sender, self._requests = anyio.create_memory_object_stream[anyio.Event](math.inf)
        self.request = sender.send_nowait
        """Asks for a check now; the event is set once it is over."""
        self._last: Disturbance | None = None
        self._since = Stopwatch()
        self._locked = False
        self._before_lock: set[str] = set()
        """The instances that were there when the sockets were seen without a lock."""
        self._latest: dict[SlotName, WorkerProcess] = {}
        """The last instance that was seen in each slot."""

    async def run(self) -> None:
        """Check twice in each liveness interval, and when asked to, until cancelled."""
        interval = min(self._settings.liveness_interval_seconds / 2, LONGEST_INTERVAL_SECONDS)
        while True:
            over = anyio.Event()
            with anyio.move_on_after(interval):
                over = await self._requests.receive()
            try:
                if self._plane.name == "kernel" and self._settings.public_port:
                    await self._check()
            except OSError as error:  # no descriptors are left to look with
                log.warning("steering_unchecked", why=str(error))
            over.set()

    def health(self) -> Check | None:
        """Return the warning or failure for the health; None if nothing is wrong."""
        found = self._last
        if found is None:
            return None
        if found.outcome == "not_restored":
            return Check(status=CheckStatus.FAIL, message=found.text)
        present = any(each.alive for each in found.culprits) and found.outcome == "locked"
        if self._since.seconds > SHOWN_SECONDS and not present:
            return None
        return Check(status=CheckStatus.WARN, message=found.text)

    async def _check(self) -> None:
        """Check once, and restore the steering if a worker has changed it."""
        self._latest |= {each.slot: each for each in self._instances()}
        found = [each for each in (self._new_lock(), await self._arrivals()) if each]
        for each in found:
            await self._report(each)
        if not found and self._last is not None and self._last.outcome == "not_restored":
            self._last = None

    async def _arrivals(self) -> Disturbance | None:
        """Make connections, and restore the steering if they arrive at the wrong place."""
        active = self._slots.active
        instance, expected = active.instance, active.name
        if instance is None or not active.can_serve or self._plane.active is not expected:
            return None  # a start, a switch or a takeover is going on
        if self._plane.held:
            return None  # connections wait
        if self._plane.policy.split and ":" in loopback_of(str(self._settings.public_host)):
            return None  # IPv6 has one loopback source, which the split may send to staging
        seen = await self._check_landing(instance, expected)
        switched = self._plane.active is not expected or active.instance is not instance
        switched = switched or self._plane.held
        if seen.landing is not Landing.WRONG or switched or not active.can_serve:
            return None
        text, culprits = await self._blamed(seen, expected)
        if await self._restored(instance, expected):
            return Disturbance("restored", f"{text}; it was attached again", culprits)
        return Disturbance(
            "not_restored", f"{text}, and attaching it again has no effect", culprits
        )

    async def _blamed(
        self, seen: LandingCheck, expected: SlotName
    ) -> tuple[str, tuple[WorkerProcess, ...]]:
        """Return the finding in words, and the workers that caused it."""
        what = f"connections to the public port, which belong to {expected}, arrived at"
        how = "the steering program was exchanged or detached"
        if taker := await self._owner(seen.pids):
            text = f"{what} {_named([taker])}: {how}"
            taker.took_traffic = text
            return text, (taker,)
        if not set(seen.pids) <= {os.getpid()}:
            return f"{what} a process of no worker: {seen.text}", ()
        # The daemon accepts for a slot without a worker; a queue without a reader has no process.
        suspects = {each.name: each for each in (*self._instances(), *self._latest.values())}
        text = f"{what} {expected.other}'s queue: {how}, by {_named(suspects.values())}"
        return text, tuple(suspects.values())

    async def _restored(self, instance: WorkerProcess, expected: SlotName) -> bool:
        """Attach the program again; if that is not enough, for a group in the other order."""
        for turned in (False, True, True):
            try:
                self._plane.restore(turned=turned)
            except OSError as error:
                log.critical("steering_uncertain", wanted=expected, why=str(error))
                return False
            if (await self._check_landing(instance, expected)).landing is not Landing.WRONG:
                return True
            if self._plane.active is not expected or self._plane.held:
                return True  # a switch has begun meanwhile, and attaches its own
        return False

    async def _check_landing(self, instance: WorkerProcess, expected: SlotName) -> LandingCheck:
        split = self._plane.policy.split
        return await check_landing(
            str(self._settings.public_host),
            self._settings.public_port,
            instance,
            count=CONNECTIONS,
            elsewhere=lambda: 0 if split else self._plane.queued(expected.other),
            source=str(DIRECT_SOURCE[expected]) if split else None,
        )

    def _new_lock(self) -> Disturbance | None:
        """Return a lock that was not there before. It stays while the sockets are open."""
        present = self._instances()
        locked = self._plane.locked()
        if not locked:
            self._before_lock = {each.name for each in present}
        fresh, self._locked = locked and not self._locked, locked
        if not fresh:
            return None
        since = tuple(each for each in present if each.name not in self._before_lock)
        culprits = since or tuple(present)
        text = (
            f"{_named(culprits) or 'a worker'} has locked the filters of the public port's sockets "
            "(SO_LOCK_FILTER); steering works all the same, by another socket"
        )
        return Disturbance("locked", text, culprits)

    def _instances(self) -> list[WorkerProcess]:
        draining = [drain.instance for drain in self._slots.drains]
        return draining + [slot.instance for slot in self._slots if slot.instance is not None]

    async def _owner(self, pids: tuple[int, ...]) -> WorkerProcess | None:
        """Return the worker that one of these processes belongs to."""
        for each in self._instances():
            if set(pids) & set(await in_thread(each.family)):
                return each
        return None

    async def _report(self, found: Disturbance) -> None:
        """Log it and keep it for the health; audit it unless it repeats the last one."""
        before, shown = self._last, self._since.seconds < SHOWN_SECONDS
        self._last, self._since = found, Stopwatch()
        log.error("steering_disturbed", outcome=found.outcome, why=found.text)
        if before is not None and shown and found[:2] == before[:2]:
            return
        facts = [{**each.facts, "pid": each.pid} for each in found.culprits]
        await self._audit.record(
            SUPERVISOR, "steering", found.outcome, reason=found.text, workers=facts
        )


def _named(culprits: Iterable[WorkerProcess]) -> str:
    return " or ".join(
        f"{each.slot} (release {each.release.label}, version {each.release.version}, "
        f"pid {each.pid})"
        for each in culprits
    )
