"""The machines of a simulated fleet, and what is between them and etcd."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atlas_supervisor.errors import DEPLOY_IN_PROGRESS, MODE_IS_SINGLE, UNKNOWN_RELEASE
from atlas_supervisor.fleet.agent import Agent
from atlas_supervisor.fleet.documents import (
    HOSTS,
    Evidence,
    HostDeploy,
    KillSwitch,
    Presence,
)
from atlas_supervisor.fleet.engine import (
    NOTHING,
    Changes,
    Delete,
    EngineError,
    EngineUnavailableError,
    Outage,
    Put,
    Snapshot,
    Unchanged,
)
from atlas_supervisor.fleet.etcd import EtcdEngine
from atlas_supervisor.fleet.kill_switch import KillFollower, read_record
from atlas_supervisor.fleet.local import LocalOutcome, LocalState
from atlas_supervisor.fleet.presence import Membership
from atlas_supervisor.fleet.reboots import Reboots
from atlas_supervisor.fleet.turn_watch import Pace
from atlas_supervisor.model.deploy import Mode, Result
from atlas_supervisor.system.clock import now
from tests.simulation.fleet.facts import Deploy, Facts, Sent

PACE = Pace(near=0.15, glance=0.3, far=0.6, far_per_host=0.0)
ANNOUNCED_EVERY = 0.25
LEASE_SECONDS = 2.0
PATIENCE = 0.3
"""Seconds after which a request over a cut connection fails."""
MISSING = "missing"
"""A release that no machine has."""
OWN = "own"
"""The release of a deploy that no rollout asked for."""


class Link:
    """One client's way to etcd: slow, cut, or losing answers; and a witness of what is sent."""

    def __init__(self, engine: EtcdEngine, client: str, facts: Facts, draw: random.Random) -> None:
        self._engine, self.client, self._facts, self._draw = engine, client, facts, draw
        self._whole = asyncio.Event()
        self._whole.set()
        self._late: set[asyncio.Task[None]] = set()
        self.loses = 0.0
        """The share of commits whose answer is lost; a part of those arrives late, too."""
        self.hold_after_commit = False
        """No commit returns, though it is done."""
        self.seen = 0
        self.read_at = 0
        self.deploying: Callable[[], str | None] = lambda: None
        self.life = 0

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    @property
    def outage(self) -> Outage | None:
        return self._engine.outage

    async def read(self, *prefixes: str) -> Snapshot:
        return await self.read_again(NOTHING, *prefixes)

    async def read_again(self, earlier: Snapshot, *prefixes: str) -> Snapshot:
        await self._pass()
        snapshot = await self._engine.read_again(earlier, *prefixes)
        await self._pass()
        self.seen = max(self.seen, snapshot.revision)
        if HOSTS in prefixes:
            self.read_at = snapshot.revision
        return snapshot

    async def commit(self, conditions: Sequence[Unchanged], *writes: Put | Delete) -> int | None:
        await self._pass()
        written = {each.key: each.value if isinstance(each, Put) else None for each in writes}
        deploying = self.deploying()
        sent = Sent(self.client, written, self.read_at, deploying, self.life)
        self._facts.sent.append(sent)
        lost = self._draw.random() < self.loses
        if lost and self._draw.random() < 0.5:
            task = asyncio.create_task(self._commit_late(conditions, *writes))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            raise EngineUnavailableError("the connection was lost before the answer")
        revision = await self._engine.commit(conditions, *writes)
        if lost:
            raise EngineUnavailableError("the answer was lost")
        if self.hold_after_commit:
            await asyncio.Event().wait()
        await self._pass()
        self.seen = max(self.seen, revision or 0)
        return revision

    async def _commit_late(self, conditions: Sequence[Unchanged], *writes: Put | Delete) -> None:
        await asyncio.sleep(self._draw.uniform(0, 0.4))
        with suppress(EngineError):
            await self._engine.commit(conditions, *writes)

    async def watch(self, prefix: str) -> AsyncGenerator[Changes, None]:
        async with aclosing(self._engine.watch(prefix)) as watch:
            async for changes in watch:
                await self._whole.wait()
                yield changes

    async def count(self, prefix: str) -> int:
        await self._pass()
        return await self._engine.count(prefix)

    async def claim(
        self, key: str, value: bytes, *, revision: int, ttl_seconds: float
    ) -> int | None:
        await self._pass()
        written = await self._engine.claim(key, value, revision=revision, ttl_seconds=ttl_seconds)
        await self._pass()
        return written

    async def keep(self, *, ttl_seconds: float) -> bool:
        await self._pass()
        return await self._engine.keep(ttl_seconds=ttl_seconds)

    async def close(self) -> None:
        """Wait for what is still under way."""
        await asyncio.gather(*self._late)

    async def _pass(self) -> None:
        await asyncio.sleep(self._draw.uniform(0, 0.004))
        try:
            async with asyncio.timeout(PATIENCE):
                await self._whole.wait()
        except TimeoutError:
            raise EngineUnavailableError("the connection is cut") from None


async def _at_once() -> None:
    """Wait for no load balancer."""


@dataclass
class _Job:
    """A deploy that was begun, as it stands in the machine's database."""

    deploy: Deploy
    done: asyncio.Event
    switched: bool = False
    outcome: LocalOutcome | None = None


class Machine:
    """A machine with its supervisor: dies, comes back, and knows then what it had on disk."""

    def __init__(
        self,
        name: str,
        links: tuple[Link, Link],
        facts: Facts,
        draw: random.Random,
        newest: Callable[[], int],
        *,
        disk: Path,
        near_hosts: int,
    ) -> None:
        self.name, self._disk = name, disk
        self._pace = replace(PACE, near_hosts=near_hosts)
        self.link, self._second_link = links
        self._facts, self._draw, self._newest = facts, draw, newest
        self._jobs: dict[str, _Job] = {}
        self._job: _Job | None = None
        self._work: asyncio.Task[None] | None = None
        self._life: asyncio.Task[None] | None = None
        self._asked: set[asyncio.Task[None]] = set()
        self._versions = ["old"]
        self._last: HostDeploy | None = None
        self.mode = Mode.BLUEGREEN
        self.changing = asyncio.Lock()
        """Held while the machine dies or comes back."""
        self.gates = asyncio.Event()
        """While it is not set, a deploy does not reach its switch."""
        self.gates.set()
        self.fails: Callable[[str], bool] = lambda _release: False
        self.agent = Agent(self.link, self, name, self._pace)
        self.kills: KillFollower
        self._acknowledged = asyncio.Event()
        self._reboots = Reboots(
            self._second_link,
            name,
            deploys=lambda: self._job is not None,
            drained=_at_once,
            audit=lambda *_entry, **_detail: None,
        )
        self.link.deploying = lambda: self._job.deploy.key if self._job else None

    @property
    def is_up(self) -> bool:
        """Whether the machine runs."""
        return self._life is not None

    @property
    def version(self) -> str:
        """The version that serves."""
        return self._versions[-1]

    def start(self) -> None:
        """Start its supervisor, which joins the fleet."""
        self._life = asyncio.create_task(self._live())

    async def take_slot_to_reboot(self, client: str) -> None:
        """Ask its supervisor for the slot, as FleetLock has it. Raises as `Reboots.take`."""
        await self._answer(self._reboots.take(client))

    async def give_back_slot_to_reboot(self, client: str) -> None:
        """Let its supervisor give the slot back. Raises EngineError."""
        await self._answer(self._reboots.give_back(client))

    async def _answer(self, request: Coroutine[Any, Any, None]) -> None:
        """Do what was asked; it ends with the supervisor."""
        task = asyncio.create_task(request)
        self._asked.add(task)
        await asyncio.wait({task})
        self._asked.discard(task)
        if task.cancelled():
            raise EngineUnavailableError("the supervisor ended before its answer")
        task.result()

    async def restart(self) -> None:
        """Restart the supervisor; a deploy goes on."""
        await self._end_life()
        self.start()

    async def die(self) -> None:
        """Lose all that is not on disk. A deploy that has not switched fails by it."""
        await self._end_life()
        if self._work is not None:
            self._work.cancel()
            with suppress(asyncio.CancelledError):
                await self._work
        if self._job is not None:
            self._end(self._job, passed=self._job.switched, reason="the machine died")
        self.link.life += 1
        self._second_link.life += 1

    async def _end_life(self) -> None:
        for task in self._asked:
            task.cancel()
        if self._asked:
            await asyncio.wait(self._asked)
        if self._life is not None:
            self._life.cancel()
            with suppress(asyncio.CancelledError):
                await self._life
            self._life = None

    async def _live(self) -> None:
        self.agent = Agent(self.link, self, self.name, self._pace)
        record = read_record(self._disk)
        self._facts.kills.append((self.name, record.switch if record else None))
        self.kills = KillFollower(
            self.link,
            self,
            "simulated",
            state_dir=self._disk,
            applied=record.switch if record else None,
            acknowledge=self._acknowledged.set,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.agent.run())
            tasks.create_task(self.kills.run())
            tasks.create_task(self._announce())

    async def _announce(self) -> None:
        membership = Membership(
            self.link, self.name, self.name, self._presence, ttl_seconds=LEASE_SECONDS
        )
        while True:
            with suppress(EngineError):
                await membership.announce()
            await self._pause()

    async def _pause(self) -> None:
        """Wait until it is time to announce itself again, or a kill is acknowledged."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ANNOUNCED_EVERY * self._draw.uniform(0.8, 1.2)):
                await self._acknowledged.wait()
        self._acknowledged.clear()

    def _presence(self) -> Presence:
        return Presence(
            version=self.version,
            daemon_version="1",
            mode=self.mode,
            last_deploy=self._last,
            waits_for=self.agent.waits_for,
            kill_epoch=self.kills.applied.epoch if self.kills.applied else 0,
            sent_ts=now(),
        )

    def state(self) -> LocalState:
        return LocalState(self.version, 100, self.mode, self._last, self._job is not None)

    async def find_release(self, release: str) -> None:
        if release == MISSING:
            raise UNKNOWN_RELEASE.error(problem="there is no release 'missing'")

    async def deploy(self, release: str, *, key: str) -> LocalOutcome:
        if key not in self._jobs:
            if self._job is not None:
                raise DEPLOY_IN_PROGRESS.error(deploy_id="local", phase="health")
            if self.mode is Mode.SINGLE:
                raise MODE_IS_SINGLE.error()
            await self.find_release(release)
            self._begin(release, key)
        return await self._awaited(key)

    async def go_back(self, release: str, *, key: str) -> LocalOutcome:
        if key not in self._jobs:
            if self._job is not None:
                raise DEPLOY_IN_PROGRESS.error(deploy_id="local", phase="health")
            if self.version != release or len(self._versions) == 1:
                job = self._note(key)
                job.deploy.newest_at_end, job.deploy.passed = self._newest(), True
                job.outcome = LocalOutcome(True, None, self.version, "nothing to go back from")
                job.done.set()
            else:
                self._begin(None, key)
        return await self._awaited(key)

    async def outcome(self, *, key: str) -> LocalOutcome | None:
        return await self._awaited(key) if key in self._jobs else None

    async def abort(self, *, key: str) -> None:
        job = self._jobs.get(key)
        if job is not None and job is self._job and not job.switched and self._work is not None:
            self._work.cancel()

    async def kill(self, switch: KillSwitch) -> None:
        self._facts.kills.append((self.name, switch))

    def evidence(self) -> Evidence:
        return Evidence(boot_epoch="1", counted_ts=now())

    def deploy_locally(self) -> None:
        """Begin a deploy that no fleet asked for."""
        if self.is_up and self._job is None:
            self._begin(OWN, None)

    async def _awaited(self, key: str) -> LocalOutcome:
        job = self._jobs[key]
        await job.done.wait()
        assert job.outcome is not None
        return job.outcome

    def _note(self, key: str | None) -> _Job:
        deploy = Deploy(self.name, key or "", self.link.seen)
        job = _Job(deploy, asyncio.Event())
        if key is not None:
            self._jobs[key] = job
            self._facts.deploys.append(deploy)
        return job

    def _begin(self, release: str | None, key: str | None) -> None:
        self._job = self._note(key)
        self._work = asyncio.create_task(self._worked(self._job, release))

    async def _worked(self, job: _Job, release: str | None) -> None:
        """Gates, the switch, and the guard; without a release it goes back."""
        fails = release is not None and self.fails(release)
        late = self._draw.random() < 0.3
        try:
            await asyncio.sleep(self._draw.uniform(0.03, 0.3))
            await self.gates.wait()
            if fails and not late:
                self._end(job, passed=False, reason="smoke: home answers 500", release=release)
                return
            job.switched = True
            before = list(self._versions)
            if release is None:
                self._versions.pop()
            else:
                self._versions.append(release)
            await asyncio.sleep(self._draw.uniform(0.03, 0.3))
            if fails:
                self._versions = before
            reason = "guard: errors rose" if fails else ""
            self._end(job, passed=not fails, reason=reason, release=release)
        except asyncio.CancelledError:
            if self._life is None:
                raise
            self._end(job, passed=False, reason="aborted", aborted=True)

    def _end(
        self,
        job: _Job,
        *,
        passed: bool,
        reason: str,
        release: str | None = None,
        aborted: bool = False,
    ) -> None:
        job.deploy.newest_at_end, job.deploy.passed = self._newest(), passed
        job.outcome = LocalOutcome(passed, "d", self.version, reason)
        failure = Result.ABORTED if aborted else Result.FAILED
        result = Result.SWITCHED if passed else failure
        self._last = HostDeploy(deploy_id="d", result=result, release=release, version=self.version)
        if self._job is job:
            self._job = self._work = None
        job.done.set()
