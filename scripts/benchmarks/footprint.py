"""What the daemon itself takes, idle and over many deploys: it must not grow. And its keeper.

The workers are tiny and know nothing of the supervisor: theirs is not what is measured.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from atlas_supervisor.system import procfs, sockdiag
from scripts.benchmarks.result import Options, Result
from tests.harness import DaemonProcess, Setting, write_release

WORKER = Path(__file__).with_name("tiny_worker.py")
SETTINGS: Mapping[str, Setting] = {"WORKER_COMMAND": "python -S tiny_worker.py", "HEALTH_PROBES": 1}
SAMPLES = 6


@dataclass(frozen=True)
class Sample:
    """The daemon after so many deploys; sizes in KiB."""

    deploys: int
    resident: int
    descriptors: int
    threads: int
    logs: int
    database: int


async def run(options: Options) -> Result:
    count, seconds = options.count or 300, options.seconds or 20
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        files = {WORKER.name: WORKER.read_text()}
        async with DaemonProcess.running(Path(name), SETTINGS, files=files) as daemon:
            idle = await idle_share(daemon.pid, seconds)
            keeper = memory(keeper_of(daemon))
            samples = [sample(daemon, 0)]
            for number in range(1, count + 1):
                await deploy(daemon, number)
                if number % max(1, count // SAMPLES) == 0:
                    samples.append(sample(daemon, number))
    return Result(
        [table(samples)],
        {
            "idle_cpu_percent": idle,
            "samples": [asdict(each) for each in samples],
            "keeper_kib": keeper,
        },
        [
            f"idle: {idle:.2f} % of a core over {seconds:.0f} s (probes of the worker included)",
            "the keeper of the sockets: {Rss} KiB resident, {Pss} KiB with its share of what it"
            " shares, {Private_Dirty} KiB its own".format_map(keeper),
        ],
    )


def keeper_of(daemon: DaemonProcess) -> int:
    """Return the process that has the public port and is neither the daemon nor a worker."""
    inodes = {each.inode for each in sockdiag.listeners(daemon.public_port)}
    (keeper,) = {*procfs.holders_of(inodes)} - {daemon.pid, *daemon.leftovers()}
    return keeper


def memory(pid: int) -> dict[str, int]:
    """Return the process's memory by kind, in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines)}


async def deploy(daemon: DaemonProcess, number: int) -> None:
    """Deploy once, to its very end."""
    write_release(daemon.worker_directory, f"v{number}")
    answer = await daemon.deploy()
    if answer.status != 200:
        raise RuntimeError(f"deploy {number} was not done: {answer}")
    await daemon.ended(answer.json["deploy_id"])


async def idle_share(pid: int, seconds: float) -> float:
    """Return how much of a core the daemon takes with nothing to do, in percent."""
    before = cpu_seconds(pid)
    await asyncio.sleep(seconds)
    return round((cpu_seconds(pid) - before) / seconds * 100, 3)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sample(daemon: DaemonProcess, deploys: int) -> Sample:
    """Look at the daemon from outside."""
    process = Path(f"/proc/{daemon.pid}")
    lines = (process / "status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return Sample(
        deploys,
        resident=int(status["VmRSS"].removesuffix(" kB")),
        descriptors=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
        logs=kib(daemon.state_dir, "logs/*"),
        database=kib(daemon.state_dir, "atlas.db*"),
    )


def kib(folder: Path, pattern: str) -> int:
    """Return the size of all files of that name, rounded up."""
    return -(-sum(path.stat().st_size for path in folder.glob(pattern)) // 1024)


def table(samples: list[Sample]) -> Table:
    shown = Table(title="the daemon after so many deploys", title_justify="left")
    for column in ("deploys", "resident, MB", "descriptors", "threads", "logs, KiB", "db, KiB"):
        shown.add_column(column, justify="right")
    for each in samples:
        shown.add_row(
            str(each.deploys),
            f"{each.resident * 1024 / 1e6:.1f}",
            *(str(value) for value in (each.descriptors, each.threads, each.logs, each.database)),
        )
    return shown
