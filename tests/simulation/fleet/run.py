"""Plays a fleet's rollouts with failures that a seed draws, on a real etcd, and checks history.

The seed draws what happens; when exactly is up to real processes, so the same seed is another run
of the same plan. After the failures all is mended, and a rollout has to pass: a fleet that keeps
every promise by standing still is found too.
"""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import structlog

from atlas_supervisor.errors import AtlasError, RefusedError
from atlas_supervisor.fleet import etcd_client, etcd_watch
from atlas_supervisor.fleet.documents import (
    HOSTS,
    KILL,
    PRESENT,
    TURNS,
    HostResult,
    KillSwitch,
    RolloutState,
)
from atlas_supervisor.fleet.engine import Delete, EngineError, Put
from atlas_supervisor.fleet.etcd import EtcdEngine
from atlas_supervisor.fleet.reboots import SlotRefusedError
from atlas_supervisor.fleet.rollouts import Rollouts
from atlas_supervisor.fleet.turn import Situation, Turns
from atlas_supervisor.model.deploy import Mode
from tests.etcd import Cluster, member
from tests.harness import free_ports
from tests.simulation.fleet.history import OPERATOR, Checker, Death, Facts, Recorder
from tests.simulation.fleet.machine import MISSING, OWN, Link, Machine

ETCD = ("--heartbeat-interval=50", "--election-timeout=250")
"""So that a lease may last a second only."""
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
UPDATER = "updater"
"""The FleetLock client of each machine."""
CHAOS_SECONDS = 12.0
CALM_SECONDS = 30.0
"""Within which the last rollout has to pass."""


@dataclass
class Played:
    """How a seed went."""

    seed: int
    broken: list[str]
    counts: Counter[str]

    @property
    def text(self) -> str:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        broken = [f"BROKEN: {each}" for each in self.broken]
        return "\n".join((f"seed {self.seed}: {counts}", *broken))


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


def play(seed: int, *, chaos_seconds: float = CHAOS_SECONDS) -> Played:
    """Play a seed with an etcd of its own."""
    with quick_etcd() as etcd, quick():
        return asyncio.run(_played(seed, etcd, chaos_seconds))


async def _played(seed: int, etcd: Cluster, chaos_seconds: float) -> Played:
    draw = random.Random(seed)  # noqa: S311 - a plan, no secret
    async with fleet(etcd, draw, hosts=draw.randint(3, 7)) as world:
        await world.misfortunes(chaos_seconds)
        calm = await world.calm()
    broken = world.violations()
    if calm:
        broken.append(calm)
    world.counts["revisions"] = len(world.recorder.history)
    world.counts["deploys"] = len(world.facts.deploys)
    world.counts["failed deploys"] = sum(not each.passed for each in world.facts.deploys)
    return Played(seed, broken, world.counts)


@asynccontextmanager
async def fleet(
    etcd: Cluster, draw: random.Random, *, hosts: int, prefix: str = "/atlas/simulated/"
) -> AsyncIterator[World]:
    """Run machines h1, h2 and so on, an operator, and the recorder; all have joined."""
    world = World(etcd, draw, prefix)
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
    facts: Facts = field(default_factory=Facts)
    machines: list[Machine] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.etcd.endpoints[0], self.prefix)
        self.bad: set[tuple[str, str]] = set()
        self.operator: Link
        self._reboots: set[asyncio.Task[None]] = set()

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
        wanted = {PRESENT + machine.name for machine in self._up}
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

    async def misfortunes(self, seconds: float) -> None:
        """Let the operator and fate act, one after the other."""
        for link in self.links:
            link.loses = self.draw.choice((0.0, 0.05, 0.2))
        acts: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (14, self._begin),
            (2, self._pause),
            (12, self._resume),
            (2, self._abort),
            (3, self._roll_back),
            (8, self._break),
            (5, self._kill_machine),
            (6, self._revive),
            (3, self._restart),
            (3, self._cut),
            (12, self._mend),
            (1, self._hang_etcd),
            (1, self._crash_etcd),
            (2, self._compact),
            (3, self._reboot),
            (3, self._kill_feature),
            (4, self._own_deploy),
            (3, self._enable),
            (1, self._forget),
            (1, self._garbage),
        ]
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            (act,) = self.draw.choices([act for _, act in acts], [weight for weight, _ in acts])
            try:
                await act()
            except RefusedError as error:
                self._note(f"refused {error.code}")
            except EngineError:
                self._note("engine did not answer")
            await asyncio.sleep(self.draw.uniform(0.02, 0.3))

    async def calm(self) -> str | None:
        """Mend all, and let a rollout pass; return what stands in its way if it does not."""
        self.bad.clear()
        for link in self.links:
            link.loses = 0.0
            link.mend()
        for machine in self.machines:
            await self.bring_back(machine)
            machine.mode = Mode.BLUEGREEN
        await self._remove_garbage()
        await asyncio.gather(*self._reboots)
        try:
            async with asyncio.timeout(CALM_SECONDS):
                await self.until_present()
                await self._until_passed()
                await self.until(self._is_killed_everywhere)
        except TimeoutError:
            what = "all was mended, and no rollout passed, or a kill is not everywhere"
            return f"{what}: {self._reasons}; {self.turns}"
        return None

    async def _until_passed(self) -> None:
        rollouts = Rollouts(self.operator)
        wanted = None
        while True:
            with suppress(AtlasError):
                turns = Turns.read(await self.operator.read(TURNS))
                rollout = turns.rollout
                for machine in self.machines:  # of a reboot whose answer was lost
                    if machine.name in turns.semaphore.holders:
                        await machine.reboots.give_back(UPDATER)
                if rollout and rollout.release == MISSING and not rollout.ended_ts:
                    await rollouts.abort()
                elif rollout and rollout.state in {RolloutState.PAUSED, RolloutState.HALTED}:
                    await rollouts.resume()
                elif rollout and rollout.rollout_id == wanted and rollout.ended_ts:
                    if not turns.semaphore.holders:
                        return
                elif rollout and any("last deploy failed" in each for each in self._reasons):
                    await rollouts.pause()
                elif rollout is None or rollout.ended_ts:
                    wanted = (await rollouts.begin("last", by="operator")).rollout_id
            await asyncio.sleep(0.1)

    def _note(self, what: str) -> None:
        self.counts[what] += 1

    @property
    def _up(self) -> list[Machine]:
        return [machine for machine in self.machines if machine.is_up]

    def _is_killed_everywhere(self) -> bool:
        kill = self.recorder.state.get(KILL)
        wanted = KillSwitch.read(KILL, kill.value).epoch if kill else 0
        applied = [each.kills.applied for each in self.machines]
        return all((switch.epoch if switch else 0) == wanted for switch in applied)

    @property
    def _reasons(self) -> list[str]:
        return [machine.agent.waits_for for machine in self.machines]

    @property
    def _rollouts(self) -> Rollouts:
        return Rollouts(self.operator)

    async def _begin(self) -> None:
        release = self.draw.choice(("r1", "r2", "r3", "r4", MISSING))
        for machine in self.machines:
            if self.draw.random() < 0.12:
                self.bad.add((machine.name, release))
            else:
                self.bad.discard((machine.name, release))
        waves = self.draw.choice(((1,), (1, 1), (1, 0.5, 1), (0.3, 1), (2, 1)))
        most = self.draw.choice((1, 1, 2, 3))
        await self._rollouts.begin(release, by="operator", max_unavailable=most, waves=waves)
        self._note("rollouts")

    async def _pause(self) -> None:
        await self._rollouts.pause()
        self._note("pauses")

    async def _resume(self) -> None:
        if self.draw.random() < 0.7:
            self.bad.clear()
        await self._rollouts.resume()
        self._note("resumptions")

    async def _abort(self) -> None:
        await self._rollouts.abort()
        self._note("aborts")

    async def _roll_back(self) -> None:
        await self._rollouts.roll_back(by="operator")
        self._note("rollbacks")

    async def _break(self) -> None:
        """Break a slot, of a dead host if there is one, or of one that lives."""
        semaphore = Turns.read(await self.operator.read(TURNS)).semaphore
        if not semaphore.holders:
            return
        down = [machine.name for machine in self.machines if not machine.is_up]
        dead = sorted(set(semaphore.holders) & set(down))
        if not dead and self.draw.random() < 0.7:
            return
        host = self.draw.choice(dead or sorted(semaphore.holders))
        generation = semaphore.holders[host].generation + self.draw.choice((0, 0, 0, 1, -1))
        self.facts.breaks.add((host, generation))
        await self._rollouts.break_slot(host, generation, by="operator")
        self._note("broken slots of dead hosts" if dead else "broken slots of living hosts")

    async def _kill_machine(self) -> None:
        """Let a machine die, rather one that holds a slot."""
        if len(self._up) <= len(self.machines) // 2:
            return
        machine = self.draw.choice(self._up)
        if self.draw.random() < 0.5:
            with suppress(EngineError):
                held = Turns.read(await self.operator.read(TURNS)).semaphore.holders
                machine = next((each for each in self._up if each.name in held), machine)
        has_job = machine.state().deploying
        await self.let_die(machine)
        self._note("deaths while deploying" if has_job else "deaths")

    async def _revive(self) -> None:
        down = [machine for machine in self.machines if not machine.is_up]
        if down:
            await self.bring_back(self.draw.choice(down))

    async def bring_back(self, machine: Machine) -> None:
        if not machine.is_up:
            for death in self.facts.deaths:
                if death.host == machine.name and death.back_at is None:
                    death.back_at = self.recorder.newest
            machine.start()

    async def _restart(self) -> None:
        if self._up:
            await self.draw.choice(self._up).restart()
            self._note("restarts")

    async def _cut(self) -> None:
        cut = self.draw.choice(self.links)
        for link in self.links:
            if link.client == cut.client:
                link.cut()
        self._note("cut connections")

    async def _mend(self) -> None:
        for link in self.links:
            if self.draw.random() < 0.6:
                link.mend()

    async def _hang_etcd(self) -> None:
        (etcd,) = self.etcd.members
        etcd.suspend()
        await asyncio.sleep(self.draw.uniform(0.05, 1.5))
        etcd.resume()
        self._note("etcd hung")

    async def _crash_etcd(self) -> None:
        (etcd,) = self.etcd.members
        how = self.draw.choice((signal.SIGKILL, signal.SIGTERM))
        await asyncio.to_thread(etcd.stop, how)
        await asyncio.sleep(self.draw.uniform(0, 0.5))
        await asyncio.to_thread(self.etcd.start)
        self._note("etcd ended")

    async def _compact(self) -> None:
        """Forget the history, but for what the recorder has not read yet."""
        if self.recorder.newest:
            wanted = {"revision": str(self.recorder.newest)}
            await asyncio.to_thread(self.etcd.post, "/v3/kv/compaction", wanted)
            self._note("compactions")

    async def _kill_feature(self) -> None:
        """Kill a feature, or end all kills, by a machine that is up."""
        if self._up:
            kills = self.draw.choice(self._up).kills
            if self.draw.random() < 0.7:
                await kills.kill(self.draw.choice(("vision", "speech", None)), by="operator")
            else:
                await kills.reset(by="operator")
            self._note("kills")

    async def _reboot(self) -> None:
        """Let a machine reboot as FleetLock has it."""
        if self._up:
            task = asyncio.create_task(self._rebooted(self.draw.choice(self._up)))
            self._reboots.add(task)

    async def _rebooted(self, machine: Machine) -> None:
        try:
            await machine.reboots.take(UPDATER)
        except (EngineError, SlotRefusedError):
            self._note("refused reboots")
        else:
            self._note("reboots")
            if machine.is_up:
                await self.let_die(machine)
            await asyncio.sleep(self.draw.uniform(0.1, 0.6))
            await self.bring_back(machine)
        while True:  # it may have the slot although it got no answer
            with suppress(EngineError):
                if machine.is_up:
                    await machine.reboots.give_back(UPDATER)
                    return
            await asyncio.sleep(0.1)

    async def let_die(self, machine: Machine) -> None:
        await machine.die()
        death = Death(machine.name, machine.link.life, self.recorder.newest)
        self.facts.deaths.append(death)

    async def _own_deploy(self) -> None:
        """Let a machine deploy by itself; that fails now and then."""
        machine = self.draw.choice(self.machines)
        if self.draw.random() < 0.5:
            self.bad.add((machine.name, OWN))
        machine.deploy_locally()

    async def _enable(self) -> None:
        for machine in self.machines:
            machine.mode = self.draw.choice((Mode.BLUEGREEN, Mode.BLUEGREEN, Mode.SINGLE))
        if self.draw.random() < 0.7:
            for machine in self.machines:
                machine.mode = Mode.BLUEGREEN

    async def _forget(self) -> None:
        """Forget a host that is away; it joins again when it comes back."""
        down = [machine.name for machine in self.machines if not machine.is_up]
        if down:
            await self.operator.commit((), Delete(HOSTS + self.draw.choice(down)))
            self._note("forgotten hosts")

    async def _garbage(self) -> None:
        machine = self.draw.choice(self.machines)
        if not machine.is_up:
            await self.operator.commit((), Put(PRESENT + machine.name, b"\x00garbage"))
            self._note("garbage")

    async def _remove_garbage(self) -> None:
        with suppress(EngineError):
            found = await self.operator.read(PRESENT)
            for entry in found.entries:
                if entry.value == b"\x00garbage":
                    await self.operator.commit((), Delete(entry.key))
