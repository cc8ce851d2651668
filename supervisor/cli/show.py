"""`atlasctl show`: one deploy with its steps and all that they found."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from supervisor.cli.client import Record
from supervisor.cli.errors import FailedError
from supervisor.cli.live import tell, until_ended
from supervisor.cli.records import outcome, succeeded, suggestions, title
from supervisor.cli.session import Session, verb
from supervisor.cli.story import story
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
@click.argument("deploy_id", type=DeployId(), required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the deploy has ended.")
async def show(session: Session, deploy_id: str | None, follow: bool) -> None:
    """Show a deploy: what happened when and why, what was found, and what can be done.

    It is the last one if none is named. With --follow also what happens from now on, up to the end
    of guard, warm time and drain; --json then waits for it. Ctrl-C only stops watching.
    """
    deploy_id = deploy_id or await _last(session)
    answer = await session.daemon.get(f"/deploy/{deploy_id}")
    if follow and session.json and answer.ok:
        await until_ended(session, deploy_id)
        answer = await session.daemon.get(f"/deploy/{deploy_id}")
    if follow and not session.json:
        record = session.expect(answer, "deploy_id")
        session.screen.print(title(record), _facts(record), Text())
        await tell(session, deploy_id)
    else:
        session.report(answer, lambda record: _deploy(session.screen, record), "deploy_id")
    if not session.json:
        await _advise(session, answer.data)


async def _last(session: Session) -> str:
    answer = await session.daemon.get("/deploy/history", query={"limit": "1"})
    deploys = session.expect(answer, "deploys")["deploys"]
    if not deploys:
        raise FailedError("There are no deploys yet.", "`atlasctl deploy` begins one.")
    return str(deploys[0]["deploy_id"])


async def _advise(session: Session, record: Record) -> None:
    """Print what the daemon suggests now, if this deploy may be why."""
    with suppress(FailedError):  # the deploy has been shown without further advice
        status = session.expect(await session.daemon.get("/deploy/status"))
        last = status.get("last_deploy")
        newest = isinstance(last, dict) and last.get("deploy_id") == record["deploy_id"]
        if newest or not succeeded(record):
            session.screen.print(*suggestions(session.screen, status))


def _deploy(screen: Screen, record: Record) -> RenderableType:
    parts: list[RenderableType] = [title(record), _facts(record), Text()]
    parts += [*story(screen, record), Text(), outcome(screen, record, ok=succeeded(record))]
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
