"""The routes that list and verify the audit trail."""

from __future__ import annotations

from pydantic import BaseModel, Field

from atlas_supervisor.api import examples
from atlas_supervisor.api.routes import (
    Access,
    AnyRoute,
    Nothing,
    Reply,
    Request,
    ResponseSpec,
    Route,
)
from atlas_supervisor.model.audit import AuditEntry, Verification

_MAX_ID = 2**63 - 1
_WORD = r"^[ -~]{1,100}$"


class AuditQuery(BaseModel, extra="forbid"):
    """Which entries to list."""

    limit: int = Field(default=100, ge=1, le=1000, description="Maximum number of entries.")
    before: int | None = Field(
        default=None,
        ge=1,
        le=_MAX_ID,
        description="Only entries with a smaller id; this is how to get the next page.",
    )
    action: str | None = Field(
        default=None, pattern=_WORD, description="Only entries of this action."
    )
    subject: str | None = Field(
        default=None, pattern=_WORD, description="Only entries of this deploy or feature."
    )


class AuditPage(BaseModel, frozen=True):
    """Entries of the audit trail, newest first."""

    entries: list[AuditEntry] = Field(description="The entries, newest first.")


async def _audit(call: Request[AuditQuery, Nothing]) -> Reply:
    asked = call.query
    entries = await call.control.trail.entries(
        limit=asked.limit, before=asked.before, action=asked.action, subject=asked.subject
    )
    return Reply(AuditPage(entries=entries))


async def _verify(call: Request[Nothing, Nothing]) -> Reply:
    return Reply(await call.control.trail.verify())


_HASHES = (
    "c0a3d5e1b2f4968778695a4b3c2d1e0ff0e1d2c3b4a5968778695a4b3c2d1e0f",
    "5b8e0c4f7a1d3926b5e8c1f40a7d29364fb5e8c10a7d3926b5e8c1f40a7d2936",
)
ENTRY = AuditEntry(
    id=7,
    ts="2026-01-05T09:30:00.123456+00:00",
    actor="uid:0",
    origin="unix",
    action="deploy",
    subject=examples.SWITCHED.deploy_id,
    outcome="begun",
    detail={"release": "1.4.0"},
    hash=_HASHES[1],
    previous_hash=_HASHES[0],
)
VERIFIED = Verification(
    ok=True,
    entries=7,
    head=_HASHES[1],
    head_id=7,
    broken_id=None,
    problem=None,
    message="every entry is present and unchanged",
)

ROUTES: tuple[AnyRoute, ...] = (
    Route(
        method="GET",
        path="/deploy/audit",
        handler=_audit,
        summary="The audit trail",
        description="Who did what, when, from where and with which outcome, newest first. "
        "docs/audit.md says what is audited.",
        tag="Deploy",
        query=AuditQuery,
        body=Nothing,
        access=Access.SENSITIVE,
        answers=(ResponseSpec(200, "The entries.", AuditPage, AuditPage(entries=[ENTRY])),),
    ),
    Route(
        method="GET",
        path="/deploy/audit/verify",
        handler=_verify,
        summary="Verify the audit trail",
        description="Checks every entry from the first to the last: whether it is unchanged and "
        "follows the one before it. 200 in either case; `ok` has the result.",
        tag="Deploy",
        query=Nothing,
        body=Nothing,
        access=Access.SENSITIVE,
        answers=(ResponseSpec(200, "The result.", Verification, VERIFIED),),
    ),
)
