"""`atlasctl logs`: read or follow the daemon's log or a worker's.

Lines come as server-sent events with ids to resume after, so that no line is missing or repeated
after a restart of the daemon.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import click
from rich.text import Text

from atlas_supervisor.cli.errors import FailedError, NoDaemonError, NoStreamError
from atlas_supervisor.cli.follow import FIRST_PAUSE_SECONDS, PAUSE_SECONDS
from atlas_supervisor.cli.session import Session, refusal, verb
from atlas_supervisor.cli.sse import EventReader, OverlongError, ServerEvent
from atlas_supervisor.cli.terminal import NOTE, Screen, safe, spaced
from atlas_supervisor.cli.units import clock_time

SOURCES = ("supervisor", "blue", "green")
OWN = "supervisor"
GAP = "gap"

_STYLES = {
    "debug": "dim",
    "info": "green",
    "warning": "yellow",
    "error": "red",
    "critical": "bold red",
}
_LEVEL_WIDTH = 8
_EVENT_WIDTH = 20
_LAST = ("why", "deploy_id")
_LONG = ("instance", "release")
"""Shown only if no shorter field identifies the worker or the deploy."""


@verb
@click.argument("source", type=click.Choice(SOURCES), default=OWN)
@click.option("-f", "--follow", is_flag=True, help="Continue with new lines until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, 10_000),
    default=100,
    show_default=True,
    help="Maximum number of existing lines.",
)
@click.option(
    "--level",
    type=click.Choice(list(_STYLES)),
    help="Only lines of at least this level.",
)
@click.option("--deploy", "deploy_id", metavar="DEPLOY_ID", help="Only lines about this deploy.")
@click.option("--slot", type=click.Choice(SOURCES[1:]), help="Only lines about this slot.")
@click.option("--grep", "contains", metavar="TEXT", help="Only lines with this text.")
async def logs(
    session: Session,
    source: str,
    *,
    follow: bool,
    lines: int,
    level: str | None,
    deploy_id: str | None,
    slot: str | None,
    contains: str | None,
) -> None:
    """Show the daemon's own log, or the output of a slot's workers.

    --level, --deploy and --slot are for the daemon's own log only.
    """
    session.parting = ""
    filters = {"level": level, "deploy_id": deploy_id, "slot": slot, "contains": contains}
    query = {name: value for name, value in filters.items() if value is not None}
    if source != OWN and (own := [name for name in query if name != "contains"]):
        name = own[0].removesuffix("_id")
        raise click.UsageError(f"--{name} is for the daemon's own log; use --grep for a worker's.")
    query |= {"events": "true", "lines": str(lines), "follow": str(follow).lower()}
    show = _show_json if session.json else _show_own if source == OWN else _show_worker
    async with aclosing(_events(session, f"/deploy/logs/{source}", query, follow=follow)) as events:
        async for event in events:
            if event.kind == GAP:
                _note(event.data)
            else:
                show(session.screen, event.data)
            if session.screen.is_lost:
                return


async def _events(
    session: Session, path: str, query: dict[str, str], *, follow: bool
) -> AsyncGenerator[ServerEvent, None]:
    """Yield the lines; with `follow`, a stream that ends is resumed."""
    reader, answered, pause = EventReader(), False, FIRST_PAUSE_SECONDS
    while True:
        try:
            async for event in once(session, path, query, reader):
                if event is None:
                    answered, pause = True, FIRST_PAUSE_SECONDS
                else:
                    yield event
        except NoStreamError:
            raise
        except NoDaemonError as error:
            if not (follow and answered):
                raise
            if pause == FIRST_PAUSE_SECONDS:
                _note(f"{error.message} Waiting for it.")
        if not follow:
            return
        reader = EventReader(reader.last_id)
        await asyncio.sleep(pause)
        pause = min(2 * pause, PAUSE_SECONDS)


async def once(
    session: Session, path: str, query: dict[str, str], reader: EventReader
) -> AsyncGenerator[ServerEvent | None, None]:
    """Yield None once the stream is open, then its events up to its end."""
    try:
        async with session.daemon.stream(path, query=query, last_id=reader.last_id) as pieces:
            yield None
            async for piece in pieces:
                for event in reader.feed(piece):
                    yield event
    except NoStreamError as error:
        raise (refusal(error.answer) if error.answer else error) from error
    except OverlongError as error:
        raise FailedError(f"The daemon's answer is not a log: {error}.") from error


def _note(message: str) -> None:
    """Print a note on standard error, so that a pipe gets log lines only."""
    screen = Screen(sys.stderr)
    screen.print(Text(" ").join((screen.sign(NOTE), safe(message, "dim"))))


def _show_json(_screen: Screen, line: str) -> None:
    """Print the line as the API has it, escaped in case a foreign daemon's is not printable."""
    sys.stdout.write("".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in line))
    sys.stdout.write("\n")
    sys.stdout.flush()


def _show_worker(screen: Screen, line: str) -> None:
    screen.print(safe(line))


def _show_own(screen: Screen, line: str) -> None:
    screen.print(*own_line(line))


def own_line(line: str) -> Iterator[Text]:
    """Yield a line of the daemon's log as on its console, and below it the exception."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        yield safe(line)
        return
    yield _in_columns(fields)
    for part in str(fields.get("exception") or "").splitlines():
        yield safe(f"    {part}", "dim")


def _in_columns(fields: dict[str, Any]) -> Text:
    """Return a line as on the daemon's console: time, level, event, fields."""
    level, event = str(fields.get("level", "")), str(fields.get("event", ""))
    shown = {k: v for k, v in fields.items() if k not in ("ts", "level", "event", "exception")}
    if "pid" in shown or "deploy_id" in shown:
        for name in _LONG:
            shown.pop(name, None)
    for name in _LAST:
        if name in shown:
            shown[name] = shown.pop(name)
    return spaced(
        safe(clock_time(fields.get("ts")), "dim"),
        safe(level.ljust(_LEVEL_WIDTH), _STYLES.get(level, "")),
        safe(event.ljust(_EVENT_WIDTH) if shown else event, "bold"),
        *(_field(name, value) for name, value in shown.items()),
    )


def _field(name: str, value: Any) -> Text:
    text = value if isinstance(value, str) else json.dumps(value)
    return Text.assemble(safe(f"{name}=", "cyan"), safe(f'"{text}"' if " " in text else text))
