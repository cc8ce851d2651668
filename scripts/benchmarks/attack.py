"""What honest clients notice of 256 to 4,000 hostile connections to the control API.

Six kinds of them, each beside an honest client with the token and one on the Unix socket. The
attackers have no token; what the daemon closes they open again at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from scripts.benchmarks import attacker, honest
from scripts.benchmarks.footprint import SETTINGS, WORKER, kib, sample
from scripts.benchmarks.result import Options, Result, quantile
from tests.harness import DaemonProcess

COUNTS = (256, 1000, 4000)
JOURNAL = 20
"""Deploys before the attack, so that there is something to ask for."""
_OPEN_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Row:
    """One attack: requests of honest clients, and what the daemon took at most."""

    kind: str
    connections: int
    requests: int
    failed: int
    p99: Mapping[str, float | None]
    """Milliseconds by way; None if a percent or more was not answered."""
    resident: int
    descriptors: int
    logged: int
    """Sizes in KiB."""


async def run(options: Options) -> Result:
    counts = (options.count,) if options.count else COUNTS
    seconds = options.seconds or 5.0
    rows = [await attack("none", 0, seconds)]
    for kind in attacker.KINDS:
        rows += [await attack(kind, count, seconds) for count in counts]
    return Result([table(rows)], {"rows": [asdict(row) for row in rows]}, notes(rows))


async def attack(kind: str, count: int, seconds: float) -> Row:
    """Measure one attack on a daemon of its own."""
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        files = {WORKER.name: WORKER.read_text()}
        async with DaemonProcess.running(Path(name), SETTINGS, files=files) as daemon:
            for _ in range(JOURNAL):
                answer = await daemon.deploy()
                await daemon.ended(answer.json["deploy_id"])
            logged = kib(daemon.state_dir, "logs/supervisor*")
            largest = _Largest(daemon)
            looking = asyncio.create_task(largest.look())
            async with attackers(kind, count, daemon.control_port):
                took = await asked(daemon, seconds)
            looking.cancel()
            logged = kib(daemon.state_dir, "logs/supervisor*") - logged
    flat = [each for way in took.values() for each in way]
    return Row(
        kind,
        count,
        requests=len(flat),
        failed=flat.count(None),
        p99={way: _p99(values) for way, values in took.items()},
        resident=largest.resident,
        descriptors=largest.descriptors,
        logged=logged,
    )


class _Largest:
    def __init__(self, daemon: DaemonProcess) -> None:
        self._daemon = daemon
        self.resident = self.descriptors = 0

    async def look(self) -> None:
        while True:
            seen = sample(self._daemon, 0)
            self.resident = max(self.resident, seen.resident)
            self.descriptors = max(self.descriptors, seen.descriptors)
            await asyncio.sleep(_LOOK_SECONDS)


def _p99(values: list[float | None]) -> float | None:
    worst = quantile([float("inf") if each is None else each for each in values], 0.99)
    return None if worst == float("inf") else round(worst, 1)


@asynccontextmanager
async def attackers(kind: str, count: int, port: int) -> AsyncIterator[None]:
    """Have an attack going on; it has opened as many connections as it could in some seconds."""
    if not count:
        yield
        return
    arguments = ("-m", attacker.__name__, kind, str(count), str(port))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, cwd=_ROOT
    )
    try:
        if process.stdout is not None:
            with suppress(TimeoutError):  # they are not let in, and go on trying
                await asyncio.wait_for(process.stdout.readline(), _OPEN_SECONDS)
        yield
    finally:
        process.kill()
        await process.wait()


async def asked(daemon: DaemonProcess, seconds: float) -> dict[str, list[float | None]]:
    """Have the honest clients ask for some seconds."""
    socket = str(daemon.state_dir / "supervisor.sock")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", honest.__name__),
        *(socket, str(daemon.control_port), daemon.token, str(seconds)),
        stdout=asyncio.subprocess.PIPE,
        cwd=_ROOT,
    )
    output, _ = await process.communicate()
    took: dict[str, list[float | None]] = json.loads(output)
    return took


def table(rows: list[Row]) -> Table:
    shown = Table(title="honest requests beside hostile connections", title_justify="left")
    shown.add_column("attack")
    ways = list(rows[0].p99)
    for column in (
        *("connections", "requests", "failed"),
        *(f"p99 {way}, ms" for way in ways),
        *("resident, MB", "descriptors", "logged, KiB"),
    ):
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(
            row.kind,
            *(f"{number:,}" for number in (row.connections, row.requests, row.failed)),
            *("lost" if row.p99[way] is None else f"{row.p99[way]:.1f}" for way in ways),
            f"{row.resident * 1024 / 1e6:.1f}",
            *(f"{number:,}" for number in (row.descriptors, row.logged)),
        )
    return shown


def notes(rows: list[Row]) -> list[str]:
    slowest = max((value or float("inf")) for row in rows for value in row.p99.values())
    largest = max(row.resident for row in rows) * 1024 / 1e6
    return [
        f"the slowest p99 of an honest client is {slowest:.1f} ms; the aim is under 100",
        f"the daemon takes {largest:.1f} MB at most; the aim is under 120",
    ]
