"""`atlasctl releases`: what can be deployed by name, what of it runs, how it went last."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table

from supervisor.cli.client import Record
from supervisor.cli.records import result_text
from supervisor.cli.session import Session, verb
from supervisor.cli.terminal import safe
from supervisor.cli.units import MISSING, local_time


@verb
async def releases(session: Session) -> None:
    """List the releases that exist."""
    answer = await session.daemon.get("/deploy/releases")
    session.report(answer, _table, "releases")


def _table(data: Record) -> RenderableType:
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
