"""`atlasctl audit`: list and verify the audit trail."""

from __future__ import annotations

import click
from rich.console import Group, RenderableType
from rich.text import Text

from atlas_supervisor.cli.answer_words import BAD_OUTCOMES, detail_in_words
from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.listing import listing
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import BAD, OK, Screen, safe
from atlas_supervisor.cli.units import MISSING, amount, local_time
from atlas_supervisor.cli.words import Record


@verb
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="Maximum number of entries.",
)
@click.option("--before", type=click.IntRange(1), help="Only entries with a smaller id.")
@click.option("--action", help="Only entries of this action, for example `mode`.")
@click.option("--subject", metavar="DEPLOY_ID", help="Only entries of this deploy.")
@click.option(
    "--verify", is_flag=True, help="Verify the whole trail instead; exit 1 if it is broken."
)
async def audit(
    session: Session,
    *,
    limit: int,
    before: int | None,
    action: str | None,
    subject: str | None,
    verify: bool,
) -> None:
    """List or verify the audit trail: who did what, and when.

    Newest first. --verify checks every entry. Keep a copy of the hash that it prints elsewhere: a
    trail that has this entry later also has all entries before it.
    """
    if verify:
        await _verify(session)
        return
    asked = {"limit": limit, "before": before, "action": action, "subject": subject}
    query = {name: str(value) for name, value in asked.items() if value is not None}
    answer = await session.daemon.get("/deploy/audit", query=query)
    session.report(answer, lambda data: audit_table(session.screen, data), "entries")


async def _verify(session: Session) -> None:
    answer = await session.daemon.get("/deploy/audit/verify")
    session.report(answer, lambda found: _verdict(session.screen, found), "ok", "head")
    if not answer.data["ok"]:
        raise click.exceptions.Exit(FailedError.exit_code)


def _verdict(screen: Screen, found: Record) -> RenderableType:
    entries = amount(found.get("entries"))
    if found["ok"]:
        sign, message = OK, f"the audit trail is intact: {entries} entries, all unchanged"
        details = [f"hash of entry {found.get('head_id')}, the last one:", str(found.get("head"))]
    else:
        problem = f"entry {found.get('broken_id')}: {found.get('message')}"
        sign, message = BAD, f"the audit trail is broken at {problem}"
        details = [f"{entries} entries before it are unchanged"]
    lines = (safe(f"  {line}", "dim") for line in details)
    return Group(Text.assemble(screen.sign(sign), " ", safe(message)), *lines)


def audit_table(screen: Screen, data: Record) -> RenderableType:
    """Return the entries, one a line where they fit."""
    entries = data.get("entries") or []
    if not entries:
        return safe("no matching entries", "dim")
    rows = [
        [
            safe(entry.get("id"), "dim"),
            safe(local_time(entry.get("ts"))),
            safe(entry.get("actor")),
            safe(entry.get("origin"), "dim"),
            safe(entry.get("action")),
            _outcome(entry),
            safe(entry.get("subject") or MISSING),
            safe(detail_in_words(entry.get("detail")), "dim"),
        ]
        for entry in entries
    ]
    names = ("id", "when", "who", "from", "what", "outcome", "subject", "detail")
    return listing(screen, names, rows)


def _outcome(entry: Record) -> Text:
    outcome = entry.get("outcome")
    return safe(outcome, "red" if outcome in BAD_OUTCOMES else "")
