"""A simulated fleet on a real etcd: its machines, its operator, and what is known of them."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import structlog

from atlas_supervisor.fleet import etcd_client, etcd_watch
from atlas_supervisor.fleet.documents import PRESENT, HostResult
from atlas_supervisor.fleet.etcd import EtcdEngine
from atlas_supervisor.fleet.situation import Situation, Turns
from tests.etcd import Cluster, member
from tests.harness import free_ports
from tests.simulation.fleet.facts import OPERATOR, Death, Facts, Recorder
from tests.simulation.fleet.history import Checker
from tests.simulation.fleet.machine import Link, Machine

ETCD = ("--heartbeat-interval=50", "--election-timeout=250")
"""So that a lease may last two seconds only."""
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextmanager
def quick() -> Iterator[None]:
    """Let the engine's clocks run fast, and log nothing."""
    with (
        patch.object(etcd_client, "REQUEST_SECONDS", 0.6),
        patch.object(etcd_watch, "REQUEST_SECONDS", 0.6),
        patch.object(etcd_watch, "SILENT_SECONDS", 1.0),
        patch.object(etcd_watch, "_LONGEST_PAUSE", 0.4),
    ):
        before = structlog.get_config()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        try:
            yield
        finally:
            structlog.configure(**before)


@contextmanager
def quick_etcd() -> Iterator[Cluster]:
    """Run an etcd of one member, in a folder in memory."""
    client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        etcd = Cluster([member(Path(folder), "m0", client, peer, arguments=ETCD)])
        try:
            etcd.start()
            yield etcd
        finally:
            etcd.stop()


@asynccontextmanager
async def fleet(
    etcd: Cluster,
    draw: random.Random,
    *,
    hosts: int,
    prefix: str = "/atlas/simulated/",
    near_hosts: int = 20,
) -> AsyncIterator[World]:
    """Run machines h1, h2 and so on, an operator, and the recorder; all have joined.

    `near_hosts` is that of `Pace`: with 0, most of them only read the semaphore now and then.
    """
    world = World(etcd, draw, prefix, near_hosts)
    async with AsyncExitStack() as stack:
        recording = asyncio.create_task(world.recorder.run())
        try:
            world.operator = await world.link(OPERATOR, stack)
            for number in range(1, hosts + 1):
                await world.add(f"h{number}", stack)
            await world.until_present()
            yield world
            await world.end()
        finally:
            for machine in world.machines:
                await machine.die()
            await asyncio.gather(*(link.close() for link in world.links))
            recording.cancel()
            with suppress(asyncio.CancelledError):
                await recording


@dataclass
class World:
    """A fleet, what happens to it, and what is known of it."""

    etcd: Cluster
    draw: random.Random
    prefix: str
    near_hosts: int
    facts: Facts = field(default_factory=Facts)
    machines: list[Machine] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.etcd.endpoints[0], self.prefix)
        self.bad: set[tuple[str, str]] = set()
        self.operator: Link

    async def link(self, client: str, stack: AsyncExitStack) -> Link:
        engine = EtcdEngine(self.etcd.endpoints, self.prefix)
        link = Link(await stack.enter_async_context(engine), client, self.facts, self.draw)
        self.links.append(link)
        return link

    async def add(self, name: str, stack: AsyncExitStack) -> None:
        link, second = await self.link(name, stack), await self.link(name, stack)
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY))
        machine = Machine(
            name,
            (link, second),
            self.facts,
            self.draw,
            lambda: self.recorder.newest,
            disk=Path(folder),
            near_hosts=self.near_hosts,
        )
        machine.fails = lambda release: (name, release) in self.bad
        self.machines.append(machine)
        machine.start()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds, by what the recorder has read."""
        while not holds():
            await self.recorder.grown()

    async def until_present(self) -> None:
        """Wait until every machine that is up has announced itself."""
        wanted = {PRESENT + machine.name for machine in self.up}
        await self.until(lambda: wanted <= self.recorder.state.keys())

    async def end(self) -> None:
        """Let all machines die, and the recorder read all that they did."""
        for machine in self.machines:
            await machine.die()
        await asyncio.gather(*(link.close() for link in self.links))
        everything = await self.operator.read("")
        await self.recorder.until(max(entry.revision for entry in everything.entries))

    def violations(self) -> list[str]:
        """Return one line for each promise that was broken."""
        return Checker(self.recorder.history, self.facts).violations()

    @property
    def turns(self) -> Turns:
        """The rollout and the semaphore, as the recorder has read them."""
        return Turns.read(self.recorder.snapshot())

    def results(self) -> dict[str, HostResult]:
        """Return the results of the present rollout, by host."""
        return dict(Situation.read(self.recorder.snapshot()).results)

    def note(self, what: str) -> None:
        self.counts[what] += 1

    @property
    def up(self) -> list[Machine]:
        return [machine for machine in self.machines if machine.is_up]

    async def let_die(self, machine: Machine) -> None:
        """Let a machine die, if it is up."""
        async with machine.changing:
            if machine.is_up:
                await machine.die()
                death = Death(machine.name, machine.link.life, self.recorder.newest)
                self.facts.deaths.append(death)

    async def bring_back(self, machine: Machine) -> None:
        """Start a machine that died."""
        async with machine.changing:
            if not machine.is_up:
                for death in self.facts.deaths:
                    if death.host == machine.name and death.back_at is None:
                        death.back_at = self.recorder.newest
                machine.start()
