"""The audit trail as it is shown: its entries, and what a look at the whole of it finds."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class AuditEntry(BaseModel):
    """One change, or one that was refused: who, from where, what, to what effect."""

    model_config = ConfigDict(frozen=True)

    id: int = Field(description="Grows by one with each entry, from 1 on.")
    ts: str = Field(description="When it happened: ISO 8601, UTC.")
    actor: str = Field(description="`uid:N`, `token`, `anonymous`, or `supervisor` by itself.")
    origin: str = Field(description="`unix`, the peer's address, or `internal`.")
    action: str = Field(description="What was done, for instance `deploy` or `mode`.")
    subject: str | None = Field(description="The deploy that it was done to, if it was one.")
    outcome: str = Field(description="How it came out.")
    detail: dict[str, Any] = Field(description="More about it; may grow.")
    hash: str = Field(description="SHA-256 over the entry and `previous_hash`, in hexadecimal.")
    previous_hash: str = Field(
        description="The `hash` of the entry before; zeros before the first."
    )


class Problem(StrEnum):
    """What is wrong with an entry."""

    CHANGED = "changed"
    MISSING = "missing"
    OUT_OF_PLACE = "out_of_place"
    CUT_OFF = "cut_off"
    FOREIGN = "foreign"


class Verification(BaseModel):
    """What was found when the whole audit trail was looked over."""

    model_config = ConfigDict(frozen=True)

    ok: bool = Field(description="Every entry is there, in its place, as it was written.")
    entries: int = Field(description="So many entries are whole, from the first one on.")
    head: str = Field(description="The hash of the last entry; zeros if there is none.")
    head_id: int = Field(description="The id of the last entry; 0 if there is none.")
    broken_id: int | None = Field(description="The first entry that is not whole, or not there.")
    problem: Problem | None = Field(
        description="What is wrong with it: `changed`; `missing`; `out_of_place`: it does not "
        "follow the one before it; `cut_off`: it and all after it are gone; `foreign`: no "
        "supervisor wrote it."
    )
    message: str = Field(description="The same in words.")
