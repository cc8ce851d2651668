"""This host's slot for a reboot of its operating system, from the budget that deploys have.

A host does not reboot while as many others deploy or reboot as may be unavailable, and no deploy
begins meanwhile. A slot belongs to the client that asked for it: asked again, it is granted again,
and another client's release frees nothing. Only its client's release or an operator's break frees
it; a host that never comes back keeps it, and the fleet goes no further without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from atlas_supervisor.errors import AtlasError
from atlas_supervisor.fleet import semaphore as slots
from atlas_supervisor.fleet.documents import HOSTS, PRESENT, SEMAPHORE, Holder, Purpose, Semaphore
from atlas_supervisor.fleet.engine import (
    Engine,
    EngineError,
    EngineUnavailableError,
    Put,
    Snapshot,
    Unchanged,
)
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.system.clock import jittered, now

log = structlog.get_logger()

_CLIENT = Actor(name="fleetlock", origin="127.0.0.1")
_TRIES = 5
"""How often a commit is tried if others' changes come first."""
_LOOK_SECONDS = 5.0
"""Between two looks at the slot that this host has: an operator may break it."""


class SlotRefusedError(AtlasError):
    """There is no slot for this reboot now. `kind` is one of few values, for metrics."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def refusal(snapshot: Snapshot, semaphore: Semaphore, host: str) -> SlotRefusedError | None:
    """Return why a host that holds no slot can't have one now; None if it can."""
    if not slots.free_slots(semaphore):
        return SlotRefusedError("slots_held", slots.in_words(semaphore))
    keys = {entry.key for entry in snapshot.entries}
    members = sorted(key.removeprefix(HOSTS) for key in keys if key.startswith(HOSTS))
    absent = [name for name in members if name != host and PRESENT + name not in keys]
    if absent:
        return SlotRefusedError("host_not_fresh", f"no sign of life from {', '.join(absent)}")
    return None


class Reboots:
    """Takes the slot and gives it back; knows whether this host has it."""

    def __init__(
        self,
        engine: Engine,
        host: str,
        *,
        deploys: Callable[[], bool],
        drained: Callable[[], Awaitable[None]],
        audit: Callable[..., object],
    ) -> None:
        """`deploys` returns whether a deploy is in progress here.

        `drained` waits until load balancers know of the drain that `held` begins; `audit` queues an
        entry of the audit trail.
        """
        self._engine = engine
        self._host = host
        self._deploys = deploys
        self._drained = drained
        self._audit = audit
        self.held = False
        """Whether this host has the slot, as of the engine's last answer."""
        self._changing = asyncio.Lock()
        self._look = asyncio.Event()

    async def run(self) -> None:
        """Find the slot that this host had before it went down, and notice if it is broken."""
        while True:
            try:
                async with self._changing:
                    self._note((await self._read())[1])
            except EngineError:
                pass  # the host stays as it is
            else:
                if not self.held:
                    self._look.clear()
                    await self._look.wait()
            await asyncio.sleep(jittered(_LOOK_SECONDS))

    async def take(self, client_id: str) -> None:
        """Take the slot and drain; return once the host may go down.

        Raises SlotRefusedError; EngineError, after which the slot may have been taken.
        """

        def decide(snapshot: Snapshot, semaphore: Semaphore) -> Semaphore | None:
            own = semaphore.holders.get(self._host)
            if own is not None:
                _check_owner(own, client_id)
                return None
            if self._deploys():
                raise SlotRefusedError("deploy_in_progress", "a deploy is in progress on this host")
            if (refused := refusal(snapshot, semaphore, self._host)) is not None:
                raise refused
            return slots.take(semaphore, self._host, Purpose.REBOOT, now=now(), client_id=client_id)

        if await self._change(decide):
            log.info("reboot_slot_acquired", client_id=client_id)
            self._audit(_CLIENT, "fleet_slot", "taken", subject=self._host, client_id=client_id)
        await self._drained()

    async def give_back(self, client_id: str) -> None:
        """Give the slot back, if this client has it. Raises EngineError."""

        def decide(_snapshot: Snapshot, semaphore: Semaphore) -> Semaphore | None:
            own = semaphore.holders.get(self._host)
            if own is None or (own.purpose, own.client_id) != (Purpose.REBOOT, client_id):
                return None
            return slots.give_back(semaphore, self._host, own.generation)

        if await self._change(decide):
            log.info("reboot_slot_released", client_id=client_id)
            self._audit(_CLIENT, "fleet_slot", "released", subject=self._host, client_id=client_id)

    async def _change(self, decide: Callable[[Snapshot, Semaphore], Semaphore | None]) -> bool:
        """Change the semaphore, unless `decide` returns None; return whether it was changed."""
        async with self._changing:
            self._look.set()  # also if it stays unknown
            for _ in range(_TRIES):
                snapshot, semaphore = await self._read()
                changed = decide(snapshot, semaphore)
                if changed is None or await self._commit(snapshot, changed):
                    self._note(changed or semaphore)
                    return changed is not None
        raise EngineUnavailableError(f"others' changes came first, {_TRIES} times")

    async def _read(self) -> tuple[Snapshot, Semaphore]:
        snapshot = await self._engine.read(SEMAPHORE, HOSTS, PRESENT)
        value = snapshot.value(SEMAPHORE)
        return snapshot, Semaphore() if value is None else Semaphore.read(SEMAPHORE, value)

    async def _commit(self, snapshot: Snapshot, semaphore: Semaphore) -> bool:
        unchanged = Unchanged(SEMAPHORE, snapshot.revision_of(SEMAPHORE))
        written = await self._engine.commit([unchanged], Put(SEMAPHORE, semaphore.written()))
        return written is not None

    def _note(self, semaphore: Semaphore) -> None:
        own = semaphore.holders.get(self._host)
        self.held = own is not None and own.purpose is Purpose.REBOOT


def _check_owner(own: Holder, client_id: str) -> None:
    """Raise SlotRefusedError unless a host's slot is this client's."""
    if own.purpose is not Purpose.REBOOT:
        raise SlotRefusedError("deploy_in_progress", "a rollout deploys on this host now")
    if own.client_id != client_id:
        reason = f"this host's slot belongs to another client, {own.client_id}"
        raise SlotRefusedError("other_client", reason)
