"""`./scripts/demo [--fleet] [--once]`: the idea in ten seconds, under real load.

A daemon on free ports and throw-away state, with clients on its public port all the time: a good
release, a broken one, the operator's reset and a rollback. The last column counts lost requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from atlas_supervisor.cli.client import DaemonClient
from atlas_supervisor.cli.endpoint import Endpoint
from atlas_supervisor.cli.follow import events
from atlas_supervisor.cli.terminal import printable
from atlas_supervisor.output import unfailing_output
from scripts import fleet_demonstration
from scripts.acts import BROKEN, GOOD, Acts, cancelled, perform, signalled
from tests.harness import Answer, DaemonProcess, Setting, write_release
from tests.loadclient import Kind, Load, bundled_worker_mix, streams

IDLE_GRACE_SECONDS = 1.0
QUIET_SECONDS = 1.0  # load alone, before and after the deploys

SMOKE = """\
[[http]]
name = "home answers"
path = "/"
"""


@dataclass
class Demo:
    """A daemon, and the acts with it."""

    daemon: DaemonProcess
    acts: Acts

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
    await demo.acts.act("serve release 1.0", demo.serve())
    await demo.acts.act(
        "deploy release 1.1", demo.deploy("1.1", right=lambda answer: answer.status == 200)
    )
    await demo.acts.act(
        "deploy release 1.2, which is broken",
        demo.deploy("1.2", right=lambda answer: answer.json.get("result") == "failed"),
    )
    await demo.acts.act("enable deploys again", demo.reset())
    await demo.acts.act("roll back to release 1.0", demo.roll_back())
    await demo.acts.act("serve release 1.0", demo.serve())


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
        yield Demo(daemon, Acts("ATLAS Supervisor under load", load))


async def demonstrate(*, once: bool) -> int:
    console = Console()
    ended = signalled()
    with tempfile.TemporaryDirectory(prefix="atlas-demo-") as name:
        console.print("Starting a daemon on free ports, and clients on its public port …")
        async with stage(Path(name)) as demo:
            lines = asyncio.create_task(narrate(demo, console))
            to_try = None if once else partial(hints, demo.daemon)
            status = await perform(console, demo.acts, play(demo), ended=ended, hints=to_try)
            await cancelled(lines)
    conclusion = demo.acts.conclusion("the broken release never received a client.")
    console.print(conclusion, highlight=False, soft_wrap=True)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.split("\n\n")[1])
    parser.add_argument("--once", action="store_true", help="exit when done: 0 if all went well")
    parser.add_argument(
        "--fleet", action="store_true", help="three machines, with a real etcd and HAProxy"
    )
    options = parser.parse_args()
    play = fleet_demonstration.demonstrate if options.fleet else demonstrate
    with unfailing_output("scripts/demo"):
        return asyncio.run(play(once=options.once))


if __name__ == "__main__":
    sys.exit(main())
