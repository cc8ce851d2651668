"""The longest request during a switch beside the longest without one: same run, same load.

Rounds of three windows of equal length: nothing happens; a deploy launches and tests the next
version and stops before its switch; the switch is done, and the old version lets its clients go.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from scripts.benchmarks.result import Options, quantile
from tests.harness import Answer, DaemonProcess, Setting, write_release
from tests.loadclient import Load, Traffic, bundled_worker_home, echo

WINDOW_SECONDS = 1.2
APART_SECONDS = 0.3  # what a window began is over before the next one
ROUNDS = 30
MIX = (
    Traffic("keep-alive GET", 4, bundled_worker_home, think=(0.005, 0.02)),
    echo("one connection per request", 4, body_size=64, keep_alive=False, think=(0.005, 0.02)),
)
QUIET, GATES, SWITCH = "nothing happens", "launch and gates", "the switch"


@dataclass
class Windows:
    """The latencies of all requests that ended in windows of one kind, per round, in ms."""

    rounds: list[list[float]] = field(default_factory=list)

    @property
    def every(self) -> list[float]:
        return [each for one in self.rounds for each in one]

    def figures(self) -> dict[str, float]:
        every, longest = self.every, [max(one) for one in self.rounds]
        return {
            "requests": len(every),
            "p50": round(quantile(every, 0.5), 2),
            "p99.9": round(quantile(every, 0.999), 2),
            "median longest of a round": round(statistics.median(longest), 2),
            "longest of all": round(max(longest), 2),
        }


async def measure(folder: Path, options: Options) -> dict[str, Windows]:
    """Go through the rounds; the figures of each kind of window."""
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": "env ATLAS_IDLE_GRACE_SECONDS=0.3 python -m atlas_worker",
        "AUTO_SWITCH_ON_HEALTH": "false",
        "HEALTH_PROBES": 1,
    }
    found = {kind: Windows() for kind in (QUIET, GATES, SWITCH)}
    async with (
        DaemonProcess.running(folder, settings) as daemon,
        Load("127.0.0.1", daemon.public_port, MIX) as load,
    ):
        for number in range(2, (options.rounds or ROUNDS) + 2):
            write_release(daemon.worker_directory, f"v{number}")
            await window(load, found[QUIET], nothing())
            deployed = await window(load, found[GATES], daemon.deploy())
            answer = await window(load, found[SWITCH], daemon.request("POST", "/deploy/switch"))
            if answer is None or deployed is None or answer.status != 200:
                raise RuntimeError(f"round {number - 1} was not done: {deployed}, {answer}")
            await daemon.ended(deployed.json["deploy_id"])
        report = await load.stop()
    if report.losses:
        raise RuntimeError(f"requests were lost:\n{report.describe()}")
    return found


async def nothing() -> None:
    """Let the load run by itself."""


async def window(load: Load, into: Windows, does: Awaitable[Answer | None]) -> Answer | None:
    """Do one thing at the beginning of a window, and note the requests that end in it."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(APART_SECONDS)
    ends = loop.time() + WINDOW_SECONDS
    before = {name: len(tally.latencies) for name, tally in load.report.kinds.items()}
    answer = await does
    await asyncio.sleep(max(0.0, ends - loop.time()))
    into.rounds.append(
        [
            each
            for name, tally in load.report.kinds.items()
            for each in tally.latencies[before[name] :]
        ]
    )
    return answer


def figures(found: dict[str, Windows]) -> dict[str, dict[str, float]]:
    return {kind: windows.figures() for kind, windows in found.items()}


def table(found: dict[str, Windows]) -> Table:
    rows = figures(found)
    rounds = len(found[QUIET].rounds)
    title = f"requests in {rounds} windows each of {WINDOW_SECONDS} s: ms, and times 'nothing'"
    shown = Table(title=title, title_justify="left")
    shown.add_column("window")
    for column in rows[QUIET]:
        shown.add_column(column, justify="right")
    for kind, values in rows.items():
        cells = [
            f"{value:,.0f}" if name == "requests" else f"{value} ({value / rows[QUIET][name]:.2f})"
            for name, value in values.items()
        ]
        shown.add_row(kind, *cells)
    return shown
