"""`atlasctl show`: one deploy with its steps and their findings; with --follow up to its end."""

from __future__ import annotations

import re
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.follow import follow
from atlas_supervisor.cli.render_deploy import outcome, suggestions, title
from atlas_supervisor.cli.render_ramp import ramp_lines
from atlas_supervisor.cli.render_timeline import timeline
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import Screen, safe
from atlas_supervisor.cli.units import age, local_time, moment
from atlas_supervisor.cli.words import (
    Record,
    doing,
    guarded,
    mapping,
    settled,
    succeeded,
    switch_failed,
)

WIDTHS = (8, len("old version drained"), 8)
"""Column widths with --follow, where lines are printed before the longest one is known."""
_DEPLOY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class DeployId(click.ParamType[str]):
    """A deploy's id; anything else could make the path of another request."""

    name = "deploy_id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the id; fail on anything that can't be one."""
        if not _DEPLOY_ID.fullmatch(str(value)):
            self.fail(
                f"{value!r} is not the id of a deploy; `atlasctl history` lists them.", param, ctx
            )
        return str(value)


@verb
@click.argument("deploy_id", type=DeployId(), required=False)
@click.option("-f", "--follow", is_flag=True, help="Continue until the deploy has ended.")
async def show(session: Session, deploy_id: str | None, follow: bool) -> None:
    """Show one deploy: its timeline, findings and what to do.

    Without DEPLOY_ID, the latest one. With --follow, also what happens from now on, up to the end
    of guard, warm time and drain; with --json as well, the record once that has ended. Ctrl-C
    stops watching only.
    """
    deploy_id = deploy_id or await _last(session)
    answer = await session.daemon.get(f"/deploy/{deploy_id}")
    if follow and session.json and answer.ok:
        await _until_ended(session, deploy_id)
        answer = await session.daemon.get(f"/deploy/{deploy_id}")
    if follow and not session.json:
        record = session.expect(answer, "deploy_id")
        session.screen.print(title(record), facts(record), Text())
        await _follow(session, deploy_id)
    else:
        session.report(answer, lambda record: _deploy(session.screen, record), "deploy_id")
    if not session.json:
        await _advise(session, answer.data)


async def _last(session: Session) -> str:
    answer = await session.daemon.get("/deploy/history", query={"limit": "1"})
    deploys = session.expect(answer, "deploys")["deploys"]
    if not deploys:
        raise FailedError("There are no deploys yet.", "`atlasctl deploy` starts one.")
    return str(deploys[0]["deploy_id"])


async def _advise(session: Session, record: Record) -> None:
    """Print what the daemon suggests now, if this deploy may be the reason."""
    with suppress(FailedError):  # the deploy is shown even without suggestions
        status = session.expect(await session.daemon.get("/deploy/status"))
        last = status.get("last_deploy")
        newest = isinstance(last, dict) and last.get("deploy_id") == record["deploy_id"]
        if newest or not succeeded(record):
            session.screen.print(*suggestions(session.screen, status))


def _deploy(screen: Screen, record: Record) -> RenderableType:
    parts: list[RenderableType] = [title(record), facts(record), Text()]
    parts += timeline(screen, record)
    if ramp := mapping(record.get("ramp")):
        parts += [Text(), *ramp_lines(screen, ramp)]
    parts += [Text(), outcome(screen, record, ok=succeeded(record))]
    return Group(*parts)


def facts(record: Record) -> RenderableType:
    """Return when a deploy began and ended, its version, and what the guard has seen."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    for name, timestamp in (("started", "started_ts"), ("ended", "ended_ts")):
        if record.get(timestamp):
            ago = age(record[timestamp])
            grid.add_row(name, safe(f"{local_time(record[timestamp])}, {ago} ago"))
    if record.get("version"):
        grid.add_row("version", safe(record["version"]))
    if seen := guarded(record):
        grid.add_row("guard", safe(seen))
    return grid


# With --follow.


async def _follow(session: Session, deploy_id: str) -> None:
    """Print what is new until the deploy has ended; its result when known, and when it changes."""
    session.parting = f"The deploy continues; `atlasctl show -f {deploy_id}` watches it again."
    record: Record = {}
    printer = RecordPrinter(session.screen)
    with session.screen.waiting(lambda: doing(record), lambda: already(record)):
        async with aclosing(follow(session, deploy_id, _ended)) as records:
            async for record in records:
                printer.show(record)
                if session.screen.is_lost:
                    return


async def _until_ended(session: Session, deploy_id: str) -> None:
    """Wait in silence until the deploy has ended."""
    async with aclosing(follow(session, deploy_id, _ended)) as records:
        async for _ in records:
            pass


def _ended(record: Record) -> bool:
    """Return whether guard, warm time and drain are over as well."""
    return record.get("phase") == "ended"


def already(record: Record) -> float:
    """Return for how many seconds the current phase has lasted, as far as clocks agree."""
    transitions = record.get("transitions") or [{}]
    began = moment(transitions[-1].get("ts"))
    return 0.0 if began is None else max(0.0, (datetime.now(UTC) - began).total_seconds())


class RecordPrinter:
    """Prints what is new in each record."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._shown = {"transitions": 0, "steps": 0}
        self._outcome: object = None
        self._outcome_last = False

    def show(self, record: Record) -> None:
        """Print new transitions, and the outcome if that is new."""
        new = dict(record)
        for name, shown in self._shown.items():
            every = record.get(name) or []
            new[name] = every[shown:]
            self._shown[name] = len(every)
        lines = list(timeline(self._screen, new, WIDTHS))
        if lines and self._outcome_last:
            lines.insert(0, Text())
        self._outcome_last = self._outcome_last and not lines
        self._screen.print(*lines)
        how = (record.get("result"), record.get("reason"), switch_failed(record))
        if settled(record) and how != self._outcome:
            self._outcome, self._outcome_last = how, True
            self._screen.print(Text(), outcome(self._screen, record, ok=succeeded(record)))
