"""Reads the audit trail, and verifies its chain; `audit` writes both.

What was tampered with is read as well as can be: a break must be found, and not stumbled over.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import aiosqlite
import anyio

from atlas_supervisor.model.audit import AuditEntry, Problem, Verification
from atlas_supervisor.store.audit import NOTHING, AuditStore, Head, hash_of
from atlas_supervisor.store.statements import Statements

_PAGE = 50
"""Rows that are verified at a time: about two milliseconds of the event loop."""

_FIRST, _END = -(2**63), 2**63 - 1
"""Between these is every id that SQLite knows; ours begin at 1."""


class ChainRow(NamedTuple):
    """An entry as it stands in the database. What is no UTF-8 there is surrogates here."""

    id: int
    ts: str
    actor: str
    origin: str
    action: str
    subject: str | None
    outcome: str
    detail: str
    previous_hash: str
    hash: str

    def computed_hash(self) -> str:
        """Return the hash that the entry must have."""
        return hash_of(self.previous_hash, self[:-2])

    @property
    def begins_a_file(self) -> bool:
        """Whether it says that the entries before it are in a database that was set aside."""
        return (self.action, self.outcome) == ("database", "set_aside")


class ChainBreak(NamedTuple):
    """The first break in a chain."""

    id: int
    problem: Problem
    message: str


class Walk:
    """Verifies a chain entry by entry, from the first one."""

    def __init__(self) -> None:
        self.end = NOTHING
        self.entries = 0

    def step(self, row: ChainRow) -> ChainBreak | None:
        """Take the next entry, in the order of ids; return a break, which ends the walk."""
        if fault := self._fault(row):
            return fault
        self.end = Head(row.id, row.hash)
        self.entries += 1
        return None

    def _fault(self, row: ChainRow) -> ChainBreak | None:
        before, whole = self.end, row.hash == row.computed_hash()
        if row.id <= before.id:  # below 1: SQLite has no id twice
            return ChainBreak(row.id, Problem.FOREIGN, f"no supervisor writes an entry {row.id}")
        if self.entries == 0 and row.begins_a_file and whole:
            return None
        if row.id > before.id + 1:
            return ChainBreak(before.id + 1, Problem.MISSING, _missing(before.id + 1, row.id - 1))
        if not whole:
            message = f"entry {row.id} is not as it was written"
            return ChainBreak(row.id, Problem.CHANGED, message)
        if row.previous_hash != before.hash:
            after = f"entry {before.id}" if before.id else "none"
            message = (
                f"entry {row.id} was written after another one than {after} as it stands: what "
                "comes before it was changed, exchanged or taken out"
            )
            return ChainBreak(row.id, Problem.OUT_OF_PLACE, message)
        return None

    def arrived(self, head: Head, newest_id: int) -> ChainBreak | None:
        """Return the break at the end, where the last entry must be `head`.

        `newest_id` is the highest id that there is.
        """
        if self.end.id < head.id:
            message = f"{_missing(self.end.id + 1, head.id)} at the end: it was cut off"
            return ChainBreak(self.end.id + 1, Problem.CUT_OFF, message)
        if self.end != head:
            message = f"entry {head.id} is another one than the last that was written"
            return ChainBreak(head.id, Problem.OUT_OF_PLACE, message)
        if newest_id > head.id:
            message = f"entry {head.id + 1} and what follows were not written by this supervisor"
            return ChainBreak(head.id + 1, Problem.FOREIGN, message)
        return None


def _missing(first: int, last: int) -> str:
    return (
        f"entry {first} is missing" if first == last else f"entries {first} to {last} are missing"
    )


class AuditTrail:
    """The entries as they stand in the database; it satisfies `api.ports.TrailPort`."""

    def __init__(self, statements: Statements, audit: AuditStore) -> None:
        self._statements = statements
        self._audit = audit
        self._verifying = anyio.Lock()

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

    async def verify(self) -> Verification:
        """Verify the whole chain, page by page; others read and write meanwhile."""
        async with self._verifying:
            head, walk = self._audit.head, Walk()
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
                ours, newest_id = await self._audit.settled()
                fault = walk.arrived(head, head.id + max(newest_id - ours.id, 0))
            return _found(walk, head, fault)


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
