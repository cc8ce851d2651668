"""`./scripts/demo [--once]`: the idea in ten seconds, under real load.

A daemon on free ports and throw-away state, with clients on its public port all the time: a good
release, a broken one, the operator's reset and a rollback. The last column counts lost requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from atlas_supervisor.cli.client import DaemonClient
from atlas_supervisor.cli.endpoint import Endpoint
from atlas_supervisor.cli.follow import events
from atlas_supervisor.cli.terminal import printable
from atlas_supervisor.output import unfailing_output
from tests.harness import Answer, DaemonProcess, Setting, write_release
from tests.loadclient import Kind, Load, bundled_worker_mix, streams

IDLE_GRACE_SECONDS = 1.0
QUIET_SECONDS = 1.0  # load alone, before and after the deploys

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
SMOKE = """\
[[http]]
name = "home answers"
path = "/"
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
class Demo:
    """The acts so far, against one daemon under one load."""

    daemon: DaemonProcess
    load: Load
    acts: list[Act] = field(default_factory=list)
    doing: str | None = None

    async def act(self, what: str, does: Awaitable[tuple[str, bool]]) -> None:
        """Perform one act; note its outcome and its effect on the clients."""
        began = time.monotonic()
        sent, moved, lost = self.load.report.sent, self.moved, self.lost
        self.doing = what
        outcome, right = await does
        self.doing = None
        took = time.monotonic() - began
        counts = (self.load.report.sent - sent, self.moved - moved, self.lost - lost)
        self.acts.append(Act(what, outcome, right, took, *counts))

    @property
    def lost(self) -> int:
        return len(self.load.report.losses)

    @property
    def moved(self) -> int:
        """How many WebSockets and event streams were closed properly and connected again."""
        return sum(tally.goodbyes.total() for tally in self.load.report.kinds.values())

    @property
    def passed(self) -> bool:
        return self.lost == 0 and all(act.right for act in self.acts)

    # The acts.

    async def serve(self) -> tuple[str, bool]:
        await asyncio.sleep(QUIET_SECONDS)
        version = (await self.daemon.status())["version"]
        return f"version {version} serves", True

    async def deploy(self, release: str, *, right: Callable[[Answer], bool]) -> tuple[str, bool]:
        answer = await self.daemon.deploy(release)
        return outcome_of(answer), right(answer)

    async def reset(self) -> tuple[str, bool]:
        before = (await self.daemon.status())["mode"]
        answer = await self.daemon.request("POST", "/deploy/mode", json={"mode": "bluegreen"})
        right = answer.status == 200
        return f"mode {before} → {answer.json['mode'] if right else answer.json}", right

    async def roll_back(self) -> tuple[str, bool]:
        answer = await self.daemon.request("POST", "/deploy/rollback")
        version = (await self.daemon.status())["version"]
        return f"version {version} serves again", answer.status == 200 and version == "1.0"


def outcome_of(answer: Answer) -> str:
    """Return a deploy's outcome in a line."""
    record = answer.json
    if answer.status == 200:
        return f"{record['result']}, version {record['version']} serves"
    reason = record.get("reason") or record.get("error", {}).get("message", "")
    return f"{record.get('result', answer.status)}: {reason}"


async def play(demo: Demo) -> None:
    """Perform all acts. The broken release must be refused, and everything else succeed."""
    await demo.act("serve release 1.0", demo.serve())
    await demo.act(
        "deploy release 1.1", demo.deploy("1.1", right=lambda answer: answer.status == 200)
    )
    await demo.act(
        "deploy release 1.2, which is broken",
        demo.deploy("1.2", right=lambda answer: answer.json.get("result") == "failed"),
    )
    await demo.act("enable deploys again", demo.reset())
    await demo.act("roll back to release 1.0", demo.roll_back())
    await demo.act("serve release 1.0", demo.serve())


async def narrate(demo: Demo, console: Console) -> None:
    """Print each transition of a deploy as the daemon publishes it."""
    began = time.monotonic()
    socket = demo.daemon.state_dir / "supervisor.sock"
    async with (
        DaemonClient(Endpoint(base="http://localhost", socket=socket)) as daemon,
        aclosing(events(daemon)) as news,
    ):
        async for event in news:
            if event is not None and event.kind == "transition":
                line = printable(described(json.loads(event.data)))
                passed = f"{time.monotonic() - began:7.2f} s  "
                console.print(passed + line, highlight=False, markup=False, soft_wrap=True)


def described(event: dict[str, Any]) -> str:
    """Return a transition in a line."""
    if event["source"] is None:
        return f"{event['version']}  {event['cause']}"
    happened = f"{event['source']} {event['event']}".replace("_", " ")
    return f"{event['version']}  {happened}: {event['cause']}"


def table(demo: Demo) -> Table:
    shown = Table(title="ATLAS Supervisor under load", title_justify="left")
    shown.add_column("what happened")
    shown.add_column("outcome", overflow="fold")
    for column in ("took", "requests", "moved", "lost"):
        shown.add_column(column, justify="right")
    for act in demo.acts:
        outcome = escape(act.outcome) if act.right else f"[red]{escape(act.outcome)}[/red]"
        numbers = (f"{act.seconds:.2f} s", f"{act.sent:,}", f"{act.moved}", f"{act.lost}")
        shown.add_row(act.what, outcome, *numbers)
    if demo.doing:
        shown.add_row(f"[cyan]{escape(demo.doing)}[/cyan]", "…")
    shown.add_section()
    colour = "green" if demo.lost == 0 else "red"
    seconds = sum(act.seconds for act in demo.acts)
    counts = (f"{seconds:.2f} s", f"{demo.load.report.sent:,}", f"{demo.moved}")
    shown.add_row("[bold]total[/bold]", "", *counts, f"[{colour}]{demo.lost}[/{colour}]")
    return shown


def conclusion(demo: Demo) -> str:
    """Summarise the table in a sentence."""
    lost = f"{demo.lost:,} of {demo.load.report.sent:,} requests were lost"
    if demo.passed:
        return f"{lost}, and the broken release never received a client."
    return f"{lost}; every act in red failed." if demo.lost == 0 else f"{lost}."


def hints(daemon: DaemonProcess) -> str:
    """Return commands to try on the running daemon."""
    control = f"http://127.0.0.1:{daemon.control_port}"
    client = f"./scripts/atlasctl --env-file {daemon.env_file}"
    return "\n".join(
        (
            "The daemon keeps running under load; Ctrl-C stops it. To try:",
            f"  curl http://127.0.0.1:{daemon.public_port}/",
            f"  curl {control}/deploy/status",
            f"  {client} status",
            f"  {client} deploy 1.1",
            f"  {client} history",
            f"  {control}/docs",
        )
    )


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Demo]:
    """Run a daemon with three releases, and clients on its public port."""
    releases = folder / "releases"
    for version, program in (("1.0", GOOD), ("1.1", GOOD), ("1.2", BROKEN)):
        write_release(releases / version, version, {"serve.py": program})
    smoke = folder / "smoke.toml"
    smoke.write_text(SMOKE)
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": f"env ATLAS_IDLE_GRACE_SECONDS={IDLE_GRACE_SECONDS} python serve.py",
        "WORKER_DIRECTORY": releases / "1.0",
        "RELEASES_DIR": releases,
        "KEEP_WARM_SECONDS": 300,
        "DRAIN_TIMEOUT_SECONDS": 5,  # streams are closed within half of it
        "SMOKE_FILE": smoke,
        "HEALTH_INTERVAL_SECONDS": 0.2,
    }
    mix: tuple[Kind, ...] = (*bundled_worker_mix(pause=0.7 * IDLE_GRACE_SECONDS), *streams())
    async with (
        DaemonProcess.running(folder, settings) as daemon,
        Load("127.0.0.1", daemon.public_port, mix) as load,
    ):
        yield Demo(daemon, load)


@contextmanager
def growing(console: Console, demo: Demo) -> Iterator[None]:
    """Show the table row by row as it grows; in a pipe once, at the end."""
    if console.is_terminal:
        with Live(get_renderable=partial(table, demo), console=console):
            yield
    else:
        yield
        console.print(table(demo))


async def demonstrate(*, once: bool) -> int:
    console = Console()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    with tempfile.TemporaryDirectory(prefix="atlas-demo-") as name:
        console.print("Starting a daemon on free ports, and clients on its public port …")
        async with stage(Path(name)) as demo:
            acts = asyncio.create_task(play(demo))
            lines = asyncio.create_task(narrate(demo, console))
            with growing(console, demo):
                await first_of(acts, ended)
            if not once and not ended.is_set():
                console.print(hints(demo.daemon), highlight=False, soft_wrap=True)
                await ended.wait()
            await cancelled(lines)
            report = await demo.load.stop()
        if report.losses:
            console.print(report.describe(), highlight=False, markup=False, soft_wrap=True)
    console.print(conclusion(demo), highlight=False, soft_wrap=True)
    if acts.cancelled():
        return 1
    return 0 if demo.passed else 1


async def first_of(acts: asyncio.Task[None], ended: asyncio.Event) -> None:
    """Wait for the acts; a signal ends them early."""
    signalled = asyncio.create_task(ended.wait())
    try:
        await asyncio.wait({acts, signalled}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        signalled.cancel()
        await cancelled(acts)  # of no effect once they are done


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a task, and raise what went wrong in it."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.split("\n\n")[1])
    parser.add_argument("--once", action="store_true", help="exit when done: 0 if all went well")
    with unfailing_output("scripts/demo"):
        return asyncio.run(demonstrate(once=parser.parse_args().once))


if __name__ == "__main__":
    sys.exit(main())
