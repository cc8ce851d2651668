"""The fleet's kill switch on this host: one document with an epoch that only grows.

    learned     by a watch, and by a linearizable read of the key every second: a watch that has
                fallen silent delays a kill by no more than that
    recorded    in STATE_DIR/fleet.json, so that it outlives this daemon, this machine's restart
                and the engine
    applied     workers read it in the state file
    shown       `acknowledged`: the host announces the epoch, at once

In this order, and each step only after the one before: an acknowledged kill is on the disk and in
force. Nothing but a higher epoch changes anything. That the document is absent, or its epoch lower
than the known one, means that the engine lost data: it is logged, shown, and re-enables nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing, suppress
from pathlib import Path

import anyio
import structlog

from atlas_supervisor import errors
from atlas_supervisor.fleet.documents import (
    KILL,
    PRESENT,
    Document,
    KillSwitch,
    Presence,
    UnreadableDocumentError,
)
from atlas_supervisor.fleet.engine import Engine, EngineError, Put, Snapshot, Unchanged
from atlas_supervisor.fleet.local import LocalSupervisor
from atlas_supervisor.store.state_keeper import replace, sync_folder
from atlas_supervisor.system.clock import jittered, now
from atlas_supervisor.system.files import read_regular
from atlas_supervisor.system.threads import in_thread

log = structlog.get_logger(__name__)

RECORD_FILE = "fleet.json"
READ_SECONDS = 1.0
"""Between two reads of the key, on average; and the longest pause if there is no answer."""
_LONGEST_PAUSE = 5.0
_ATTEMPTS = 20


class KillRecord(Document):
    """What a host has recorded of the kill switch."""

    fleet: str
    """Its name: epochs of two fleets can't be compared."""
    switch: KillSwitch


def read_record(state_dir: Path) -> KillRecord | None:
    """Return the record; None if there is none, or none that can be read, which is logged.

    Without it the state file's copy of the kill switch stays in force.
    """
    path = state_dir / RECORD_FILE
    try:
        return KillRecord.read(RECORD_FILE, read_regular(path))
    except FileNotFoundError:
        return None
    except (OSError, UnreadableDocumentError) as error:
        log.error("fleet_record_unreadable", path=str(path), why=str(error))
        return None


def write_record(state_dir: Path, record: KillRecord) -> None:
    """Write the record durably. Raises OSError."""
    replace(state_dir / RECORD_FILE, record.model_dump_json(indent=2) + "\n")
    sync_folder(state_dir)


class KillFollower:
    """Follows the kill switch for one host, and sets it for an operator."""

    def __init__(
        self,
        engine: Engine,
        local: LocalSupervisor,
        fleet: str,
        *,
        state_dir: Path,
        applied: KillSwitch | None,
        acknowledge: Callable[[], None],
    ) -> None:
        """Follow it from `applied` on, which is in force; `acknowledge` announces what is."""
        self._engine = engine
        self._local = local
        self._fleet = fleet
        self._state_dir = state_dir
        self._acknowledge = acknowledge
        self._learning = anyio.Lock()
        self._learned: bytes | None = None
        """The document that is in force, as the engine has it; None if it was not read from there.
        """
        self._fault = ""
        """The last thing that was logged of the engine's document or this host's disk."""
        self.applied = applied
        """The kill switch that is recorded and in force on this host; None if none ever was."""

    async def run(self) -> None:
        """Follow it until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            await self._read()

    async def _watch(self) -> None:
        while True:
            try:
                async with aclosing(self._engine.watch(KILL)) as watch:
                    async for changes in watch:
                        for entry in changes.entries:
                            if entry.key == KILL:
                                await self._learn(entry.value)
            except EngineError as error:
                log.warning("fleet_watch_ended", why=str(error))
            await anyio.sleep(jittered(READ_SECONDS))

    async def catch_up(self, *, within: float) -> None:
        """Learn of a kill that was set while this host was down, if the engine answers in time."""
        with anyio.move_on_after(within), suppress(EngineError):
            await self._learn((await self._engine.read(KILL)).value(KILL))

    async def _read(self) -> None:
        pause = READ_SECONDS
        while True:
            await anyio.sleep(jittered(pause))
            known = self.applied
            try:
                snapshot = await self._engine.read(KILL)
            except EngineError:  # the engine notes its outage, and `Fleet` logs it
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                pause = READ_SECONDS
                await self._learn(snapshot.value(KILL), since=known)

    async def _learn(self, value: bytes | None, *, since: KillSwitch | None = None) -> None:
        """Record and apply what stands in the engine, if its epoch is higher.

        `since` was in force before the engine was asked. If it is not any more, the answer may be
        older than what is in force, and a lower epoch means nothing.
        """
        if value is not None and value == self._learned:
            self._fault = ""
            return
        async with self._learning:
            try:
                found = None if value is None else KillSwitch.read(KILL, value)
                await self._apply(found, since)
                self._learned = value if found == self.applied else None
            except UnreadableDocumentError as error:
                self._report(str(error))
            except OSError as error:
                self._report(f"{self._state_dir} can't be written: {error.strerror}")

    async def _apply(self, found: KillSwitch | None, since: KillSwitch | None) -> None:
        """Raise OSError if it can't be recorded or published; it is tried again."""
        known = self.applied
        if known is not None and (found is None or found.epoch < known.epoch):
            epoch = "none" if found is None else str(found.epoch)
            if known is since:
                self._report(f"etcd has epoch {epoch}, this host {known.epoch}: etcd lost data")
            return
        if found is None or found == known:
            self._fault = ""
            return
        if known is not None and found.epoch == known.epoch:
            self._report(f"etcd has another kill switch of epoch {known.epoch}: etcd lost data")
            return
        record = KillRecord(fleet=self._fleet, switch=found)
        await in_thread(write_record, self._state_dir, record)
        await self._local.kill(found)
        self.applied, self._fault = found, ""
        self._acknowledge()

    def _report(self, why: str) -> None:
        """Log once why the engine's document is not in force."""
        if why != self._fault:
            self._fault = why
            log.error("fleet_kill_not_applied", why=why)

    # An operator's commands.

    async def kill(self, feature: str | None, *, by: str) -> KillSwitch:
        """Switch a feature's canary off in the whole fleet; None: those of all features.

        It is in force on this host once this returns, and everywhere within seconds. Raises
        RefusedError; EngineError, and then it is open whether it was set.
        """

        def killed(before: KillSwitch | None) -> tuple[bool, set[str]]:
            every = feature is None or (before is not None and before.every_feature)
            return every, {*(before.features if before else ()), *([feature] if feature else [])}

        return await self._set(killed, by)

    async def reset(self, *, by: str) -> KillSwitch:
        """End all kills. Raises as `kill` does."""
        return await self._set(lambda _before: (False, set()), by)

    async def _set(
        self, decide: Callable[[KillSwitch | None], tuple[bool, set[str]]], by: str
    ) -> KillSwitch:
        for _ in range(_ATTEMPTS):
            snapshot = await self._engine.read(KILL, PRESENT)
            before = self._newest(snapshot.value(KILL))
            every, features = decide(before)
            switch = KillSwitch(
                epoch=max([before.epoch if before else 0, *_announced_epochs(snapshot)]) + 1,
                every_feature=every,
                features=tuple(sorted(features)),
                set_ts=now(),
                set_by=by,
            )
            unchanged = Unchanged(KILL, snapshot.revision_of(KILL))
            if await self._engine.commit([unchanged], Put(KILL, switch.written())) is not None:
                await self._learn(switch.written())
                return switch
        raise errors.FLEET_IS_BUSY.error()

    def _newest(self, value: bytes | None) -> KillSwitch | None:
        """Return the kill switch of the higher epoch: the engine's, or the one known here.

        One that can't be read must not prevent a kill, which is written over it.
        """
        found = [] if self.applied is None else [self.applied]
        if value is not None:
            try:
                found.append(KillSwitch.read(KILL, value))
            except UnreadableDocumentError as error:
                log.warning("fleet_kill_document_replaced", why=str(error))
        return max(found, key=lambda each: each.epoch, default=None)


def _announced_epochs(snapshot: Snapshot) -> list[int]:
    """Return the epochs that hosts have announced: a new one must be higher than each."""
    found = []
    for entry in snapshot.entries:
        if entry.key.startswith(PRESENT):
            with suppress(UnreadableDocumentError):  # it must not prevent a kill
                found.append(Presence.read(entry.key, entry.value).kill_epoch)
    return found
