"""The audit trail: who did what, when, to what effect. It is kept whole, each entry chained.

The end of the chain is kept in memory and not read back: an entry that is removed behind the
daemon's back stays missing.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import aiosqlite
import anyio
import structlog

from atlas_supervisor.model.actor import Actor
from atlas_supervisor.model.audit import AuditEntry, Verification
from atlas_supervisor.store.chain import (
    NOTHING,
    ChainBreak,
    ChainRow,
    Head,
    HeadFile,
    Walk,
    hash_of,
)
from atlas_supervisor.store.outbox import Outbox, PendingWrite
from atlas_supervisor.store.statements import Statements
from atlas_supervisor.system.clock import now

log = structlog.get_logger(__name__)

_PAGE = 50
"""Rows that are verified at a time: about two milliseconds of the event loop."""

_PENDING_LIMIT = 1000
"""Entries that wait for the disk; beyond that the oldest are dropped, which is logged."""

_FIRST, _END = -(2**63), 2**63 - 1
"""Between these is every id that SQLite knows; ours begin at 1."""


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
    """The entries of the audit trail."""

    def __init__(self, statements: Statements, outbox: Outbox) -> None:
        self._statements = statements
        self._outbox = outbox
        self._head = NOTHING
        self._head_file: HeadFile | None = None
        self._auditing = anyio.Lock()
        self._verifying = anyio.Lock()

    async def open(self, file: HeadFile, *, set_aside: bool) -> None:
        """Go on where the chain ended; `file` is what keeps its end beside the database.

        If the two contradict each other, the chain goes on from what the file says: the break
        stays, and is found. Of a database that was set aside that is no fault. Raises StoreError.
        """
        noted = await anyio.to_thread.run_sync(file.read)
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
            await anyio.to_thread.run_sync(self._head_file.write, self._head)
        except OSError as error:
            log.error("audit_head_not_written", why=str(error))

    async def entries(
        self, *, limit: int, before: int | None, action: str | None, subject: str | None
    ) -> list[AuditEntry]:
        """Return the newest entries, newest first: with an id below, of an action, on a subject."""
        of = "_of_subject" if subject is not None else "_of_action" if action is not None else ""
        asked = {"limit": limit, "before": _END if before is None else before}
        rows = await self._rows(f"audit_ids{of}", **asked, action=action, subject=subject)
        return [_entry(row) for row in reversed(rows)]

    async def _rows(self, name: str, **asked: Any) -> list[ChainRow]:
        """Return the entries whose ids a query names, in the order of ids."""
        ids = json.dumps([row["id"] for row in await self._statements.read(name, **asked)])
        return [_row(row) for row in await self._statements.read("audit_rows", ids=ids)]

    async def contains(self, subject: str, action: str, outcome: str) -> bool:
        """Return whether there is such an entry."""
        asked = {"subject": subject, "action": action, "outcome": outcome}
        return bool(await self._statements.read("audit_known", **asked))

    async def verify(self) -> Verification:
        """Verify the whole chain, page by page; others read and write meanwhile."""
        async with self._verifying:
            head, walk = self._head, Walk()
            fault, since = None, _FIRST
            while fault is None and since <= head.id:
                rows = await self._rows("audit_ids_from", id=since, until=head.id, limit=_PAGE)
                for row in rows:
                    if fault := walk.step(row):
                        break
                    since = row.id + 1
                if len(rows) < _PAGE:
                    break
            if fault is None:
                async with self._auditing:  # no entry of ours is being written
                    ours, newest = self._head, (await self._statements.read("newest_audit"))
                beyond = newest[0]["id"] - ours.id if newest else 0
                fault = walk.arrived(head, head.id + beyond if beyond > 0 else head.id)
            return _found(walk, head, fault)


def _pending(
    actor: Actor, action: str, outcome: str, subject: str | None, detail: dict[str, Any]
) -> _PendingEntry:
    written = json.dumps(detail)
    return _PendingEntry(
        now().isoformat(), actor.name, actor.origin, action, subject, outcome, written
    )


def _row(row: aiosqlite.Row) -> ChainRow:
    """Return a row whose texts came as bytes: what is no UTF-8 must be found, not stumbled over."""
    texts = [
        None if value is None else bytes(value).decode("utf-8", "surrogateescape")
        for value in tuple(row)[1:]
    ]
    return ChainRow(row[0], *texts)  # type: ignore[arg-type]  # only a subject can be None


def _entry(row: ChainRow) -> AuditEntry:
    """Return a row as it is shown; what was tampered with is shown as well as can be."""
    shown = {name: _shown(value) for name, value in row._asdict().items()}
    try:
        detail = json.loads(shown["detail"])
    except ValueError:
        detail = None
    shown["detail"] = detail if isinstance(detail, dict) else {"unreadable": shown["detail"]}
    return AuditEntry(**shown)


def _shown(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _found(walk: Walk, head: Head, fault: ChainBreak | None) -> Verification:
    return Verification(
        ok=fault is None,
        entries=walk.entries,
        head=head.hash,
        head_id=head.id,
        broken_id=fault.id if fault else None,
        problem=fault.problem if fault else None,
        message=fault.message if fault else "every entry is there as it was written",
    )
