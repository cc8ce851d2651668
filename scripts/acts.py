"""What both demonstrations share: acts under load, their table, and an end at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from tests.loadclient import Load

GOOD = """\
import runpy

runpy.run_module("atlas_worker", run_name="__main__")
"""
# It starts and answers as expected; only its health check fails.
BROKEN = """\
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        healthy = self.path != "/health"
        body = b"ok" if healthy else b"the database is gone"
        self.send_response(200 if healthy else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


for number in range(int(os.environ["LISTEN_FDS"])):
    inherited = socket.socket(fileno=3 + number)
    server = ThreadingHTTPServer(inherited.getsockname(), Answer, bind_and_activate=False)
    server.socket.close()
    server.socket = inherited
    threading.Thread(target=server.serve_forever).start()
"""


@dataclass
class Act:
    """One row of the table."""

    what: str
    outcome: str
    right: bool
    seconds: float
    sent: int
    moved: int
    lost: int


@dataclass
class Acts:
    """The acts so far, under one load."""

    title: str
    load: Load
    done: list[Act] = field(default_factory=list)
    doing: str | None = None
    ended_early: bool = False

    async def act(self, what: str, does: Awaitable[tuple[str, bool]]) -> None:
        """Perform one act; note its outcome and its effect on the clients."""
        began = time.monotonic()
        sent, moved, lost = self.load.report.sent, self.moved, self.lost
        self.doing = what
        outcome, right = await does
        self.doing = None
        took = time.monotonic() - began
        counts = (self.load.report.sent - sent, self.moved - moved, self.lost - lost)
        self.done.append(Act(what, outcome, right, took, *counts))

    @property
    def lost(self) -> int:
        return len(self.load.report.losses)

    @property
    def moved(self) -> int:
        """How many WebSockets and event streams were closed properly and connected again."""
        return sum(tally.goodbyes.total() for tally in self.load.report.kinds.values())

    @property
    def passed(self) -> bool:
        return self.lost == 0 and not self.ended_early and all(act.right for act in self.done)

    def conclusion(self, good: str) -> str:
        """Summarise the table in a sentence, that ends with `good` if all went well."""
        lost = f"{self.lost:,} of {self.load.report.sent:,} requests were lost"
        if self.passed:
            return f"{lost}, and {good}"
        if self.ended_early:
            return f"{lost}; it was ended early."
        return f"{lost}; every act in red failed." if self.lost == 0 else f"{lost}."


def table(acts: Acts) -> Table:
    shown = Table(title=acts.title, title_justify="left")
    shown.add_column("what happened")
    shown.add_column("outcome", overflow="fold")
    for column in ("took", "requests", "moved", "lost"):
        shown.add_column(column, justify="right")
    for act in acts.done:
        outcome = escape(act.outcome) if act.right else f"[red]{escape(act.outcome)}[/red]"
        numbers = (f"{act.seconds:.2f} s", f"{act.sent:,}", f"{act.moved}", f"{act.lost}")
        shown.add_row(act.what, outcome, *numbers)
    if acts.doing:
        shown.add_row(f"[cyan]{escape(acts.doing)}[/cyan]", "…")
    shown.add_section()
    colour = "green" if acts.lost == 0 else "red"
    seconds = sum(act.seconds for act in acts.done)
    counts = (f"{seconds:.2f} s", f"{acts.load.report.sent:,}", f"{acts.moved}")
    shown.add_row("[bold]total[/bold]", "", *counts, f"[{colour}]{acts.lost}[/{colour}]")
    return shown


@contextmanager
def growing(console: Console, acts: Acts) -> Iterator[None]:
    """Show the table row by row as it grows; in a pipe once, at the end."""
    if console.is_terminal:
        with Live(get_renderable=partial(table, acts), console=console):
            yield
    else:
        yield
        console.print(table(acts))


def signalled() -> asyncio.Event:
    """Return an event that Ctrl-C and SIGTERM set."""
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    return ended


async def perform(
    console: Console,
    acts: Acts,
    play: Awaitable[None],
    *,
    ended: asyncio.Event,
    hints: Callable[[], str] | None,
) -> int:
    """Play all acts, print their table, and stop the load. Returns the exit status.

    With `hints`, which are printed then, all keeps running until it is ended.
    """
    playing = asyncio.ensure_future(play)
    with growing(console, acts):
        await _first_of(playing, ended)
    acts.ended_early = playing.cancelled()
    if hints is not None and not ended.is_set():
        console.print(hints(), highlight=False, soft_wrap=True)
        await ended.wait()
    report = await acts.load.stop()
    if report.losses:
        console.print(report.describe(), highlight=False, markup=False, soft_wrap=True)
    return 0 if acts.passed else 1


async def _first_of(acts: asyncio.Future[None], ended: asyncio.Event) -> None:
    """Wait for the acts; a signal ends them early."""
    early = asyncio.create_task(ended.wait())
    both: set[asyncio.Future[Any]] = {acts, early}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        early.cancel()
        await cancelled(acts)  # of no effect once they are done


async def cancelled(task: asyncio.Future[None]) -> None:
    """Cancel a task, and raise what went wrong in it."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
