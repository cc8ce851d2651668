"""Deploys, rollbacks and killed workers under load, and small servers to try its clients on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness import DaemonProcess, Setting, write_release
from tests.integration.support import slot, until_phase
from tests.loadclient import (
    Kind,
    Load,
    Report,
    Traffic,
    bundled_worker_mix,
    streams,
)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

APPS = Path(__file__).parent / "apps"
IDLE_GRACE_SECONDS = 0.8
DRAIN_TIMEOUT_SECONDS = 4
# What stands in the worker directory, and how it is run there.
WORKERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "bundled": ((), "python -m atlas_worker"),
    "asgi": (("asgi_kit_app.py",), "python -m atlas_worker.asgi asgi_kit_app:app"),
    "aiohttp": (("aiohttp_kit_app.py",), "python aiohttp_kit_app.py"),
}


@dataclass(frozen=True)
class Run:
    """What came of it; `seconds` are those of the deploys and of the rollbacks.

    `left` names the streams that an older version still served when the last one should have
    sent its streams away.
    """

    report: Report
    deploys: int
    rollbacks: int
    seconds: tuple[float, float]
    left: list[str]

    def describe(self) -> str:
        """Return the whole for people."""
        took = (
            f"{self.deploys} deploys in {self.seconds[0]:.1f} s",
            f"{self.rollbacks} rollbacks, each after a deploy, in {self.seconds[1]:.1f} s",
        )
        return "\n".join((*took, self.report.describe()))

    def faults(self) -> list[str]:
        """Return what was lost, and every goodbye that is not as it should be; empty is right."""
        found = [str(loss) for loss in self.report.losses]
        for kind in streams():
            told = self.report.kinds[kind.name].goodbyes.total()
            if told < kind.loops:
                found.append(f"{kind.name}: only {told} were told to go")
        return found + self.left


async def deploys_and_rollbacks(
    folder: Path, worker: str, *, deploys: int, rollbacks: int, think: float = 0.08
) -> Run:
    """Deploy, then deploy and roll back, so many times, under load; each must be done.

    `think` is the longest time between two requests of a busy client, in seconds.
    """
    names, command = WORKERS[worker]
    mix: list[Kind] = [*bundled_worker_mix(think=think, pause=0.7 * IDLE_GRACE_SECONDS), *streams()]
    # The old versions are warm while their streams are told to go, until the next deploy.
    settings: dict[str, Setting] = {
        "WORKER_COMMAND": f"env ATLAS_IDLE_GRACE_SECONDS={IDLE_GRACE_SECONDS} {command}",
        "DRAIN_TIMEOUT_SECONDS": DRAIN_TIMEOUT_SECONDS,
        "HEALTH_PROBES": 1,
        "KEEP_WARM_SECONDS": 60,
    }
    files = {name: (APPS / name).read_text() for name in names}
    async with (
        DaemonProcess.running(folder, settings, files=files) as daemon,
        Load("127.0.0.1", daemon.public_port, mix) as load,
    ):
        began = time.monotonic()
        for number in range(2, deploys + 2):
            await deploy(daemon, f"v{number}")
        half = time.monotonic()
        for number in range(1, rollbacks + 1):
            before = (await daemon.status())["version"]
            await deploy(daemon, f"bad{number}")
            answer = await daemon.request("POST", "/deploy/rollback")
            assert (answer.status, answer.json["result"]) == (200, "rolled_back"), answer
            assert (await daemon.status())["version"] == before
        ended = time.monotonic()
        left = await left_behind(load.report, (await daemon.status())["version"])
        report = await load.stop()
    return Run(report, deploys, rollbacks, (half - began, ended - half), left)


async def left_behind(report: Report, version: str) -> list[str]:
    """Wait until this version serves every stream, or their time is up; return those that wait.

    How often a stream was sent away before says little: several versions may come and go before
    its turn comes.
    """
    deadline = time.monotonic() + 2 * DRAIN_TIMEOUT_SECONDS
    while True:
        left = [
            f"{kind.name} {number}: still served by {who}"
            for kind in streams()
            for number, who in report.kinds[kind.name].latest.items()
            if who != version
        ]
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.05)


async def deploy(daemon: DaemonProcess, version: str) -> None:
    """Deploy once; it must be switched to."""
    write_release(daemon.worker_directory, version)
    answer = await daemon.deploy()
    assert answer.json["result"] == "switched", answer
    assert answer.json["version"] == version


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """Serve one kind of behaviour on a free port."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the report is data that grows, not an event
            await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Rescue:
    """What came of it: the load's report, and per kill how many connections were passed on."""

    report: Report
    rescued: list[int]


async def kill_under_load(
    folder: Path, settings: dict[str, Setting], mix: Sequence[Traffic], *, times: int
) -> Rescue:
    """Deploy, kill the new version with SIGKILL while the old one is warm; `times` over."""
    settings = {**settings, "KEEP_WARM_SECONDS": 60, "HEALTH_PROBES": 1}
    rescued = []
    async with (
        DaemonProcess.running(folder, settings) as daemon,
        Load("127.0.0.1", daemon.public_port, mix) as load,
    ):
        for number in range(2, times + 2):
            write_release(daemon.worker_directory, f"v{number}")
            deployed = await daemon.deploy()
            assert deployed.json["result"] == "switched", deployed
            await until_phase(daemon, "warm")
            os.kill(slot(await daemon.status(), "active")["pid"], signal.SIGKILL)
            record = await daemon.ended(deployed.json["deploy_id"])
            assert record["result"] == "rolled_back", record
            rescued.append(record["steps"][-1]["detail"]["rescued"])
        report = await load.stop()
    return Rescue(report, rescued)


@dataclass(frozen=True)
class Restarts:
    """What came of the daemon's kills: the load's report, and the requests lost by each kill."""

    report: Report
    lost: list[int]
    workers: set[int]
    """All worker processes that were there."""


async def kill_the_daemon_under_load(
    folder: Path, settings: dict[str, Setting], mix: Sequence[Kind], *, times: int
) -> Restarts:
    """Kill the daemon with SIGKILL and start it again, `times` over."""
    async with (
        DaemonProcess.running(folder, settings) as daemon,
        Load("127.0.0.1", daemon.public_port, mix) as load,
    ):
        lost, workers = [], {*daemon.leftovers()}
        for _ in range(times):
            before = len(load.report.losses)
            assert daemon.process is not None
            daemon.process.kill()
            await daemon.process.wait()
            await daemon.stop_clients()
            await daemon.start()
            workers |= {*daemon.leftovers()}
            lost.append(len(load.report.losses) - before)
        report = await load.stop()
    return Restarts(report, lost, workers)
