"""The chain of the audit trail: how an entry is hashed, and how a break in it is found. Pure.

The hash of an entry is SHA-256 over a JSON array in ASCII without spaces: the hash of the entry
before, then `id`, `ts`, `actor`, `origin`, `action`, `subject`, `outcome` and `detail`, each as it
stands in the database (`detail` is the text of its JSON, not taken apart). docs/audit.md says what
this promises, and what not.

The end of the chain is noted in a file outside of the database, too.
The chain alone does not show that its last entries were cut off. The note is written after
each entry is durable: a daemon that dies in between leaves it behind the database, never ahead.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import structlog
from pydantic import BaseModel, Field, ValidationError

from atlas_supervisor.model.audit import Problem
from atlas_supervisor.system.atomic_file import replace

log = structlog.get_logger(__name__)


class Head(NamedTuple):
    """The end of a chain: the last entry's id and hash."""

    id: int
    hash: str


NOTHING = Head(0, "0" * 64)
"""The end of a chain without an entry."""


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


def hash_of(previous_hash: str, fields: tuple[int | str | None, ...]) -> str:
    """Return the hash of an entry with these fields (`id` to `detail`) after another one."""
    encoded = json.dumps([previous_hash, *fields], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(encoded.encode("ascii")).hexdigest()


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
        """Return what is wrong at the end, where the last entry must be `head`.

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
            note = _Note.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.error("audit_head_unreadable", file=self.path.name, why=str(error))
            return None
        return Head(note.id, note.hash)

    def write(self, head: Head) -> None:
        """Note the end of the chain. Raises OSError; then it is as it was.

        The folder is not synced: a power cut may leave the note behind, which is no fault.
        """
        replace(self.path, json.dumps(head._asdict()) + "\n")
