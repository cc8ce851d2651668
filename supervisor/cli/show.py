"""`atlasctl show`: one deploy with its steps and all that they found."""

from __future__ import annotations

import re
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from supervisor.cli.client import Record
from supervisor.cli.records import findings, outcome, step_line, succeeded, title
from supervisor.cli.session import Session, verb
from supervisor.cli.terminal import Screen, safe
from supervisor.cli.units import age, local_time

_DEPLOY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class DeployId(click.ParamType[str]):
    """A word that can be part of a path, so that no other page is asked for by mistake."""

    name = "deploy_id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the id; fails on anything that could not be one."""
        if not _DEPLOY_ID.fullmatch(str(value)):
            self.fail(f"{value!r} is no deploy's id; `atlasctl history` lists them.", param, ctx)
        return str(value)


@verb
@click.argument("deploy_id", type=DeployId())
async def show(session: Session, deploy_id: str) -> None:
    """Show one deploy, its steps and all that they found."""
    answer = await session.daemon.get(f"/deploy/{deploy_id}")
    session.report(answer, lambda record: _deploy(session.screen, record), "deploy_id")


def _deploy(screen: Screen, record: Record) -> RenderableType:
    parts: list[RenderableType] = [title(record), _facts(record), Text()]
    for step in record.get("steps") or []:
        parts += [step_line(screen, step), *findings(screen, step, everything=True)]
    parts += [Text(), outcome(screen, record, ok=succeeded(record))]
    return Group(*parts)


def _facts(record: Record) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    for name, timestamp in (("started", "started_ts"), ("ended", "ended_ts")):
        if record.get(timestamp):
            ago = age(record[timestamp])
            grid.add_row(name, safe(f"{local_time(record[timestamp])}, {ago} ago"))
    if record.get("version"):
        grid.add_row("version", safe(record["version"]))
    return grid
