"""`atlasctl audit`: who did what, when, to what effect; and whether all of it is still there."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.client import Record
from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import BAD, OK, Screen, safe
from atlas_supervisor.cli.units import MISSING, local_time

_BAD_OUTCOMES = frozenset({"failed", "refused", "rolled_back", "aborted"})


@verb
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="How many entries, the newest first.",
)
@click.option("--before", type=click.IntRange(1), help="Only entries before this one.")
@click.option("--action", help="Only this action, for instance `mode`.")
@click.option("--subject", metavar="DEPLOY_ID", help="Only what was done to this deploy.")
@click.option("--verify", is_flag=True, help="Look the whole trail over instead; exit 1: broken.")
async def audit(
    session: Session,
    *,
    limit: int,
    before: int | None,
    action: str | None,
    subject: str | None,
    verify: bool,
) -> None:
    """List who did what, when, from where and to what effect, the newest first.

    With --verify every entry is looked over, from the first to the last. Note the hash that it
    prints somewhere else: a trail that has this entry later on has all that came before it.
    """
    if verify:
        await _verify(session)
        return
    asked = {"limit": limit, "before": before, "action": action, "subject": subject}
    query = {name: str(value) for name, value in asked.items() if value is not None}
    answer = await session.daemon.get("/deploy/audit", query=query)
    session.report(answer, lambda data: _table(session.screen, data), "entries")


async def _verify(session: Session) -> None:
    answer = await session.daemon.get("/deploy/audit/verify")
    session.report(answer, lambda found: _verdict(session.screen, found), "ok", "head")
    if not answer.data["ok"]:
        raise click.exceptions.Exit(FailedError.exit_code)


def _verdict(screen: Screen, found: Record) -> RenderableType:
    entries, head = found.get("entries"), found.get("head")
    if found["ok"]:
        said = f"the audit trail is whole: {entries} entries, each as it was written"
        last = f"the last is entry {found.get('head_id')}, its hash is {head}"
        return Group(Text.assemble(screen.sign(OK), " ", safe(said)), safe(f"  {last}", "dim"))
    said = f"the audit trail is broken at entry {found.get('broken_id')}: {found.get('message')}"
    whole = f"{entries} entries before it are as they were written"
    return Group(Text.assemble(screen.sign(BAD), " ", safe(said)), safe(f"  {whole}", "dim"))


def _table(screen: Screen, data: Record) -> RenderableType:
    entries = data.get("entries") or []
    if not entries:
        return safe("no such entries", "dim")
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        header_style="dim",
        expand=screen.is_terminal,
    )
    for name in ("id", "when", "who", "from", "what", "subject", "outcome"):
        table.add_column(name, no_wrap=True)
    # What the others leave of the line; --json has the whole of it.
    table.add_column("detail", overflow="ellipsis", no_wrap=True, ratio=1)
    for entry in entries:
        table.add_row(
            safe(entry.get("id"), "dim"),
            safe(local_time(entry.get("ts"))),
            safe(entry.get("actor")),
            safe(entry.get("origin"), "dim"),
            safe(entry.get("action")),
            safe(entry.get("subject") or MISSING),
            _outcome(entry),
            safe(_detail(entry.get("detail")), "dim"),
        )
    return table


def _outcome(entry: Record) -> Text:
    outcome = entry.get("outcome")
    return safe(outcome, "red" if outcome in _BAD_OUTCOMES else "")


def _detail(detail: Any) -> str:
    """Return the detail on one line, without what is empty."""
    if not isinstance(detail, dict):
        return ""
    return ", ".join(f"{name} {value}" for name, value in detail.items() if value not in (None, ""))
