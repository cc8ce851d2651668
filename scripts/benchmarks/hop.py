"""What the way through the public port costs, beside the usual ways of doing the same.

The kernel is the router here, so the public port should be as quick as the slot's own. HAProxy
and nginx stand before the very same worker. Rounds of all four are interleaved, so that a noisy
moment of the machine meets all of them, and every ratio is taken within its round.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from scripts.benchmarks.proxies import haproxy, nginx
from scripts.benchmarks.result import CannotRunError, Options, Result
from scripts.benchmarks.wrk import Figures, wrk
from tests.harness import DaemonProcess, free_ports, missing

SLOT = "slot's own port"
PACKAGES = ("wrk", "haproxy", "nginx")


@dataclass(frozen=True)
class Kind:
    """A way of asking. With one connection nothing is saturated, and the hop's latency shows."""

    name: str
    connections: int
    keep_alive: bool


KINDS = (
    Kind("keep-alive, 16 connections", 16, keep_alive=True),
    Kind("keep-alive, 1 connection", 1, keep_alive=True),
    Kind("one connection per request, 16 at a time", 16, keep_alive=False),
)

Rounds = dict[str, list[Figures]]


async def run(options: Options) -> Result:
    absent = missing(*PACKAGES)
    if absent:
        raise CannotRunError(f"install the packages of these programs first: {', '.join(absent)}")
    # Many short rounds: on a machine that has other things to do, only neighbours compare.
    rounds, seconds = options.rounds or 12, options.seconds or 1
    measured: dict[str, Rounds] = {}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        folder = Path(name)
        async with DaemonProcess.running(folder) as daemon:
            backend = (await daemon.status())["active_port"]
            ports = free_ports(2)
            async with haproxy(folder, ports[0], backend), nginx(folder, ports[1], backend):
                targets = {
                    "public port": daemon.public_port,
                    SLOT: backend,
                    "HAProxy": ports[0],
                    "nginx": ports[1],
                }
                for kind in KINDS:
                    measured[kind.name] = await compare(folder, targets, kind, rounds, seconds)
    return Result(
        [table(kind, figures) for kind, figures in measured.items()],
        {
            "rounds": rounds,
            "seconds": seconds,
            "results": {
                kind: {
                    target: {**median(figures), "ratio": ratio(by_target, target)}
                    for target, figures in by_target.items()
                }
                for kind, by_target in measured.items()
            },
        },
        [
            f"GET / of the bundled worker, {rounds} rounds of {seconds} s; medians, also of ratios",
            "HAProxy and nginx keep their own connections to the worker, which spares it accepting",
        ],
    )


async def compare(
    folder: Path, targets: dict[str, int], kind: Kind, rounds: int, seconds: float
) -> Rounds:
    """Run every target once a round, beginning with another one each time."""
    figures: Rounds = {target: [] for target in targets}
    order = list(targets)
    for number in range(rounds + 1):
        start = number % len(order)
        for target in order[start:] + order[:start]:
            found = await wrk(
                folder,
                f"http://127.0.0.1:{targets[target]}/",
                seconds=seconds,
                connections=kind.connections,
                keep_alive=kind.keep_alive,
            )
            if number:  # the first round warms up
                figures[target].append(found)
    return figures


def median(figures: list[Figures]) -> dict[str, float]:
    """Return the median of each figure over all rounds, and all errors."""
    rows = [asdict(each) for each in figures]
    medians = {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
    return {**medians, "errors": sum(each.errors for each in figures)}


def ratio(rounds: Rounds, target: str) -> float:
    """Return the median, over the rounds, of the rate against the slot's own port."""
    pairs = zip(rounds[target], rounds[SLOT], strict=True)
    return round(
        statistics.median(
            one.requests_per_second / other.requests_per_second for one, other in pairs
        ),
        3,
    )


def table(kind: str, rounds: Rounds) -> Table:
    shown = Table(title=kind, title_justify="left")
    shown.add_column("")
    for column in ("requests/s", "of slot's own", "p50, ms", "p99, ms", "errors"):
        shown.add_column(column, justify="right")
    for target, figures in rounds.items():
        middle = median(figures)
        shown.add_row(
            target,
            f"{middle['requests_per_second']:,.0f}",
            f"{ratio(rounds, target):.3f}",
            f"{middle['p50_ms']:.2f}",
            f"{middle['p99_ms']:.2f}",
            f"{middle['errors']}",
        )
    return shown
