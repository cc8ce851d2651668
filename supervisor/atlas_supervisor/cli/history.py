"""`atlasctl history` and `releases`: past deploys, and the releases that exist."""

from __future__ import annotations

import click
from rich.console import RenderableType
from rich.text import Text

from atlas_supervisor.cli.listing import listing
from atlas_supervisor.cli.render_deploy import result_text
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import Screen, safe
from atlas_supervisor.cli.units import MISSING, local_time
from atlas_supervisor.cli.words import Record, took

HISTORY_NAMES = ("deploy", "started", "result", "version", "took", "reason")


@verb
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="Maximum number of deploys.",
)
async def history(session: Session, limit: int) -> None:
    """List past deploys, newest first."""
    answer = await session.daemon.get("/deploy/history", query={"limit": str(limit)})
    session.report(answer, lambda data: _history_table(session.screen, data), "deploys")


@verb
async def releases(session: Session) -> None:
    """List the releases, where they run and their last deploys."""
    answer = await session.daemon.get("/deploy/releases")
    session.report(answer, lambda data: _release_table(session.screen, data), "releases")


def _history_table(screen: Screen, data: Record) -> RenderableType:
    deploys = data.get("deploys") or []
    if not deploys:
        return safe("no deploys yet", "dim")
    return listing(screen, HISTORY_NAMES, [history_row(record) for record in deploys])


def history_row(record: Record) -> list[Text]:
    """Return the cells of a past deploy, below `HISTORY_NAMES`."""
    return [
        safe(record.get("deploy_id")),
        safe(local_time(record.get("started_ts")), "dim"),
        result_text(record),
        safe(record.get("version") or MISSING),
        safe(took(record), "dim"),
        safe(record.get("reason") or "", "dim"),
    ]


def _release_table(screen: Screen, data: Record) -> RenderableType:
    found = data.get("releases") or []
    if not found:
        return safe("no releases; RELEASES_DIR in the env file names their folder", "dim")
    has_notes = any(each.get("note") for each in found)
    rows = []
    for each in found:
        last = each.get("last_deploy") or {}
        rows.append(
            [
                safe(each.get("name")),
                safe(each.get("version") or MISSING),
                safe(", ".join(each.get("slots") or []) or MISSING),
                safe(local_time(last.get("started_ts")) if last else "never", "dim"),
                result_text(last) if last else safe(MISSING, "dim"),
                *([safe(each.get("note") or "", "dim")] if has_notes else []),
            ]
        )
    names = ["release", "version", "runs on", "last deployed", "result"]
    return listing(screen, [*names, "note"] if has_notes else names, rows)
