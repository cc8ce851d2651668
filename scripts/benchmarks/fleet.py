"""A fleet of a thousand hosts on one real etcd: the kill switch, a rollout, and etcd's faults.

Each host is the daemon's own `Fleet` with its own connections, in a few processes; only the machine
under it is played (`fleet_hosts`). One group of hosts has a clock that is a day ahead, and reaches
etcd through a relay that can be stopped: to these hosts that is a network that swallows everything.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from atlas_supervisor.errors import ROLLOUT_IN_PROGRESS, RefusedError
from atlas_supervisor.fleet.documents import KILL, PRESENT, ROLLOUT, KillSwitch, Rollout
from atlas_supervisor.fleet.engine import EngineError, Put, Snapshot
from atlas_supervisor.fleet.etcd import EtcdEngine
from atlas_supervisor.fleet.rollouts import Rollouts
from atlas_supervisor.system.clock import now
from scripts.benchmarks.fleet_hosts import BROKEN, DAY_SECONDS, FAILS
from scripts.benchmarks.machine import allow_many_files
from scripts.benchmarks.result import CannotRunError, Options, Result, quantile
from tests import etcd
from tests.harness import free_ports

HOSTS = 1000
_GROUPS = 10
"""Processes of hosts. A host's own threads wait for its interpreter, and hundreds share one."""
KILLS = 10
_ACKNOWLEDGED_SECONDS = 5.0
"""Between two kills: a thousand hosts acknowledge one within four seconds."""
_FAULT_SECONDS = 10.0
_DEPLOY_SECONDS = 2.0
_ALL_SECONDS = 180.0
"""How long anything is waited for."""


@dataclass
class Group:
    """One process of hosts."""

    first: int
    count: int
    process: asyncio.subprocess.Process
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ask(self, **command: Any) -> Any:
        """Send a command; return the answer."""
        writer, reader = self.process.stdin, self.process.stdout
        if writer is None or reader is None:
            raise TypeError
        async with self.lock:
            writer.write(json.dumps(command).encode() + b"\n")
            return json.loads(await reader.readline())


@dataclass
class Bench:
    """The fleet, and how to look at it."""

    cluster: etcd.Cluster
    engine: EtcdEngine
    groups: list[Group]
    relay: asyncio.subprocess.Process
    epoch: int = 0
    rows: list[tuple[str, str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def hosts(self) -> int:
        """How many there are."""
        return sum(group.count for group in self.groups)

    def note(self, name: str, text: str, **values: Any) -> None:
        """Add a row of the table, and the same as data."""
        self.rows.append((name, text))
        self.data[name] = values
        print(f"{name}: {text}", file=sys.stderr, flush=True)

    async def read(self, key: str) -> Snapshot:
        """Read, however often it has to be tried on a machine that is too busy."""
        deadline = time.monotonic() + _ALL_SECONDS
        while True:
            try:
                return await self.engine.read(key)
            except EngineError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.5)

    async def each(self, **command: Any) -> list[Any]:
        """Ask all groups."""
        return list(await asyncio.gather(*(group.ask(**command) for group in self.groups)))

    async def kill(self) -> float:
        """Set the next epoch; return when that began."""
        self.epoch += 1
        switch = KillSwitch(epoch=self.epoch, every_feature=True, set_ts=now(), set_by="bench")
        began = time.monotonic()
        while True:
            try:
                await self.engine.commit([], Put(KILL, switch.written()))
            except EngineError:
                await asyncio.sleep(0.05)
            else:
                return began

    async def applied(self, groups: list[Group] | None = None) -> list[float]:
        """Return when each host had the present epoch in force, once all of them have."""
        wanted = groups or self.groups
        deadline = time.monotonic() + _ALL_SECONDS
        while True:
            found = await asyncio.gather(*(each.ask(applied=self.epoch) for each in wanted))
            times = [at for part in found for at in part]
            if len(times) == sum(each.count for each in wanted):
                return times
            if time.monotonic() > deadline:
                raise RuntimeError(f"a kill reached {len(times)} hosts only")
            await asyncio.sleep(0.5)

    async def until(self, condition: Callable[[list[Any]], bool]) -> float:
        """Return how long it took until the groups' states are as wanted."""
        began = time.monotonic()
        while not condition(await self.each(state=True)):
            if time.monotonic() - began > _ALL_SECONDS:
                raise RuntimeError("the hosts are not as they should be after three minutes")
            await asyncio.sleep(0.1)
        return time.monotonic() - began

    async def until_calm(self) -> None:
        """Wait until all hosts are connected and present."""
        await self.until(lambda states: sum(each["away"] for each in states) == 0)
        deadline = time.monotonic() + _ALL_SECONDS
        while len((await self.read(PRESENT)).entries) < self.hosts:
            if time.monotonic() > deadline:
                raise RuntimeError("not all hosts are present after three minutes")
            await asyncio.sleep(0.5)


async def run(options: Options) -> Result:
    if etcd.PROGRAM is None:
        raise CannotRunError(etcd.MISSING)
    allow_many_files()
    hosts = options.count or HOSTS
    async with opened(hosts) as bench:
        await bench.until_calm()
        await steady(bench, options.seconds or 20.0)
        await kills(bench)
        await clocks(bench)
        await stopped(bench)
        await hung(bench)
        await compacted(bench)
        await parted(bench)
        await rollout(bench)
        await broken_rollout(bench)
        table = Table(title=f"a fleet of {hosts:,} hosts on one etcd", title_justify="left")
        table.add_column("")
        table.add_column("measured")
        for name, text in bench.rows:
            table.add_row(name, text)
        load = f"load average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        notes = [
            f"{load}, which etcd and all hosts share",
            "a host's own disk is memory; etcd waits for its disk",
            "times of a kill are from the operator's commit to `in force` on the host",
        ]
        return Result([table], bench.data, notes)


@asynccontextmanager
async def opened(hosts: int) -> AsyncIterator[Bench]:
    """Start etcd, the relay and the hosts."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="atlas-bench-"))
        cluster = stack.enter_context(etcd.cluster(Path(folder), durable=True))
        (endpoint,) = cluster.endpoints
        (port,) = free_ports(1)
        relay = await stack.enter_async_context(_program("fleet_relay", port, endpoint))
        groups = []
        sizes = [
            hosts * (number + 1) // _GROUPS - hosts * number // _GROUPS for number in range(_GROUPS)
        ]
        for number, count in enumerate(sizes):
            is_far = number == _GROUPS - 1
            given = {
                "first": sum(sizes[:number]),
                "count": count,
                "endpoint": f"http://127.0.0.1:{port}" if is_far else endpoint,
                "clock-ahead": DAY_SECONDS if is_far else 0,
                "deploy-seconds": _DEPLOY_SECONDS,
            }
            options = [f"--{name}={value}" for name, value in given.items()]
            process = await stack.enter_async_context(_program("fleet_hosts", *options))
            groups.append(Group(sum(sizes[:number]), count, process))
        engine = EtcdEngine(cluster.endpoints, "/atlas/bench/")
        yield Bench(cluster, await stack.enter_async_context(engine), groups, relay)


@asynccontextmanager
async def _program(name: str, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", f"scripts.benchmarks.{name}", *map(str, arguments))
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 24)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 20)
            except TimeoutError:
                process.kill()
                await process.wait()


def _etcd_numbers(bench: Bench) -> dict[str, float]:
    """Return counters of etcd's own."""
    with urllib.request.urlopen(f"{bench.cluster.endpoints[0]}/metrics", timeout=10) as answer:  # noqa: S310 - ours
        text = answer.read().decode()
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("grpc_server_handled_total") and 'grpc_code="OK"' in name:
            found["requests"] = found.get("requests", 0) + float(value)
        if name in {"etcd_server_proposals_applied_total", "process_cpu_seconds_total"}:
            found[name] = float(value)
    return found


async def steady(bench: Bench, seconds: float) -> None:
    """What a thousand hosts cost while nothing happens, and how fast an operator's read is."""
    before, states = await asyncio.to_thread(_etcd_numbers, bench), await bench.each(state=True)
    began, reads = time.monotonic(), []
    while time.monotonic() - began < seconds:
        asked = time.monotonic()
        await bench.read(KILL)
        reads.append((time.monotonic() - asked) * 1000)
        await asyncio.sleep(0.05)
    taken = time.monotonic() - began
    after, later = await asyncio.to_thread(_etcd_numbers, bench), await bench.each(state=True)
    rate = {name: (after[name] - before[name]) / taken for name in before}
    cpu = sum(b["cpu"] - a["cpu"] for a, b in zip(states, later, strict=True)) / taken
    requests, writes = rate["requests"], rate["etcd_server_proposals_applied_total"]
    etcd_cpu = rate["process_cpu_seconds_total"]
    bench.note(
        "steady: requests",
        f"{requests:,.0f}/s, of them {writes:,.0f} writes/s",
        requests=requests,
        writes=writes,
    )
    bench.note(
        "steady: CPU",
        f"etcd {etcd_cpu * 100:.0f} %, all hosts {cpu * 100:.0f} % of a core",
        etcd=etcd_cpu,
        hosts=cpu,
    )
    bench.note("steady: a linearizable read", _summary(reads, "ms"), milliseconds=reads)


async def kills(bench: Bench) -> None:
    """How long until a kill is in force on each host."""
    taken: list[float] = []
    worst: list[float] = []
    for _ in range(KILLS):
        began = await bench.kill()
        times = [at - began for at in await bench.applied()]
        taken += times
        worst.append(max(times))
        await asyncio.sleep(_ACKNOWLEDGED_SECONDS)
    bench.note(
        f"kill: in force, {KILLS} x {bench.hosts:,} hosts",
        _summary(taken, "s"),
        seconds=sorted(taken)[:: max(len(taken) // 1000, 1)],
        slowest_of_each=worst,
    )


async def clocks(bench: Bench) -> None:
    """The same for the hosts whose clock is a day ahead alone."""
    began = await bench.kill()
    times = [at - began for at in await bench.applied(bench.groups[-1:])]
    await bench.applied()
    bench.note("kill: on hosts with a clock a day ahead", _summary(times, "s"), seconds=times)


async def stopped(bench: Bench) -> None:
    """etcd is stopped and started again."""
    bench.cluster.members[0].stop()
    await _away(bench, "etcd stopped")
    await asyncio.to_thread(bench.cluster.start)
    await _back(bench, "etcd started again")


async def hung(bench: Bench) -> None:
    """etcd hangs, with all connections open."""
    bench.cluster.members[0].suspend()
    await _away(bench, "etcd hung (SIGSTOP)")
    bench.cluster.members[0].resume()
    await _back(bench, "etcd goes on (SIGCONT)")


async def _away(bench: Bench, name: str) -> None:
    """Note when all hosts have noticed, and that they keep their kills meanwhile."""
    noticed = await bench.until(lambda states: sum(each["away"] for each in states) == bench.hosts)
    await asyncio.sleep(_FAULT_SECONDS)
    states = await bench.each(state=True)
    kept = all(each["epochs"] == [bench.epoch] for each in states)
    text = f"all hosts report it within {noticed:.1f} s; kills kept: {'all' if kept else 'NOT ALL'}"
    bench.note(name, text, noticed=noticed, kept=kept)


async def _back(bench: Bench, name: str) -> None:
    """Note how soon a kill that is set at once is in force, and all hosts are present again."""
    began = time.monotonic()
    await bench.kill()
    times = [at - began for at in await bench.applied()]
    await bench.until_calm()
    calm = time.monotonic() - began
    bench.note(
        name,
        f"a kill at once: {_summary(times, 's')}; all present after {calm:.1f} s",
        seconds=times,
        calm=calm,
    )


async def compacted(bench: Bench) -> None:
    """While all hosts are disconnected, a kill is set and the history before it compacted."""
    bench.relay.send_signal(signal.SIGSTOP)
    await bench.until(lambda states: states[-1]["away"] == bench.groups[-1].count)
    began = await bench.kill()
    await bench.kill()
    await asyncio.to_thread(bench.cluster.compact)
    bench.relay.send_signal(signal.SIGCONT)
    began = time.monotonic()
    times = [at - began for at in await bench.applied()]
    far = sorted(times)[-bench.groups[-1].count :]
    await bench.until_calm()
    bench.note(
        "history compacted while hosts were cut off",
        f"their kill: {_summary(far, 's')}",
        seconds=far,
    )


async def parted(bench: Bench) -> None:
    """A group of hosts loses its network; a kill is set; the network is back."""
    far = bench.groups[-1]
    bench.relay.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    await bench.until(lambda states: states[-1]["away"] == far.count)
    noticed = time.monotonic() - began
    before = bench.epoch
    began = await bench.kill()
    times = [at - began for at in await bench.applied(bench.groups[:-1])]
    await asyncio.sleep(_FAULT_SECONDS)
    state = await far.ask(state=True)
    kept = state["epochs"] == [before]
    bench.note(
        f"{far.count} hosts parted",
        f"they report it within {noticed:.1f} s and keep what "
        f"they knew: {'all' if kept else 'NOT ALL'}; a kill on the others: "
        f"{_summary(times, 's')}",
        noticed=noticed,
        kept=kept,
        seconds=times,
    )
    bench.relay.send_signal(signal.SIGCONT)
    began = time.monotonic()
    times = [at - began for at in await bench.applied([far])]
    await bench.until_calm()
    bench.note(
        "the network is back", f"the kill they missed: {_summary(times, 's')}", seconds=times
    )


async def rollout(bench: Bench) -> None:
    """A release for all hosts, some of them at a time."""
    slots = max(bench.hosts // 20, 1)
    before = await asyncio.to_thread(_etcd_numbers, bench)
    began = time.monotonic()
    await begun(bench, "v2", slots)
    ended = await _ended(bench)
    taken = time.monotonic() - began
    after = await asyncio.to_thread(_etcd_numbers, bench)
    writes = after["etcd_server_proposals_applied_total"]
    writes = (writes - before["etcd_server_proposals_applied_total"]) / taken
    deploys = [deploy for part in await bench.each(deploys=True) for deploy in part]
    at_once = _most_at_once(deploys)
    bench.note(
        f"rollout, {slots} at a time",
        f"{ended.state} after {taken:.0f} s, "
        f"{len(deploys):,} deploys of {_DEPLOY_SECONDS:g} s, at most {at_once} at once; "
        f"{writes:,.0f} writes/s",
        seconds=taken,
        deploys=len(deploys),
        at_once=at_once,
    )


async def broken_rollout(bench: Bench) -> None:
    """A release that fails on one host."""
    slots = max(bench.hosts // 100, 1)
    await begun(bench, BROKEN, slots)
    ended = await _ended(bench)
    await asyncio.sleep(3 * _DEPLOY_SECONDS)
    deploys = [deploy for part in await bench.each(deploys=True) for deploy in part]
    failed = [end for _, end, passed in deploys if not passed]
    later = [began - failed[0] for began, _, _ in deploys if began > failed[0]]
    last = f"the last deploy began {max(later, default=0.0):.2f} s after the failure"
    host = ended.halt.host if ended.halt else None
    bench.note(
        f"rollout that fails on {FAILS}",
        f"{ended.state} by {host}; {len(later)} deploys began after it; {last}",
        later=later,
        host=host,
    )


async def begun(bench: Bench, release: str, slots: int) -> None:
    """Begin a rollout, however often that has to be tried on a machine that is too busy."""
    while True:
        try:
            rollouts = Rollouts(bench.engine)
            await rollouts.begin(release, by="bench", max_unavailable=slots, waves=[1, 0.1, 1])
        except RefusedError as error:
            if error.code == ROLLOUT_IN_PROGRESS.code:
                return
            await asyncio.sleep(0.5)
        else:
            return


async def _ended(bench: Bench) -> Rollout:
    """Return the rollout once it goes on no more."""
    async with asyncio.timeout(10 * _ALL_SECONDS):
        while True:
            value = (await bench.read(ROLLOUT)).value(ROLLOUT)
            if value and (found := Rollout.read(ROLLOUT, value)).state != "running":
                return found
            await asyncio.sleep(0.5)


def _most_at_once(deploys: list[tuple[float, float, bool]]) -> int:
    """Return how many deploys were in progress at the same time."""
    changes = [(at, change) for begin, end, _ in deploys for at, change in ((begin, 1), (end, -1))]
    most = running = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


def _summary(values: list[float], unit: str) -> str:
    quantiles = (quantile(values, 0.5), quantile(values, 0.99), max(values))
    return "median {:.2f}, p99 {:.2f}, max {:.2f} ".format(*quantiles) + unit
