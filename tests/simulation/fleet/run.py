"""Plays a fleet's rollouts with failures that a seed draws, on a real etcd, and checks history.

The seed draws what happens; when exactly is up to real processes, so the same seed is another run
of the same plan. After the failures all is mended, and a rollout has to pass: a fleet that keeps
every promise by standing still is found too.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from atlas_supervisor.errors import AtlasError, RefusedError
from atlas_supervisor.fleet.documents import (
    HOSTS,
    KILL,
    PRESENT,
    TURNS,
    KillSwitch,
    RolloutState,
)
from atlas_supervisor.fleet.engine import Delete, EngineError, Put
from atlas_supervisor.fleet.reboots import SlotRefusedError
from atlas_supervisor.fleet.rollouts import Rollouts
from atlas_supervisor.fleet.situation import Turns
from atlas_supervisor.fleet.turn import OPEN
from atlas_supervisor.model.deploy import Mode
from tests.etcd import Cluster
from tests.simulation.fleet.machine import MISSING, OWN, Machine
from tests.simulation.fleet.world import World, fleet, quick, quick_etcd

UPDATER = "updater"
"""The FleetLock client of each machine."""
CHAOS_SECONDS = 12.0
CALM_SECONDS = 90.0
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


def play(seed: int, *, chaos_seconds: float = CHAOS_SECONDS) -> Played:
    """Play a seed with an etcd of its own."""
    with quick_etcd() as etcd, quick():
        return asyncio.run(_played(seed, etcd, chaos_seconds))


async def _played(seed: int, etcd: Cluster, chaos_seconds: float) -> Played:
    draw = random.Random(seed)  # noqa: S311 - a plan, no secret
    hosts, near_hosts = draw.randint(3, 7), draw.choice((0, 20))
    async with fleet(etcd, draw, hosts=hosts, near_hosts=near_hosts) as world:
        fate = Fate(world)
        await fate.misfortunes(chaos_seconds)
        calm = await fate.calm()
    broken = world.violations()
    if calm:
        broken.append(calm)
    world.counts["revisions"] = len(world.recorder.history)
    world.counts["deploys"] = len(world.facts.deploys)
    world.counts["failed deploys"] = sum(not each.passed for each in world.facts.deploys)
    return Played(seed, broken, world.counts)


class Fate:
    """What the operator and fate do to a fleet, as a seed draws it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._draw, self._operator = world.draw, world.operator
        self._reboots: set[asyncio.Task[None]] = set()

    async def misfortunes(self, seconds: float) -> None:
        """Let the operator and fate act, one after the other."""
        for link in self._world.links:
            link.loses = self._draw.choice((0.0, 0.05, 0.2))
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            acts = self._acts()
            (act,) = self._draw.choices([act for _, act in acts], [weight for weight, _ in acts])
            try:
                await act()
            except RefusedError as error:
                self._world.note(f"refused {error.code}")
            except EngineError:
                self._world.note("engine did not answer")
            await asyncio.sleep(self._draw.uniform(0.02, 0.3))

    def _acts(self) -> list[tuple[int, Callable[[], Awaitable[None]]]]:
        """Return the possible acts with their weights; some of them will be refused."""
        turns = self._world.turns
        state = turns.rollout.state if turns.rollout else None
        deploys = any(machine.state().deploying for machine in self._world.up)
        return [
            (2 if state in OPEN else 40, self._begin),
            (4 if state is RolloutState.RUNNING else 1, self._pause),
            (20 if state in {RolloutState.PAUSED, RolloutState.HALTED} else 1, self._resume),
            (3 if state in OPEN else 1, self._abort),
            (4 if state is RolloutState.HALTED else 2, self._roll_back),
            (30 if self._dead_holders() else 2, self._break),
            (14 if deploys else 4, self._kill_machine),
            (8, self._revive),
            (4, self._restart),
            (4, self._cut),
            (14, self._mend),
            (2, self._hang_etcd),
            (2, self._crash_etcd),
            (3, self._compact),
            (4, self._reboot),
            (3, self._kill_feature),
            (4, self._own_deploy),
            (3, self._enable),
            (1, self._forget),
            (1, self._garbage),
        ]

    def _dead_holders(self) -> list[str]:
        held = self._world.turns.semaphore.holders
        return [each.name for each in self._world.machines if each.name in held and not each.is_up]

    async def calm(self) -> str | None:
        """Mend all, and let a rollout pass; return what stands in its way if it does not."""
        self._world.bad.clear()
        for link in self._world.links:
            link.loses = 0.0
            link.mend()
        for machine in self._world.machines:
            await self._world.bring_back(machine)
            machine.mode = Mode.BLUEGREEN
        await self._remove_garbage()
        await asyncio.gather(*self._reboots)
        try:
            async with asyncio.timeout(CALM_SECONDS):
                await self._world.until_present()
                await self._until_passed()
                await self._world.until(self._is_killed_everywhere)
        except TimeoutError:
            what = "all was mended, and no rollout passed, or a kill is not everywhere"
            return f"{what}: {self._reasons}; {self._world.turns}"
        return None

    async def _until_passed(self) -> None:
        rollouts = Rollouts(self._operator)
        wanted = None
        while True:
            with suppress(AtlasError):
                turns = Turns.read(await self._operator.read(TURNS))
                rollout = turns.rollout
                for machine in self._world.machines:  # of a reboot whose answer was lost
                    if machine.name in turns.semaphore.holders:
                        await machine.give_back_slot_to_reboot(UPDATER)
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

    def _is_killed_everywhere(self) -> bool:
        kill = self._world.recorder.state.get(KILL)
        wanted = KillSwitch.read(KILL, kill.value).epoch if kill else 0
        applied = [each.kills.applied for each in self._world.machines]
        return all((switch.epoch if switch else 0) == wanted for switch in applied)

    @property
    def _reasons(self) -> list[str]:
        return [machine.agent.waits_for for machine in self._world.machines]

    @property
    def _rollouts(self) -> Rollouts:
        return Rollouts(self._operator)

    async def _begin(self) -> None:
        release = self._draw.choice(("r1", "r2", "r3", "r4", MISSING))
        for machine in self._world.machines:
            if self._draw.random() < 0.12:
                self._world.bad.add((machine.name, release))
            else:
                self._world.bad.discard((machine.name, release))
        waves = self._draw.choice(((1,), (1, 1), (1, 0.5, 1), (0.3, 1), (2, 1)))
        most = self._draw.choice((1, 1, 2, 3))
        await self._rollouts.begin(release, by="operator", max_unavailable=most, waves=waves)
        self._world.note("rollouts")

    async def _pause(self) -> None:
        await self._rollouts.pause()
        self._world.note("pauses")

    async def _resume(self) -> None:
        if self._draw.random() < 0.7:
            self._world.bad.clear()
        await self._rollouts.resume()
        self._world.note("resumptions")

    async def _abort(self) -> None:
        await self._rollouts.abort()
        self._world.note("aborts")

    async def _roll_back(self) -> None:
        await self._rollouts.roll_back(by="operator")
        self._world.note("rollbacks")

    async def _break(self) -> None:
        """Break a slot, of a dead host if there is one, or of one that lives."""
        semaphore, dead = self._world.turns.semaphore, self._dead_holders()
        if not semaphore.holders:
            return
        if not dead and self._draw.random() < 0.7:
            return
        host = self._draw.choice(dead or sorted(semaphore.holders))
        generation = semaphore.holders[host].generation + self._draw.choice((0, 0, 0, 1, -1))
        self._world.facts.breaks.add((host, generation))
        await self._rollouts.break_slot(host, generation, by="operator")
        self._world.note("broken slots of dead hosts" if dead else "broken slots of living hosts")

    async def _kill_machine(self) -> None:
        """Let a machine die, rather one that holds a slot."""
        if len(self._world.up) <= len(self._world.machines) // 2:
            return
        busy = [machine for machine in self._world.up if machine.state().deploying]
        machine = self._draw.choice(busy or self._world.up)
        has_job = machine.state().deploying
        await self._world.let_die(machine)
        self._world.note("deaths while deploying" if has_job else "deaths")

    async def _revive(self) -> None:
        down = [machine for machine in self._world.machines if not machine.is_up]
        if down:
            await self._world.bring_back(self._draw.choice(down))

    async def _restart(self) -> None:
        if self._world.up:
            await self._draw.choice(self._world.up).restart()
            self._world.note("restarts")

    async def _cut(self) -> None:
        cut = self._draw.choice(self._world.links)
        for link in self._world.links:
            if link.client == cut.client:
                link.cut()
        self._world.note("cut connections")

    async def _mend(self) -> None:
        for link in self._world.links:
            if self._draw.random() < 0.6:
                link.mend()

    async def _hang_etcd(self) -> None:
        (etcd,) = self._world.etcd.members
        etcd.suspend()
        await asyncio.sleep(self._draw.uniform(0.05, 1.5))
        etcd.resume()
        self._world.note("etcd hung")

    async def _crash_etcd(self) -> None:
        (etcd,) = self._world.etcd.members
        how = self._draw.choice((signal.SIGKILL, signal.SIGTERM))
        await asyncio.to_thread(etcd.stop, how)
        await asyncio.sleep(self._draw.uniform(0, 0.5))
        await asyncio.to_thread(self._world.etcd.start)
        self._world.note("etcd ended")

    async def _compact(self) -> None:
        """Forget the history, but for what the recorder has not read yet."""
        if self._world.recorder.newest:
            wanted = {"revision": str(self._world.recorder.newest)}
            await asyncio.to_thread(self._world.etcd.post, "/v3/kv/compaction", wanted)
            self._world.note("compactions")

    async def _kill_feature(self) -> None:
        """Kill a feature, or end all kills, by a machine that is up."""
        if self._world.up:
            kills = self._draw.choice(self._world.up).kills
            if self._draw.random() < 0.7:
                await kills.kill(self._draw.choice(("vision", "speech", None)), by="operator")
            else:
                await kills.reset(by="operator")
            self._world.note("kills")

    async def _reboot(self) -> None:
        """Let a machine reboot as FleetLock has it."""
        if self._world.up:
            task = asyncio.create_task(self._rebooted(self._draw.choice(self._world.up)))
            self._reboots.add(task)

    async def _rebooted(self, machine: Machine) -> None:
        try:
            await machine.take_slot_to_reboot(UPDATER)
        except (EngineError, SlotRefusedError):
            self._world.note("refused reboots")
        else:
            self._world.note("reboots")
            await self._world.let_die(machine)
            await asyncio.sleep(self._draw.uniform(0.1, 0.6))
            await self._world.bring_back(machine)
        while True:  # it may have the slot although it got no answer
            with suppress(EngineError):
                if machine.is_up:
                    await machine.give_back_slot_to_reboot(UPDATER)
                    return
            await asyncio.sleep(0.1)

    async def _own_deploy(self) -> None:
        """Let a machine deploy by itself; that fails now and then."""
        machine = self._draw.choice(self._world.machines)
        if self._draw.random() < 0.5:
            self._world.bad.add((machine.name, OWN))
        machine.deploy_locally()

    async def _enable(self) -> None:
        for machine in self._world.machines:
            machine.mode = self._draw.choice((Mode.BLUEGREEN, Mode.BLUEGREEN, Mode.SINGLE))
        if self._draw.random() < 0.7:
            for machine in self._world.machines:
                machine.mode = Mode.BLUEGREEN

    async def _forget(self) -> None:
        """Forget a host that is away; it joins again when it comes back."""
        down = [machine.name for machine in self._world.machines if not machine.is_up]
        if down:
            await self._operator.commit((), Delete(HOSTS + self._draw.choice(down)))
            self._world.note("forgotten hosts")

    async def _garbage(self) -> None:
        machine = self._draw.choice(self._world.machines)
        if not machine.is_up:
            await self._operator.commit((), Put(PRESENT + machine.name, b"\x00garbage"))
            self._world.note("garbage")

    async def _remove_garbage(self) -> None:
        with suppress(EngineError):
            found = await self._operator.read(PRESENT)
            for entry in found.entries:
                if entry.value == b"\x00garbage":
                    await self._operator.commit((), Delete(entry.key))
