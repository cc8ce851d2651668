"""Some hosts of a simulated fleet, in one process: the daemon's own parts, on played machines.

`./scripts/bench fleet` starts it. Each line that it reads is a command as JSON, each line that it
writes the answer. All times are of the monotonic clock, which is one for all processes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.fleet.documents import (
    ArmCount,
    Evidence,
    FeatureCount,
    HostDeploy,
    KillSwitch,
)
from atlas_supervisor.fleet.etcd import EtcdEngine
from atlas_supervisor.fleet.fleet import Fleet
from atlas_supervisor.fleet.local import LocalOutcome, LocalState
from atlas_supervisor.system import clock

DAY_SECONDS = 86400.0
FEATURES = ("search", "vision")
START_SECONDS = 20.0
"""Within which all hosts start."""
BROKEN = "broken"
"""The release that fails, on the host of `FAILS`."""
FAILS = "host-0010"


class PlayedMachine:
    """A `LocalSupervisor` without workers. A deploy takes its time, and changes the version."""

    def __init__(self, host: str, deploy_seconds: float) -> None:
        self.host = host
        self.kills: list[tuple[int, float]] = []
        """Each epoch, and when it was in force."""
        self.deploys: list[tuple[float, float, bool]] = []
        """From when until when, and whether it passed."""
        self._deploy_seconds = deploy_seconds
        self._version = "v1"
        self._last: HostDeploy | None = None
        self._outcomes: dict[str, asyncio.Task[LocalOutcome]] = {}
        self._began = time.monotonic()

    def state(self) -> LocalState:
        """As in `LocalSupervisor`."""
        is_deploying = any(not each.done() for each in self._outcomes.values())
        return LocalState(self._version, 100, "bluegreen", self._last, is_deploying)

    async def deploy(self, release: str, *, key: str) -> LocalOutcome:
        """As in `LocalSupervisor`."""
        if key not in self._outcomes:
            self._outcomes[key] = asyncio.create_task(self._deploy(release, key))
        return await asyncio.shield(self._outcomes[key])

    async def _deploy(self, release: str, key: str) -> LocalOutcome:

        began = time.monotonic()
        await asyncio.sleep(self._deploy_seconds)
        passed = not (release == BROKEN and self.host == FAILS)
        self.deploys.append((began, time.monotonic(), passed))
        self._version = release if passed else self._version
        self._last = HostDeploy(
            deploy_id=key,
            result="switched" if passed else "failed",
            release=release,
            version=self._version,
            ended_ts=clock.now(),
        )
        return LocalOutcome(passed, key, self._version, "" if passed else "failed at health")

    async def go_back(self, release: str, *, key: str) -> LocalOutcome:
        """As in `LocalSupervisor`."""
        return await self.deploy(f"before {release}", key=key)

    async def outcome(self, *, key: str) -> LocalOutcome | None:
        """As in `LocalSupervisor`."""
        return await asyncio.shield(self._outcomes[key]) if key in self._outcomes else None

    async def abort(self, *, key: str) -> None:
        """As in `LocalSupervisor`: it has switched already."""

    async def kill(self, switch: KillSwitch) -> None:
        """As in `LocalSupervisor`."""
        self.kills.append((switch.epoch, time.monotonic()))

    def evidence(self) -> Evidence:
        """As in `LocalSupervisor`: calls that never end."""

        calls = int((time.monotonic() - self._began) * 10)
        arm = ArmCount(calls=calls, errors=calls // 100)
        features = {name: FeatureCount(canary=arm, stable=arm) for name in FEATURES}
        return Evidence(boot_epoch=self.host, features=features, counted_ts=clock.now())


class Hosts:
    """The hosts of this process."""

    def __init__(self) -> None:
        self.machines: list[PlayedMachine] = []
        self.engines: list[EtcdEngine] = []
        self.fleets: list[Fleet] = []

    async def run(self, options: argparse.Namespace, folder: Path) -> None:
        """Run all hosts until standard input ends."""
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._host(options, folder, number))
                for number in range(options.first, options.first + options.count)
            ]
            await self._answer_commands()
            for each in running:
                each.cancel()

    async def _host(self, options: argparse.Namespace, folder: Path, number: int) -> None:

        name = f"host-{number:04d}"
        state_dir = folder / name
        state_dir.mkdir()
        settings = Settings.model_construct(
            base_dir=folder, state_dir=state_dir, fleet_name="bench", fleet_host=name
        )
        machine = PlayedMachine(name, options.deploy_seconds)
        await asyncio.sleep(START_SECONDS * (number - options.first) / options.count)
        async with EtcdEngine([options.endpoint], "/atlas/bench/") as engine:
            fleet = Fleet(settings, engine, machine, None, kills=None)  # type: ignore[arg-type]
            self.machines.append(machine)
            self.engines.append(engine)
            self.fleets.append(fleet)
            await fleet.run()

    async def _answer_commands(self) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        while line := await reader.readline():
            print(json.dumps(self._answer(json.loads(line))), flush=True)

    def _answer(self, command: dict[str, Any]) -> Any:
        if epoch := command.get("applied"):
            times = [[at for found, at in each.kills if found == epoch] for each in self.machines]
            return [each[0] for each in times if each]
        if command.get("deploys"):
            return [deploy for each in self.machines for deploy in each.deploys]
        outages = [each.outage for each in self.engines]
        known = [each.kills.applied.epoch if each.kills.applied else 0 for each in self.fleets]
        return {
            "hosts": len(self.machines),
            "away": sum(each is not None for each in outages),
            "reasons": sorted({each.reason.split(": ", 1)[-1] for each in outages if each})[:5],
            "waits": sum(bool(each._agent.waits_for) for each in self.fleets),  # noqa: SLF001
            "epochs": sorted(set(known)),
            "versions": sorted({each.state().version or "" for each in self.machines}),
            "cpu": time.process_time(),
        }


def set_clock(ahead: timedelta) -> None:
    """Set the wall clock of all hosts in this process."""
    real = clock.now
    for module in list(sys.modules.values()):
        if getattr(module, "now", None) is real:
            module.now = lambda: datetime.now(UTC) + ahead  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--deploy-seconds", type=float, required=True)
    parser.add_argument("--clock-ahead", type=float, default=0.0)
    options = parser.parse_args()
    gc.set_threshold(100_000, 50, 1000)  # hundreds of hosts share what one has to itself:
    sys.setswitchinterval(0.0005)  # its heap, and an interpreter for the thread that writes
    set_clock(timedelta(seconds=options.clock_ahead))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    memory = "/dev/shm"  # noqa: S108 - a thousand machines do not share one disk
    with tempfile.TemporaryDirectory(prefix="atlas-bench-", dir=memory) as folder:
        asyncio.run(Hosts().run(options, Path(folder)))


if __name__ == "__main__":
    main()
