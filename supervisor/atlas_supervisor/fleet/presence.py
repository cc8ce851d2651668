"""A host's membership: it joins for good, announces itself, and may be forgotten.

    hosts/HOST      stays until an operator forgets the host: a rollout waits for those away, too
    present/HOST    goes away by itself when the host has not kept it for a while

Two supervisors with one FLEET_HOST would use one slot for two deploys. So each announcement names
its installation, and is written only over one's own or none: who finds another's there announces
nothing and takes no part until that has gone. The one that was first goes on.

A thousand hosts announce themselves all the time, and mostly what they announced before. So an
announcement is kept alive, which writes nothing; it is written when it has changed. Once a minute
it is looked at and written anyway, in case another program removed it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

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
"""How long a host counts as present after it was last heard of."""
EVERY_SECONDS = 6.0
FEW_HOSTS = 20
"""In a larger fleet, why a host waits is announced once a minute: each step of a rollout changes
it for all of them."""
_LOOK_TTLS = 4
"""After how many times the time to live it is looked what stands under this host's name."""
_ATTEMPTS = 3
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


class _Claim(NamedTuple):
    """What this process has written under the host's name."""

    presence: Presence
    revision: int
    looked_at: float
    """When it was last looked whether another supervisor has the name, by anyio's clock."""

    def says(self, wanted: Presence, *, roughly: bool) -> bool:
        """Return whether it is what is wanted, but for the time; roughly: but for why it waits."""
        same: dict[str, object] = {"sent_ts": self.presence.sent_ts}
        if roughly and bool(wanted.waits_for) == bool(self.presence.waits_for):
            same["waits_for"] = self.presence.waits_for
        return wanted.model_copy(update=same) == self.presence


class Membership:
    """Joins, announces this host, and notices another one with its name."""

    def __init__(
        self,
        engine: Engine,
        host: str,
        installation: str,
        presence: Callable[[], Presence],
        *,
        ttl_seconds: float = TTL_SECONDS,
    ) -> None:
        """`presence` returns what is to be announced now."""
        self._engine = engine
        self._host = host
        self._installation = installation
        self._presence = presence
        self._ttl_seconds = ttl_seconds
        self._changed = anyio.Event()
        self._claim: _Claim | None = None
        """What stands under this host's name and is its own; None if it has to be looked at."""
        self.fleet_size = 1
        """How many hosts the fleet has, as they were counted last."""
        self.alone = anyio.Event()
        """Set while this host is announced, or was when the engine was there last."""
        self.doubled = anyio.Event()
        """Set while another supervisor has its name."""
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
        """Announce this host, unless another supervisor has its name. Raises EngineError."""
        if await self._announce_again():
            return
        for _ in range(_ATTEMPTS):
            if await self._look_and_announce():
                return

    async def _announce_again(self) -> bool:
        """Announce by one request; return False if it has to be looked first."""
        claim, self._claim = self._claim, None  # until the engine has answered
        if claim is None or self._engine.outage is not None:
            return False
        if anyio.current_time() - claim.looked_at > _LOOK_TTLS * self._ttl_seconds:
            return False
        wanted = self._presence()
        if not claim.says(wanted, roughly=self.fleet_size > FEW_HOSTS):
            return await self._write(wanted, claim.revision, claim.looked_at)
        if not await self._engine.keep(ttl_seconds=self._ttl_seconds):
            return False
        self._claim = claim
        return True

    async def _look_and_announce(self) -> bool:
        """Join if need be, and announce; return False if another program wrote meanwhile."""
        member, present = HOSTS + self._host, PRESENT + self._host
        looked_at = anyio.current_time()
        snapshot = await self._engine.read(member, present)
        if self._has_other(snapshot.value(present)):
            return True
        if snapshot.value(member) is None:  # the first time, or it was forgotten
            joined = Member(joined_ts=now())
            await self._engine.commit([Unchanged(member, 0)], Put(member, joined.written()))
            log.info("fleet_joined", host=self._host)
        return await self._write(self._presence(), snapshot.revision_of(present), looked_at)

    async def _write(self, presence: Presence, revision: int, looked_at: float) -> bool:
        """Write over what has this revision; return False if that was written meanwhile."""
        key, value = PRESENT + self._host, presence.written()
        now_has = await self._engine.claim(
            key, value, revision=revision, ttl_seconds=self._ttl_seconds
        )
        if now_has is None:
            return False
        self._claim = _Claim(presence, now_has, looked_at)
        if not self.alone.is_set():
            self.other = None
            self.doubled = anyio.Event()
            self.alone.set()
        return True

    def _has_other(self, value: bytes | None) -> bool:
        """Return whether another supervisor has this host's name, and note and log it."""
        found = None
        if value is not None:
            with suppress(UnreadableDocumentError):  # it is written anew
                found = Presence.read(PRESENT + self._host, value)
        if found is None or found.installation in ("", self._installation):
            return False
        if not self.doubled.is_set():
            self._other_since, self._is_logged = anyio.current_time(), False
            self.alone = anyio.Event()
            self.doubled.set()
        self.other = found
        # What this machine announced before its last boot has gone by then.
        if anyio.current_time() - self._other_since > self._ttl_seconds and not self._is_logged:
            self._is_logged = True
            log.error("fleet_host_not_unique", host=self._host, instead="this one takes no part")
        return True


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
