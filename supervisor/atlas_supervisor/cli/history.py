"""`atlasctl history`: past deploys, newest first.

`atlasctl releases`: what can be deployed by name, what of it runs, how it went last.
"""

from __future__ import annotations

import click
from rich.console import RenderableType
from rich.table import Table

from atlas_supervisor.cli.client import Record
from atlas_supervisor.cli.render_deploy import result_text, took
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import Screen, safe
from atlas_supervisor.cli.units import MISSING, local_time


@verb
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="How many deploys, the newest first.",
)
async def history(session: Session, limit: int) -> None:
    """List past deploys, the newest first."""
    answer = await session.daemon.get("/deploy/history", query={"limit": str(limit)})
    session.report(answer, lambda data: _table(session.screen, data), "deploys")


def _table(screen: Screen, data: Record) -> RenderableType:
    deploys = data.get("deploys") or []
    if not deploys:
        return safe("no deploys yet", "dim")
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        header_style="dim",
        expand=screen.is_terminal,
    )
    for name in ("deploy", "started", "result", "version", "took"):
        table.add_column(name, no_wrap=True)
    # What the others leave of the line; `show` has the whole of it.
    table.add_column("reason", overflow="ellipsis", no_wrap=True, ratio=1)
    for record in deploys:
        table.add_row(
            safe(record.get("deploy_id")),
            safe(local_time(record.get("started_ts")), "dim"),
            result_text(record),
            safe(record.get("version") or MISSING),
            safe(took(record), "dim"),
            safe(record.get("reason") or "", "dim"),
        )
    return table


@verb
async def releases(session: Session) -> None:
    """List the releases that exist."""
    answer = await session.daemon.get("/deploy/releases")
    session.report(answer, _release_table, "releases")


def _release_table(data: Record) -> RenderableType:
    found = data.get("releases") or []
    if not found:
        return safe("no releases; RELEASES_DIR in the env file names their folder", "dim")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("release", "version", "runs on", "last deployed", "result"):
        table.add_column(name, no_wrap=True)
    for each in found:
        last = each.get("last_deploy") or {}
        table.add_row(
            safe(each.get("name")),
            safe(each.get("version") or MISSING),
            safe(", ".join(each.get("slots") or []) or MISSING),
            safe(local_time(last.get("started_ts")) if last else "never", "dim"),
            result_text(last) if last else safe(MISSING, "dim"),
        )
    return table
