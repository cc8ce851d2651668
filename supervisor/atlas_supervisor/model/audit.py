"""Audit trail entries, and the result of verifying the whole trail."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field


class AuditEntry(BaseModel, frozen=True):
    """One change, or one that was denied: who, from where, what, with which outcome."""

    id: int = Field(description="Grows by one with each entry, from 1 on.")
    ts: str = Field(description="When it happened: ISO 8601, UTC.")
    actor: str = Field(
        description="`uid:N`, `token`, `session:ID` (of the dashboard), `view` and `view:ID` (with "
        "the view token), `anonymous`, or `supervisor` for the daemon itself."
    )
    origin: str = Field(description="`unix`, the peer's address, or `internal`.")
    action: str = Field(description="What was done, for instance `deploy` or `mode`.")
    subject: str | None = Field(description="The deploy or feature concerned, if any.")
    outcome: str = Field(description="The outcome, for instance `begun` or `refused`.")
    detail: dict[str, Any] = Field(description="Further facts; new fields may be added.")
    hash: str = Field(description="SHA-256 over the entry and `previous_hash`, in hexadecimal.")
    previous_hash: str = Field(
        description="The `hash` of the entry before; zeros before the first."
    )


class Problem(StrEnum):
    """A fault of the audit trail."""

    CHANGED = "changed"
    MISSING = "missing"
    OUT_OF_PLACE = "out_of_place"
    CUT_OFF = "cut_off"
    FOREIGN = "foreign"


class Verification(BaseModel, frozen=True):
    """The result of verifying the whole audit trail."""

    ok: bool = Field(description="Whether every entry is present, in place and unchanged.")
    entries: int = Field(description="Number of intact entries, counted from the first.")
    head: str = Field(
        description="Hash of the last entry; zeros if there is none. Keep a copy elsewhere: a "
        "trail that has this entry later also has all entries before it."
    )
    head_id: int = Field(description="Id of the last entry; 0 if there is none.")
    broken_id: int | None = Field(description="Id of the first entry that is changed or missing.")
    problem: Problem | None = Field(
        description="What is wrong with it: `changed`; `missing`; `out_of_place`: it does not "
        "follow the entry before it; `cut_off`: it and all later entries are gone; `foreign`: not "
        "written by a supervisor."
    )
    message: str = Field(description="The result in words.")
