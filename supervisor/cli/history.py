"""`atlasctl history`: past deploys, newest first."""

from __future__ import annotations

import click
from rich.console import RenderableType
from rich.table import Table

from supervisor.cli.client import Record
from supervisor.cli.records import result_text, took
from supervisor.cli.session import Session, verb
from supervisor.cli.terminal import Screen, safe
from supervisor.cli.units import MISSING, local_time


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
