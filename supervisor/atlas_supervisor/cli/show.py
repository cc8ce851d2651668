"""`atlasctl show`: one deploy with its steps and all that they found.

`atlasctl show --follow`: a deploy's story so far, and then as it goes on, up to its end.
"""

from __future__ import annotations

import re
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.client import Record
from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.follow import follow
from atlas_supervisor.cli.render_deploy import (
    doing,
    outcome,
    settled,
    succeeded,
    suggestions,
    switch_failed,
    title,
)
from atlas_supervisor.cli.render_timeline import story
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import Screen, safe
from atlas_supervisor.cli.units import age, local_time, moment

WIDTHS = (8, len("old version drained"), 8)
"""Of the story's columns: its parts are printed before the widest of them is known."""


async def tell(session: Session, deploy_id: str) -> Record:
    """Print what is new until nothing more will happen; return the record as it is then.

    How it came out is told when it is known, and again if that changes.
    """
    session.parting = f"The deploy goes on; `atlasctl show -f {deploy_id}` watches it again."
    record: Record = {}
    teller = RecordPrinter(session.screen)
    with session.screen.waiting(lambda: doing(record), lambda: already(record)):
        async with aclosing(follow(session, deploy_id, ended)) as records:
            async for record in records:
                teller.tell(record)
    return record


async def until_ended(session: Session, deploy_id: str) -> None:
    """Wait, without a word, until nothing more will happen."""
    async with aclosing(follow(session, deploy_id, ended)) as records:
        async for _ in records:
            pass


def ended(record: Record) -> bool:
    """Tell whether nothing more will happen: guard, warm time and drain are over as well."""
    return record.get("phase") == "ended"


def already(record: Record) -> float:
    """Return for how many seconds the present phase has gone on, as far as clocks agree."""
    transitions = record.get("transitions") or [{}]
    began = moment(transitions[-1].get("ts"))
    return 0.0 if began is None else max(0.0, (datetime.now(UTC) - began).total_seconds())


class RecordPrinter:
    """Prints of each record what the ones before did not have."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._told = {"transitions": 0, "steps": 0}
        self._outcome: object = None
        self._outcome_last = False

    def tell(self, record: Record) -> None:
        """Print the transitions that are new, and the outcome if it is."""
        new = dict(record)
        for name, told in self._told.items():
            every = record.get(name) or []
            new[name] = every[told:]
            self._told[name] = len(every)
        lines = list(story(self._screen, new, WIDTHS))
        if lines and self._outcome_last:
            lines.insert(0, Text())
        self._outcome_last = self._outcome_last and not lines
        self._screen.print(*lines)
        how = (record.get("result"), record.get("reason"), switch_failed(record))
        if settled(record) and how != self._outcome:
            self._outcome, self._outcome_last = how, True
            self._screen.print(Text(), outcome(self._screen, record, ok=succeeded(record)))


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
