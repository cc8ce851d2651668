"""`atlasctl hold`: let new connections wait, for a time or while a command runs."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Group, RenderableType
from rich.text import Text

from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.render_deploy import note
from atlas_supervisor.cli.session import Session, verb
from atlas_supervisor.cli.terminal import OK, Screen, safe
from atlas_supervisor.cli.units import amount
from atlas_supervisor.cli.words import Record

_NOT_FOUND, _NOT_EXECUTABLE, _BY_SIGNAL = 127, 126, 128
"""Exit statuses of a shell, for a command that has none of its own."""
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)
_CAUGHT = (signal.SIGINT, *_PASSED_ON)


@verb
@click.option(
    "--max",
    "seconds",
    type=click.FloatRange(1, 300),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="When the hold ends by itself: 1 to 300 seconds.",
)
@click.option("--release", is_flag=True, help="End the hold that there is.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
async def hold(session: Session, seconds: float, release: bool, command: tuple[str, ...]) -> None:
    """Let new connections to the public port wait; none is refused.

    With COMMAND, after `--`: hold, run it, release, and exit with its status. The hold ends with
    the command however that ends, and after --max at the latest.

    Without: hold, and return at once. `--release` ends it.
    """
    if release and command:
        raise click.UsageError("--release takes no command.")
    if release:
        answer = await session.daemon.post("/traffic/release")
        session.report(answer, lambda data: _released(session.screen, data), "hold_id")
    elif command:
        raise click.exceptions.Exit(await _hold_while(session, seconds, command))
    else:
        answer = await session.daemon.post("/traffic/hold", body={"max_seconds": seconds})
        session.report(answer, lambda data: _held(session.screen, seconds, data), "hold_id")


def _held(screen: Screen, seconds: float, data: Record) -> RenderableType:
    text = f"new connections wait, for {seconds:g} s at most (hold {data.get('hold_id')})"
    line = Text(" ").join((screen.sign(OK), safe(text)))
    return Group(line, note(screen, "End it with `atlasctl hold --release`.", None))


def _released(screen: Screen, data: Record) -> RenderableType:
    noun, verb = ("connection", "was") if data.get("waiting") == 1 else ("connections", "were")
    text = f"released: {amount(data.get('waiting'))} {noun} waited and {verb} handed on"
    return Text(" ").join((screen.sign(OK), safe(text)))


async def _hold_while(session: Session, seconds: float, command: tuple[str, ...]) -> int:
    """Run the command in a hold; return its exit status."""
    screen = Screen(sys.stderr)  # standard output is the command's
    with _signals() as received:
        answer = await session.daemon.post("/traffic/hold", body={"max_seconds": seconds})
        held = session.expect(answer, "hold_id")
        try:
            status = await _run(screen, command, received)
        finally:
            await _release(session, screen, held)
    return status


@contextmanager
def _signals() -> Iterator[asyncio.Queue[signal.Signals]]:
    """Collect the signals that would end this program without a release."""
    loop, received = asyncio.get_running_loop(), asyncio.Queue[signal.Signals]()
    for number in _CAUGHT:
        loop.add_signal_handler(number, received.put_nowait, number)
    try:
        yield received
    finally:
        for number in _CAUGHT:
            loop.remove_signal_handler(number)


async def _run(
    screen: Screen, command: tuple[str, ...], received: asyncio.Queue[signal.Signals]
) -> int:
    if not received.empty():
        return _BY_SIGNAL + received.get_nowait()
    try:
        process = await asyncio.create_subprocess_exec(*command)
    except OSError as error:
        screen.failure(f"{command[0]} can't be executed: {error.strerror}", None)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE

    async def pass_on() -> None:
        while True:
            number = await received.get()
            if number in _PASSED_ON:  # the terminal sends SIGINT to the command as well
                process.send_signal(number)

    passing = asyncio.create_task(pass_on())
    try:
        status = await process.wait()
    finally:
        passing.cancel()
    return status if status >= 0 else _BY_SIGNAL - status


async def _release(session: Session, screen: Screen, held: Record) -> None:
    """End our hold. That it has ended before, or can't be ended, is said and is no failure."""
    try:
        answer = await session.daemon.post("/traffic/release", body={"hold_id": held["hold_id"]})
        data = session.expect(answer, "hold_id")
    except FailedError as error:
        ended = "The hold had ended before the command did: connections were let in meanwhile."
        screen.print(note(screen, ended, error.message))
        return
    if session.json:
        session.report_json(answer)
    else:
        screen.print(_released(screen, data))
