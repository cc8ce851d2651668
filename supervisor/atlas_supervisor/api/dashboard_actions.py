"""Does an action of the dashboard: a request of the API, and its entries in the audit trail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, Field

from atlas_supervisor.api.asking import Asker
from atlas_supervisor.api.routes import AnyRoute, Nothing, Request
from atlas_supervisor.errors import AtlasError, RefusedError
from atlas_supervisor.model.audit import AuditEntry

Text = Annotated[str, Field(max_length=255)]

_AUDIT_SECONDS = 1.0
"""So long the entries of an action are waited for: they are written a moment after it."""


class ActionForm(BaseModel, extra="forbid"):
    """An action's fields; each action takes some of them."""

    form_token: Text = Field(default="", description="The token that the page has in its forms.")
    release: Text | None = Field(
        default=None, description="Of `deploy`, `dry-run`, `fleet-rollout`."
    )
    version: Text | None = Field(default=None, description="Of `rollback`.")
    feature: Text | None = Field(default=None, description="Of `fleet-kill`.")
    host: Text | None = Field(default=None, description="Of `fleet-break` and `fleet-forget`.")
    generation: int | None = Field(default=None, description="Of `fleet-break`.")
    max_seconds: float | None = Field(
        default=None, allow_inf_nan=False, description="Of `hold`: its longest time."
    )


class Outcome(BaseModel, frozen=True):
    """The outcome of an action."""

    ok: bool = Field(description="Whether it was done, or is under way.")
    message: str = Field(description="The outcome in words.")
    hint: str = Field(description="What to do next; empty if nothing.")
    command: str = Field(description="The `atlasctl` command that does the same.")
    audit: list[str] = Field(description="Its entries in the audit trail, in words.")


def as_text(value: object) -> str:
    """Return a field as one types it for `atlasctl`."""
    return f"{value:g}" if isinstance(value, float) else str(value)


async def outcome(
    rows: Iterable[AnyRoute],
    call: Request[Nothing, ActionForm],
    target: str,
    body: dict[str, Any],
    command: str,
) -> Outcome:
    """Do it, and return the outcome with its audit entries."""
    trail = call.control.trail
    newest = await trail.entries(limit=1, before=None, action=None, subject=None)
    before = newest[0].id if newest else 0
    ok, hint = True, ""
    try:
        answer = await Asker(rows, call.control).do(target, body, call.actor)
        message = _in_words(answer, target)
    except RefusedError as refused:
        ok, message, hint = False, refused.message, refused.hint
    except AtlasError as error:
        ok, message = False, str(error)
    entries = await _entries_since(call, before)
    return Outcome(ok=ok, message=message, hint=hint, command=command, audit=entries)


def _in_words(answer: dict[str, Any], target: str) -> str:
    from atlas_supervisor.cli.fleet_words import change_in_words  # noqa: PLC0415  # late, as above
    from atlas_supervisor.cli.words import headline, ramp_now  # noqa: PLC0415

    if target.startswith("/fleet/"):
        return change_in_words(answer, target)
    if "deploy_id" in answer and "result" in answer:
        return f"Deploy {answer['deploy_id']}: {headline(answer)}"
    if "before" in answer:
        return "The checks passed; the daemon is being replaced."
    if "waits_for" in answer:
        return f"Now: {ramp_now(answer)}."
    if "hold_id" in answer:
        return "Done"
    return f"The mode is {answer['mode']}" if "mode" in answer else "Done"


async def _entries_since(call: Request[Nothing, ActionForm], before: int) -> list[str]:
    """Return the caller's entries after this id; they are written a moment later."""
    deadline = time.monotonic() + _AUDIT_SECONDS
    while True:
        found = await call.control.trail.entries(limit=20, before=None, action=None, subject=None)
        own = [each for each in found if each.id > before and each.actor == call.actor.name]
        if own or time.monotonic() > deadline:
            return [_entry(each) for each in reversed(own)]
        await asyncio.sleep(0.05)


def _entry(entry: AuditEntry) -> str:
    words = (f"#{entry.id}", entry.ts[:19] + "Z", entry.actor, entry.action, entry.outcome)
    return " ".join([*words, entry.subject or ""]).rstrip()
