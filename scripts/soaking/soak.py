"""Random faults under load: what may happen to a daemon in a bad year, in some minutes.

One action follows another, drawn from a seed; after each one every invariant is checked. Losses
count unless the very process that served the request was killed by the soak.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from random import Random
from typing import Any

import aiohttp

from atlas_supervisor.system import procfs
from scripts.soaking import application
from scripts.soaking.report import ANSWERS, LIVES, WORKERS_STAY, Findings
from tests.failpoints import CanaryCaller, reload
from tests.faults.support import limited
from tests.harness import Answer, DaemonProcess, Setting, eventually
from tests.integration.support import slot
from tests.invariants import INVARIANTS, fresh_workers, lasting_violations, workers_of
from tests.loadclient import Load, Loss, Reason

SETTINGS: dict[str, Setting] = {
    **application.SETTINGS,
    "CANARY_ENABLED": "true",
    "CANARY_PERCENTAGE": 0.5,
    "GUARD_SECONDS": 0.5,
    "HEALTH_PROBES": 1,
    "KEEP_WARM_SECONDS": 10,
    "TRAFFIC_RAMP": "0.2,0.6,1",
    "TRAFFIC_STEP_SECONDS": 0.5,
    "TRAFFIC_MIN_REQUESTS": 5,
    "GUARD_HOLDBACK": 0.1,
}
ACTION_SECONDS = 90.0
"""No action takes longer, a drain included."""
SETTLE_SECONDS = 30.0
LONGEST_AWAY_SECONDS = 20.0
IN_FLIGHT_SECONDS = 2.0
"""Losses of a killed worker's clients are noticed within this time."""
CUT = {Reason.RESET, Reason.CLOSED, Reason.TRUNCATED}
ACCEPTED = 202
DOCUMENTED = {200, 202, 409, 422, 423, 503}


class Soak:
    """One run. Its actions are the methods in `ACTIONS`."""

    def __init__(
        self,
        daemon: DaemonProcess,
        load: Load,
        caller: CanaryCaller,
        random: Random,
        findings: Findings,
    ) -> None:
        self.killed = 0
        """How many processes that served were killed."""
        self.allowed = 0
        """Losses of clients whose request was in flight at a process that the soak killed."""
        self._daemon = daemon
        self._load = load
        self._caller = caller
        self._random = random
        self._findings = findings
        self._versions = 1
        self._judged = 0
        """So many losses were judged."""
        self._killed_at: list[float] = []
        """When the soak killed a process that served, in seconds of the load."""

    def drawn_for(self, seconds: float) -> Iterator[str]:
        """Yield actions, drawn by how often each one is wanted, for so long."""
        names, weights = list(ACTIONS), [weight for weight, _ in ACTIONS.values()]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield from self._random.choices(names, weights)

    def shuffled(self, times: Mapping[str, int]) -> list[str]:
        """Return each action as often as is asked for, in a random order."""
        names = [name for name, count in times.items() for _ in range(count)]
        return self._random.sample(names, len(names))

    async def run(self, names: Iterable[str]) -> None:
        """Do the actions of these names, and check after each one."""
        minute = time.monotonic() + 60
        for name in names:
            self._findings.acted(name)
            try:
                async with asyncio.timeout(ACTION_SECONDS):
                    await ACTIONS[name][1](self)
                    await self._caller.call(self._random.randrange(10))
            except (TimeoutError, aiohttp.ClientError, OSError, AssertionError) as error:
                self._findings.note(ANSWERS, [repr(error)], name)
            await self._check(name)
            await asyncio.sleep(self._random.expovariate(4))
            if time.monotonic() > minute:
                minute += 60
                self._findings.print(f"{self._findings.actions.total()} actions")

    async def _check(self, after: str) -> None:
        """Check every invariant; a daemon that has ended by itself is started again."""
        found: dict[str, list[str]] = {}
        try:
            found = await lasting_violations(
                self._daemon, self._unexpected_losses(), within=SETTLE_SECONDS
            )
        except (aiohttp.ClientError, OSError) as error:
            found[ANSWERS] = [repr(error)]
            await asyncio.sleep(1)  # it may be about to end
        if not self._daemon.runs:
            found[LIVES] = ["it has ended by itself"]
        self._findings.check((*INVARIANTS, LIVES), found, after, self._daemon.story)
        if not self._daemon.runs:
            await self._start()

    def _unexpected_losses(self) -> list[Loss]:
        """Return the losses since the last call that no killed worker explains."""
        losses = self._load.report.losses[self._judged :]
        self._judged += len(losses)
        explained = [
            loss
            for loss in losses
            if loss.reason in CUT
            and any(0 <= loss.at - killed <= IN_FLIGHT_SECONDS for killed in self._killed_at)
        ][: application.CLIENTS * len(self._killed_at)]
        self.allowed += len(explained)
        self._killed_at.clear()
        return [loss for loss in losses if loss not in explained]

    async def _ask(self, method: str, path: str, **more: Any) -> Answer:
        answer = await self._daemon.request(method, path, **more)
        problems = [] if answer.status in DOCUMENTED else [f"{method} {path}: {answer}"]
        self._findings.note(ANSWERS, problems, path)
        return answer

    # What operators do.

    async def deploy(self, *, good: bool = True, wait: bool = True) -> Answer:
        self._versions += 1
        name = f"v{self._versions}"
        application.put_release(self._daemon, name, good)
        query = {} if wait else {"wait": "false"}
        answer = await self._ask("POST", "/deploy/bluegreen", params=query, json={"release": name})
        if wait and answer.status == 200 and not good:
            raise AssertionError("a release without a program was switched to")
        return answer

    async def deploy_broken(self) -> None:
        await self.deploy(good=False)

    async def deploy_and_abort(self) -> None:
        await self.deploy(wait=False)
        await asyncio.sleep(self._random.uniform(0, 1.2))
        await self._ask("POST", "/deploy/abort")

    async def ramp(self) -> None:
        """Steer the ramp of a deploy, until it has all of the traffic or none."""
        await self.deploy(wait=False)
        for _ in range(self._random.randrange(1, 6)):
            await asyncio.sleep(self._random.uniform(0, 1.2))
            if (weight := self._random.choice((None, None, 0, 0.4))) is not None:
                await self._ask("POST", "/deploy/traffic", json={"staging_weight": weight})
                continue
            body = {"action": self._random.choice(("pause", "resume", "advance"))}
            await self._ask("POST", "/deploy/ramp", json=body)
        await self._ask("POST", f"/deploy/{self._random.choice(('switch', 'abort'))}")

    async def kill_in_a_ramp(self) -> None:
        """Kill the daemon, one version's worker, or both, and let the next daemon go on."""
        await self.deploy(wait=False)
        await asyncio.sleep(self._random.uniform(1, 3))
        if self._random.random() < 0.5:
            await self._kill_worker(self._random.choice(("active", "staging")))
        await self.kill()
        await self._ask("POST", f"/deploy/{self._random.choice(('switch', 'abort'))}")

    async def hold(self) -> None:
        """Hold new connections for some seconds; the daemon may be killed meanwhile."""
        if self._random.random() < 0.5:
            await self.deploy(wait=False)
        answer = await self._ask("POST", "/traffic/hold", json={"max_seconds": 3})
        await asyncio.sleep(self._random.uniform(0, 1.5))
        if self._random.random() < 0.3:
            await self.kill()
        elif answer.status == 200:
            await self._ask("POST", "/traffic/release")
        await self._ask("POST", "/deploy/abort")

    async def roll_back(self) -> None:
        await self._ask("POST", "/deploy/rollback")

    async def enable_deploys(self) -> None:
        await self._ask("POST", "/deploy/mode", json={"mode": "bluegreen"})

    async def reload(self) -> None:
        workers = workers_of(self._daemon)
        if await reload(self._daemon) == ACCEPTED:
            self._findings.note(
                WORKERS_STAY, await fresh_workers(self._daemon, workers), "a reload"
            )

    async def latch_the_canary(self) -> None:
        """Let enough calls fail that the canary falls back, unless many were good before."""
        await self._caller.call(400, error_rate=1)
        await asyncio.sleep(self._random.uniform(0, 1))

    async def reset_the_canary(self) -> None:
        await self._ask("POST", "/deploy/canary/reset")

    # What happens to the daemon.

    async def kill(self) -> None:
        if carried(self._daemon):  # rescued from a worker that the soak killed
            self.killed += 1
            self._killed_at.append(self._load.seconds)
        await self._daemon.kill()
        longest = LONGEST_AWAY_SECONDS if self._random.random() < 0.3 else 2.0
        await asyncio.sleep(self._random.uniform(0, longest))
        await self._start()

    async def kill_during_a_deploy(self) -> None:
        await self.deploy(good=self._random.random() < 0.8, wait=False)
        await asyncio.sleep(self._random.uniform(0, 3))
        await self.kill()

    async def _start(self) -> None:
        workers, began = workers_of(self._daemon), time.monotonic()
        await self._daemon.start()
        self._findings.starts.append(time.monotonic() - began)
        self._findings.note(WORKERS_STAY, await fresh_workers(self._daemon, workers), "a kill")

    async def pause(self) -> None:
        with suspended(self._daemon.pid):
            await asyncio.sleep(self._random.uniform(0, 4))

    async def shortage_of_descriptors(self) -> None:
        with limited(self._daemon.pid, resource.RLIMIT_NOFILE, 8):
            await self._under_a_fault()

    async def full_disk(self) -> None:
        with limited(self._daemon.pid, resource.RLIMIT_FSIZE, 1):
            await self._under_a_fault()

    async def locked_database(self) -> None:
        path = self._daemon.state_dir / "atlas.db"
        with closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            await self._under_a_fault()

    async def _under_a_fault(self) -> None:
        """Let something happen that starts no worker, which would inherit a limit."""
        duty = self._random.choice((self.enable_deploys, self.reset_the_canary, None))
        if duty is not None:
            await duty()
        await asyncio.sleep(self._random.uniform(0, 7))

    async def spoiled_state_file(self) -> None:
        path = self._daemon.state_dir / "deploy_state.json"
        path.write_bytes(self._random.randbytes(self._random.randrange(200)))
        await eventually(lambda: path.read_bytes().startswith(b"{"))

    async def removed_logs(self) -> None:
        for path in (self._daemon.state_dir / "logs").iterdir():
            path.unlink(missing_ok=True)

    async def slow_clients_of_the_api(self) -> None:
        async with slow_clients(self._daemon.control_port, 50):
            await self.enable_deploys()
            await asyncio.sleep(self._random.uniform(0, 2))

    # What happens to its workers.

    async def kill_the_active_worker(self) -> None:
        await self._kill_worker("active")

    async def kill_the_other_worker(self) -> None:
        await self._kill_worker("staging")

    async def _kill_worker(self, role: str) -> None:
        view = slot(await self._daemon.status(), role)
        if view["pid"] is None:
            return
        self.killed += 1
        self._killed_at.append(self._load.seconds)
        with suppress(ProcessLookupError):
            os.kill(view["pid"], signal.SIGKILL)
        await asyncio.sleep(IN_FLIGHT_SECONDS)


def carried(daemon: DaemonProcess) -> int:
    """Return how many clients' connections the daemon itself carries."""
    return len(procfs.connections_of([daemon.pid], {daemon.public_port}))


@contextmanager
def suspended(pid: int) -> Iterator[None]:
    """Stop the process meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def slow_clients(port: int, count: int) -> AsyncIterator[None]:
    """Keep connections to the API open that never send a whole request."""
    opened = []
    try:
        for _ in range(count):
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"POST /deploy/mode HTTP/1.1\r\nHost: ")
                opened.append(writer)
        yield
    finally:
        for writer in opened:
            writer.close()


Action = Callable[[Soak], Awaitable[object]]

ACTIONS: Mapping[str, tuple[float, Action]] = {
    "deploys": (6, Soak.deploy),
    "broken releases": (2, Soak.deploy_broken),
    "deploys and aborts": (2, Soak.deploy_and_abort),
    "ramps": (3, Soak.ramp),
    "kills in a ramp": (3, Soak.kill_in_a_ramp),
    "holds": (2, Soak.hold),
    "rollbacks": (3, Soak.roll_back),
    "resets of the mode": (3, Soak.enable_deploys),
    "reloads": (3, Soak.reload),
    "canary failures": (1, Soak.latch_the_canary),
    "canary resets": (2, Soak.reset_the_canary),
    "kills": (4, Soak.kill),
    "kills during a deploy": (4, Soak.kill_during_a_deploy),
    "pauses (SIGSTOP)": (1, Soak.pause),
    "shortages of descriptors": (1, Soak.shortage_of_descriptors),
    "full disks": (1, Soak.full_disk),
    "locked databases": (1, Soak.locked_database),
    "spoiled state files": (1, Soak.spoiled_state_file),
    "removed logs": (1, Soak.removed_logs),
    "slow clients": (1, Soak.slow_clients_of_the_api),
    "killed active workers": (1, Soak.kill_the_active_worker),
    "killed other workers": (1, Soak.kill_the_other_worker),
}
"""By name: how often, and what is done."""
