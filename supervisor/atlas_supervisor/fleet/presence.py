"""A host's membership: it joins for good, announces itself every few seconds, may be forgotten.

    hosts/HOST      stays until an operator forgets the host: a rollout waits for those away, too
    present/HOST    goes away by itself when the host has not announced itself for a while

Two supervisors with one FLEET_HOST would use one slot for two deploys. So each announcement names
its installation, and is preceded by a look at the last one: who finds another's there announces
nothing and takes no part until that has gone. The one that was first goes on. If both begin at
once, the last to have announced itself goes on, since each looks again before its next one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import structlog

from atlas_supervisor import errors
from atlas_supervisor.fleet.documents import (
    EVIDENCE,
    HOSTS,
    PRESENT,
    SEMAPHORE,
    Member,
    Presence,
    Semaphore,
    UnreadableDocumentError,
)
from atlas_supervisor.fleet.engine import Delete, Engine, EngineError, Put, Snapshot, Unchanged
from atlas_supervisor.system import procfs
from atlas_supervisor.system.clock import now

log = structlog.get_logger(__name__)

TTL_SECONDS = 15.0
"""How long a host counts as present after its last announcement."""
EVERY_SECONDS = 5.0
_LEAST_SECONDS = 0.2
"""Between two announcements, however much changes."""
_SPREAD_SECONDS_PER_HOST = 0.004
"""Within which hosts announce what has changed. A kill changes all of them at once, and etcd shall
send it to the last host before it hears a thousand acknowledgements."""


def installation_of(state_dir: Path) -> str:
    """Return an identity that no other supervisor has: of its machine's boot, and its folder."""
    found = state_dir.stat()
    text = f"{procfs.boot_id()} {found.st_dev} {found.st_ino}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Membership:
    """Joins, announces this host, and notices another one with its name."""

    def __init__(
        self, engine: Engine, host: str, installation: str, presence: Callable[[], Presence]
    ) -> None:
        """`presence` returns what is to be announced now."""
        self._engine = engine
        self._host = host
        self._installation = installation
        self._presence = presence
        self._changed = anyio.Event()
        self.fleet_size = 1
        """How many hosts the fleet has, as of the last look at it."""
        self.alone = anyio.Event()
        """Set while no other supervisor has this host's name, as of the last look."""
        self.doubled = anyio.Event()
        """Set while another one has it."""
        self.other: Presence | None = None
        """The announcement of another supervisor with this host's name, if there is one."""
        self._other_since = 0.0
        self._is_logged = False

    def wake(self) -> None:
        """Announce at once: something has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Join, and announce until cancelled."""
        while True:
            self._changed = anyio.Event()
            pause = EVERY_SECONDS
            try:
                await self.announce()
            except EngineError as error:
                log.debug("fleet_presence_not_announced", why=str(error))
                pause /= 2
            await anyio.sleep(_LEAST_SECONDS)
            with anyio.move_on_after(pause * random.uniform(0.8, 1.1)):  # noqa: S311 - jitter
                await self._changed.wait()
                spread = self.fleet_size * _SPREAD_SECONDS_PER_HOST
                await anyio.sleep(random.uniform(0, spread))  # noqa: S311 - it spreads the load

    async def announce(self) -> None:
        """Join if need be, and announce this host unless another has its name.

        Raises EngineError.
        """
        member, present = HOSTS + self._host, PRESENT + self._host
        snapshot = await self._engine.read(member, present)
        self._note(snapshot.value(present))
        if self.other is not None:
            return
        if snapshot.value(member) is None:  # the first time, or it was forgotten
            joined = Member(joined_ts=now())
            await self._engine.commit([Unchanged(member, 0)], Put(member, joined.written()))
            log.info("fleet_joined", host=self._host)
        await self._engine.announce(present, self._presence().written(), ttl_seconds=TTL_SECONDS)

    def _note(self, value: bytes | None) -> None:
        """Note whether another supervisor has this host's name."""
        found = None
        if value is not None:
            with suppress(UnreadableDocumentError):  # it is written anew
                found = Presence.read(PRESENT + self._host, value)
        is_other = found is not None and found.installation not in ("", self._installation)
        if is_other and not self.doubled.is_set():
            self._other_since, self._is_logged = anyio.current_time(), False
            self.alone = anyio.Event()
            self.doubled.set()
        if not is_other and not self.alone.is_set():
            self.doubled = anyio.Event()
            self.alone.set()
        self.other = found if is_other else None
        # What this machine announced before its last boot has gone by then.
        lasts = anyio.current_time() - self._other_since > TTL_SECONDS
        if is_other and lasts and not self._is_logged:
            self._is_logged = True
            log.error("fleet_host_not_unique", host=self._host, instead="this one takes no part")


async def forget(engine: Engine, host: str) -> None:
    """Remove a host that is gone for good. Raises RefusedError, EngineError."""
    snapshot = await engine.read(HOSTS, PRESENT, SEMAPHORE)
    _refuse_forgetting(snapshot, host)
    decided_by = (HOSTS + host, PRESENT + host, SEMAPHORE)
    conditions = [Unchanged(key, snapshot.revision_of(key)) for key in decided_by]
    if await engine.commit(conditions, Delete(HOSTS + host), Delete(EVIDENCE + host)) is None:
        raise errors.FLEET_IS_BUSY.error()


def _refuse_forgetting(snapshot: Snapshot, host: str) -> None:
    if snapshot.value(HOSTS + host) is None:
        names = [
            each.key.removeprefix(HOSTS) for each in snapshot.entries if each.key.startswith(HOSTS)
        ]
        raise errors.UNKNOWN_HOST.error(host=host, known=", ".join(names) or "none")
    if snapshot.value(PRESENT + host) is not None:
        raise errors.HOST_IS_PRESENT.error(host=host)
    value = snapshot.value(SEMAPHORE)
    semaphore = Semaphore() if value is None else Semaphore.read(SEMAPHORE, value)
    if (holder := semaphore.holders.get(host)) is not None:
        raise errors.HOST_HOLDS_A_SLOT.error(host=host, generation=holder.generation)
