"""Writes the audit trail: who did what, when, to what effect. It is kept whole, and chained.

The hash of an entry is SHA-256 over a JSON array in ASCII without spaces: the hash of the entry
before, then `id`, `ts`, `actor`, `origin`, `action`, `subject`, `outcome` and `detail`, each as it
stands in the database (`detail` is the text of its JSON, not taken apart). docs/audit.md says what
this promises, and what not; `audit_trail` reads it and finds breaks.

The end of the chain is kept in memory and not read back: an entry that is removed behind the
daemon's back stays missing. It is noted in a file outside of the database, too, because the chain
alone does not show that its last entries were cut off. The note is written after each entry is
durable: a daemon that dies in between leaves it behind the database, never ahead.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import structlog
from pydantic import BaseModel, Field, ValidationError

from atlas_supervisor.model.actor import Actor
from atlas_supervisor.store.outbox import Outbox, PendingWrite
from atlas_supervisor.store.state_keeper import replace
from atlas_supervisor.store.statements import Statements
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.failpoints import seam
from atlas_supervisor.system.files import read_regular
from atlas_supervisor.system.threads import in_thread

log = structlog.get_logger(__name__)

_PENDING_LIMIT = 1000
"""Entries that wait for the disk; beyond that the oldest are dropped, which is logged."""


class Head(NamedTuple):
    """The end of a chain: the last entry's id and hash."""

    id: int
    hash: str


NOTHING = Head(0, "0" * 64)
"""The end of a chain without an entry."""


def hash_of(previous_hash: str, fields: tuple[int | str | None, ...]) -> str:
    """Return the hash of an entry with these fields (`id` to `detail`) after another one."""
    encoded = json.dumps([previous_hash, *fields], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(encoded.encode("ascii")).hexdigest()


class _PendingEntry(NamedTuple):
    """An entry that has no place in the chain yet: `ts` to `detail`, in their order."""

    ts: str
    actor: str
    origin: str
    action: str
    subject: str | None
    outcome: str
    detail: str


class _Batch:
    """Entries that wait in the outbox, and are written in one transaction."""

    def __init__(self, store: AuditStore) -> None:
        self.entries: deque[_PendingEntry] = deque()
        self._store = store

    async def __call__(self) -> None:
        await self._store._append(self.entries)  # noqa: SLF001  # a part of the store


class AuditStore:
    """Appends entries, each to the end of the chain."""

    def __init__(self, statements: Statements, outbox: Outbox) -> None:
        self._statements = statements
        self._outbox = outbox
        self._head = NOTHING
        self._head_file: HeadFile | None = None
        self._auditing = anyio.Lock()

    async def open(self, file: HeadFile, *, set_aside: bool) -> None:
        """Go on where the chain ended; `file` is what keeps its end beside the database.

        If the two contradict each other, the chain goes on from what the file says: the break
        stays, and is found. Of a database that was set aside that is no fault. Raises StoreError.
        """
        noted = await in_thread(file.read)
        rows = await self._statements.read("newest_audit")
        newest = Head(rows[0]["id"], rows[0]["hash"]) if rows else NOTHING
        self._head, self._head_file = newest, file
        if noted is None:
            return
        known = await self._statements.read("audit_hash", id=noted.id)
        if known and known[0]["hash"] == noted.hash:
            return  # written by an earlier daemon, which may have died before it noted the last
        self._head = Head(max(noted.id, newest.id), noted.hash)
        if not set_aside:
            why = f"entry {noted.id} is not the one that {file.path.name} tells of"
            log.critical("audit_trail_broken", why=why, newest=newest.id)

    async def write(
        self, actor: Actor, action: str, outcome: str, *, subject: str | None = None, **detail: Any
    ) -> None:
        """Write an entry, and everything that is pending before it. Raises StoreError."""
        entry = _pending(actor, action, outcome, subject, detail)
        await self._outbox.flush()
        await self._append([entry])

    async def record(
        self, actor: Actor, action: str, outcome: str, *, subject: str | None = None, **detail: Any
    ) -> None:
        """Write an entry of what has happened; if the disk fails, it stays in the outbox."""
        await self._outbox.attempt(self.enqueue(actor, action, outcome, subject=subject, **detail))

    def enqueue(
        self, actor: Actor, action: str, outcome: str, *, subject: str | None = None, **detail: Any
    ) -> PendingWrite:
        """Put an entry into the outbox, without waiting for the disk."""
        waiting = self._outbox.waiting
        batches = [each.write for each in waiting if isinstance(each.write, _Batch)]
        if sum(len(batch.entries) for batch in batches) >= _PENDING_LIMIT:
            oldest = next(batch for batch in batches if batch.entries)
            log.error("audit_lost", **oldest.entries.popleft()._asdict())
        last = waiting[-1] if waiting and isinstance(waiting[-1].write, _Batch) else None
        batch, pending = (batches[-1], last) if last else (_Batch(self), None)
        batch.entries.append(_pending(actor, action, outcome, subject, detail))
        return pending or self._outbox.put(batch)

    async def _append(self, entries: Iterable[_PendingEntry]) -> None:
        """Write the entries in one transaction."""
        with anyio.CancelScope(shield=True):
            async with self._auditing:
                added = list(entries)

                async def write() -> Head:
                    return await self._chained(added)

                self._head = await self._statements.transaction(write)
                await self._note_head()

    async def _chained(self, entries: list[_PendingEntry]) -> Head:
        """Add the entries to the chain, within a transaction; return its new end."""
        await self._statements.connection.execute("BEGIN IMMEDIATE")
        head, newest = self._head, await self._newest_id()
        for number, entry in enumerate(entries, start=max(head.id, newest) + 1):
            row = hash_of(head.hash, (number, *entry))
            parameters = {"id": number, **entry._asdict(), "previous_hash": head.hash, "hash": row}
            await self._statements.run("add_audit", parameters)
            head = Head(number, row)
        return head

    async def _newest_id(self) -> int:
        rows = await self._statements.connection.execute_fetchall(
            "SELECT ifnull(max(id), 0) FROM audit"
        )
        return int(next(iter(rows))[0])

    async def _note_head(self) -> None:
        """Note the end of the chain outside of the database; what is behind is no fault."""
        if self._head_file is None:
            return
        try:
            await in_thread(self._head_file.write, self._head)
        except OSError as error:
            log.error("audit_head_not_written", why=str(error))

    @property
    def head(self) -> Head:
        """The end of the chain."""
        return self._head

    async def settled(self) -> tuple[Head, int]:
        """Return the end of the chain, and the newest id that there is; 0 if there is none."""
        async with self._auditing:  # no entry of ours is being written
            rows = await self._statements.read("newest_audit")
            return self._head, rows[0]["id"] if rows else 0

    async def contains(self, subject: str, action: str, outcome: str) -> bool:
        """Return whether there is such an entry."""
        asked = {"subject": subject, "action": action, "outcome": outcome}
        return bool(await self._statements.read("audit_known", **asked))

    async def last_outcome(self, action: str) -> str | None:
        """Return the outcome of the newest entry of this action; None if there is none."""
        rows = await self._statements.read("last_outcome", action=action)
        return str(rows[0]["outcome"]) if rows else None


def _pending(
    actor: Actor, action: str, outcome: str, subject: str | None, detail: dict[str, Any]
) -> _PendingEntry:
    written = json.dumps(detail)
    return _PendingEntry(
        now().isoformat(), actor.name, actor.origin, action, subject, outcome, written
    )


HEAD_FILE = "audit_head.json"


class _Note(BaseModel):
    id: int = Field(ge=1, lt=2**62)
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")


class HeadFile:
    """The note at `path`. Its calls block on the disk; run them in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Head | None:
        """Return the note; None if there is none, or it can't be read, which is logged."""
        try:
            note = _Note.model_validate_json(read_regular(self.path))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.error("audit_head_unreadable", file=self.path.name, why=str(error))
            return None
        return Head(note.id, note.hash)

    @seam("audit-head")
    def write(self, head: Head) -> None:
        """Note the end of the chain. Raises OSError; then it is as it was.

        The folder is not synced: a power cut may leave the note behind, which is no fault.
        """
        replace(self.path, json.dumps(head._asdict()) + "\n")
