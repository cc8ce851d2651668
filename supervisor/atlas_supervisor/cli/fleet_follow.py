"""Follows a rollout over the fleet: a line for each host that begins, passes or fails.

The fleet is read again every second, and a line is the difference between two answers: a host that
began and ended in between has its one line as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import click
from rich.console import RenderableType
from rich.table import Table

from atlas_supervisor.cli import client
from atlas_supervisor.cli.client import SERVER_ERROR, ApiResponse
from atlas_supervisor.cli.errors import FailedError, NoDaemonError
from atlas_supervisor.cli.fleet_status import rollout_line
from atlas_supervisor.cli.render_deploy import note
from atlas_supervisor.cli.session import Session, refusal
from atlas_supervisor.cli.terminal import BAD, EVENT, NOTE, OK, Screen, safe, spaced
from atlas_supervisor.cli.units import SECOND, amount, duration, moment
from atlas_supervisor.cli.words import Record, mapping, objects

PERIOD_SECONDS = 1.0
WAIT_SECONDS = 10.0
"""After which it is said what a rollout waits for."""

_SIGNS = {"passed": OK, "failed": BAD, "deploying": EVENT}


async def follow_rollout(session: Session, answer: ApiResponse) -> None:
    """Show the rollout that `answer` has begun until it ends. Exit 1 unless it passed."""
    screen, seen, now, waits = session.screen, dict[str, str](), "", _Waits()
    first = session.expect(answer, "rollout", "hosts")
    rollout_id = mapping(first["rollout"]).get("rollout_id")
    if not session.json:
        screen.print(screen.line(EVENT, f"rollout {rollout_id}: {_plan(first)}"))
    with screen.waiting(lambda: now):
        async with aclosing(_looks(session, answer)) as looks:
            async for answer in looks:  # noqa: PLR1704  # the last one is concluded with
                fleet = session.expect(answer, "rollout", "hosts")
                if not session.json:
                    screen.print(*_news(screen, fleet, seen), *waits.news(screen, fleet))
                now = str(mapping(fleet["rollout"]).get("now") or "")
                if _has_ended(fleet, rollout_id):
                    break
    _conclude(session, answer, rollout_id)


def _plan(fleet: Record) -> str:
    rollout = mapping(fleet.get("rollout"))
    waves = objects(rollout.get("waves"))
    hosts = sum(len(wave.get("hosts") or []) for wave in waves)
    way = "back from" if rollout.get("direction") == "back" else "of"
    return (
        f"{way} {rollout.get('release')}, {_counted(hosts, 'host')} in "
        f"{_counted(len(waves), 'wave')}, at most {rollout.get('max_unavailable')} at a time"
    )


def _counted(number: int, noun: str) -> str:
    return f"{amount(number)} {noun}{'' if number == 1 else 's'}"


async def _looks(session: Session, first: ApiResponse) -> AsyncGenerator[ApiResponse, None]:
    """Yield the fleet every second; a daemon that restarts is waited for.

    Raises NoDaemonError or FailedError after 15 s without an answer of the daemon.
    """
    yield first
    away_since: float | None = None
    while True:
        await asyncio.sleep(PERIOD_SECONDS)
        away: FailedError | None = None
        try:
            answer = await session.daemon.get("/fleet")
            if answer.status >= SERVER_ERROR:
                away = refusal(answer)
        except NoDaemonError as error:
            away = error
        if away is None:
            away_since = None
            yield answer
            continue
        away_since = away_since or time.monotonic()
        if time.monotonic() - away_since > client.RESTART_SECONDS:
            raise away


def _news(screen: Screen, fleet: Record, seen: dict[str, str]) -> Iterator[RenderableType]:
    """Yield a line for each host whose part has changed, and for an engine that has."""
    connected = "yes" if mapping(fleet.get("engine")).get("connected") else "no"
    if seen.get("", "yes") != connected:
        text = "etcd answers again" if connected == "yes" else "etcd is away: no other host begins"
        yield screen.line(NOTE, text)
    seen[""] = connected
    for host in objects(fleet.get("hosts")):
        name, part = str(host.get("name")), mapping(host.get("part"))
        state = str(part.get("state") or "")
        if state and seen.get(name) != state:
            yield _line(screen, name, state, part)
        seen[name] = state


class _Waits:
    """What a rollout has waited for so long that it may need an operator: said once."""

    def __init__(self) -> None:
        self._for = ""
        self._since = 0.0
        self._said = ""

    def news(self, screen: Screen, fleet: Record) -> Iterator[RenderableType]:
        """Yield a line once no host has deployed for a while, and why."""
        rollout = mapping(fleet.get("rollout"))
        deploys = mapping(rollout.get("hosts")).get("deploying")
        reason = "" if deploys else str(rollout.get("now") or "")
        if reason != self._for:
            self._for, self._since = reason, time.monotonic()
        lasts = time.monotonic() - self._since >= WAIT_SECONDS
        if reason and lasts and reason != self._said:
            self._said = reason
            yield screen.line(NOTE, reason)


def _line(screen: Screen, name: str, state: str, part: Record) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    line.add_column()
    line.add_column(overflow="fold")
    words = [safe(name, "bold"), safe(state)]
    since, until = moment(part.get("started_ts")), moment(part.get("ended_ts"))
    if since and until:
        words.append(safe(duration((until - since).total_seconds() * SECOND), "dim"))
    if part.get("reason"):
        words.append(safe(part["reason"], "red"))
    elif part.get("version"):
        words.append(safe(part["version"], "dim"))
    line.add_row(screen.sign(_SIGNS.get(state, EVENT)), spaced(*words))
    return line


def _has_ended(fleet: Record, rollout_id: object) -> bool:
    """Return whether no further host begins, and none deploys any more."""
    rollout = mapping(fleet.get("rollout"))
    if rollout.get("rollout_id") != rollout_id:
        return True
    return rollout.get("state") != "running" and not mapping(rollout.get("hosts")).get("deploying")


def _conclude(session: Session, answer: ApiResponse, rollout_id: object) -> None:
    """Show how the rollout ended, and what to do. Exit 1 unless it passed."""
    rollout = mapping(answer.data.get("rollout"))
    if rollout.get("rollout_id") != rollout_id:
        raise FailedError(
            f"Another rollout, {rollout.get('rollout_id')}, has taken the place of {rollout_id}.",
            "`atlasctl fleet status` shows it.",
        )
    passed = rollout.get("state") == "passed"
    if session.json:
        session.report_json(answer)
    else:
        line = Table.grid(padding=(0, 1))
        line.add_row(session.screen.sign(OK if passed else BAD), rollout_line(rollout))
        session.screen.conclude(line)
        for each in () if passed else objects(answer.data.get("suggestions")):
            session.screen.print(note(session.screen, each.get("message"), each.get("action")))
    if not passed:
        raise click.exceptions.Exit(FailedError.exit_code)
