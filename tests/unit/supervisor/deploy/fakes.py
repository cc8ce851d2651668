"""A world in memory: what the runner may ask of the real one, with faults on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.lowlevel

from atlas_supervisor.deploy.effects import ActiveDeploy
from atlas_supervisor.deploy.effects import Transition as DeployTransition
from atlas_supervisor.deploy.machine import (
    FIRST_PHASE,
    Consequence,
    Event,
    Phase,
    Plan,
    StepOutcome,
)
from atlas_supervisor.deploy.recorder import AUDITED
from atlas_supervisor.deploy.runner import DeployRun
from atlas_supervisor.errors import AtlasError
from atlas_supervisor.model.deploy import DeployEvent, DeployRecord, DrainDetail, PublishedEvent
from atlas_supervisor.model.drain import DrainCounts
from atlas_supervisor.model.release import Release, Version, VersionChange
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.store.outbox import Outbox, PendingWrite
from tests.unit.supervisor.store.support import a_deploy

BLUE, GREEN = 8791, 8792
RELEASE = Release(name="v2", path=Path("releases/v2"), version="2")
LIMIT_SECONDS = 5.0
LEFT = DrainCounts(requests=0, websockets=1, event_streams=0, idle=0)

PASS = StepOutcome.passed("fine")
FAIL = StepOutcome.failed("not good enough")
DIED = StepOutcome.staging_died("it is dead")
Outcome = StepOutcome | Exception


FLIPPED = {(Phase.SWITCH, Event.PASSED), (Phase.REVERT, Event.PASSED)}


class Transition(NamedTuple):
    source: str
    event: str
    target: str


class World:
    """Every activity passes at once, unless `outcomes` or `held` say otherwise."""

    def __init__(self) -> None:
        self.outcomes: dict[str, list[Outcome]] = {}
        """How an activity ends, call by call; it passes when there is nothing more."""
        self.held: dict[str, anyio.Event] = {}
        """Activities that do not end before their event is set."""
        self.when_begun: dict[str, Callable[[], object]] = {}
        self.when_ending: dict[str, Callable[[], object]] = {}
        self.done: list[str] = []
        self.journaled: list[Transition] = []
        self.published: list[tuple[DeployEvent, int | None]] = []
        self.publish: Callable[[PublishedEvent, int | None], None] = lambda _event, _id: None
        self.outbox = Outbox()
        self.versions: list[VersionChange] = []
        self.record: DeployRecord | None = None
        self.audits: list[tuple[str, str]] = []
        self.mode = "bluegreen"
        self.active, self.staging = BLUE, GREEN
        self.share = 0.0
        self.serving = {BLUE}
        """Ports whose worker can take all traffic."""
        self.disk_fails: Callable[[], bool] = lambda: False

    def ports(self) -> tuple[int, int]:
        return self.active, self.staging

    async def _do(self, name: str) -> StepOutcome:
        if begun := self.when_begun.pop(name, None):
            begun()
        if name in self.held:
            await self.held[name].wait()
        await anyio.lowlevel.checkpoint()
        if ending := self.when_ending.pop(name, None):
            ending()
        self.done.append(name)
        outcome = self.outcomes[name].pop(0) if self.outcomes.get(name) else PASS
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def preflight(self, deploy: ActiveDeploy) -> StepOutcome:
        return await self._do("preflight")

    async def launch(self, deploy: ActiveDeploy) -> StepOutcome:
        self.serving.add(self.staging)
        return await self._do("launch")

    async def smoke(self, deploy: ActiveDeploy) -> StepOutcome:
        return await self._do("smoke")

    async def health(self, deploy: ActiveDeploy) -> StepOutcome:
        return await self._do("health")

    async def await_switch(self, deploy: ActiveDeploy) -> StepOutcome:
        await anyio.sleep_forever()
        raise AssertionError

    def weight(self) -> float:
        return self.share

    async def ramp(self, deploy: ActiveDeploy) -> StepOutcome:
        return await self._do("ramp")

    async def switch(self, deploy: ActiveDeploy) -> StepOutcome:
        assert self.journaled[-1].target == Phase.SWITCH, "the intent is not durable"
        return await self._turned(await self._do("switch"), DIED)

    async def revert(self, deploy: ActiveDeploy) -> StepOutcome:
        return await self._turned(await self._do("revert"), FAIL)

    async def _turned(self, outcome: StepOutcome, if_dead: StepOutcome) -> StepOutcome:
        if not outcome.has_passed:
            return outcome
        if self.staging not in self.serving:
            return if_dead
        self.active, self.staging = self.staging, self.active
        await anyio.lowlevel.checkpoint()  # the roles are exchanged before the phase ends
        back = self.active == BLUE
        added = None if back else Version(SlotName.GREEN, RELEASE)
        return replace(outcome, versions=VersionChange(added, back))

    async def guard(self, deploy: ActiveDeploy) -> StepOutcome:
        return await self._do("guard")

    async def warm(self, deploy: ActiveDeploy) -> StepOutcome:
        return await self._do("warm")

    async def drain(self, deploy: ActiveDeploy) -> StepOutcome:
        self.serving.discard(self.staging)
        deploy.note(DrainDetail(left=LEFT, cut=None))
        return await self._do("drain")

    async def unstage(self, deploy: ActiveDeploy) -> StepOutcome:
        self.serving.discard(self.staging)
        return await self._do("unstage")

    # The log of transitions, through a real outbox.

    async def write(self, transition: DeployTransition) -> PendingWrite:
        published = PublishedEvent(transition.event)
        pending = self.outbox.put(
            partial(self._journal, transition, published),
            on_delay=lambda: self._publish(published, None),
        )
        for demand in transition.demands:
            pending = self.outbox.put(partial(self._demanded, demand))
        if transition.has_new_result:
            result = ("deploy", str(transition.record.result))
            self.outbox.put(partial(self._audit, *result))
        await self.outbox.attempt(pending)
        return pending

    async def _journal(self, transition: DeployTransition, published: PublishedEvent) -> None:
        await anyio.lowlevel.checkpoint()
        self._try_disk()
        event = transition.event
        assert event.source  # the beginning is written elsewhere
        self.journaled.append(Transition(event.source, event.event, transition.record.phase))
        if transition.versions is not None:
            self.versions.append(transition.versions)
        self.record = transition.record
        self._publish(published, len(self.journaled))

    def _publish(self, published: PublishedEvent, journal_id: int | None) -> None:
        self.published.append((published.event, journal_id))
        self.publish(published, journal_id)

    async def _demanded(self, demand: Consequence) -> None:
        if demand is Consequence.SINGLE_MODE:
            self._try_disk()
            self.mode = "single"
        else:
            await self._audit(*AUDITED[demand])

    async def _audit(self, action: str, outcome: str) -> None:
        self._try_disk()
        self.audits.append((action, outcome))

    def _try_disk(self) -> None:
        if self.disk_fails():
            raise AtlasError("no space left on device")


@asynccontextmanager
async def driven(
    world: World, plan: Plan | None = None, record: DeployRecord | None = None
) -> AsyncIterator[DeployRun]:
    """Run a deploy in this world; afterwards it has ended, in time, and everything is written."""
    record = record or a_deploy()
    run = DeployRun(record, plan or Plan(), RELEASE, effects=world, transitions=world)
    with anyio.fail_after(LIMIT_SECONDS):
        async with anyio.create_task_group() as background:
            background.start_soon(world.outbox.run)
            async with anyio.create_task_group() as group:
                group.start_soon(run.drive)
                yield run
            await world.outbox.flush()
            background.cancel_scope.cancel()
    check_end(world, run)


async def until(condition: Callable[[], bool]) -> None:
    """Let the others go on until the condition holds; the caller has a time limit."""
    while not condition():  # there is no event for every condition
        await anyio.lowlevel.checkpoint()


async def until_phase(run: DeployRun, phase: Phase) -> None:
    await until(lambda: run.phase is phase)


async def to_the_end(run: DeployRun) -> None:
    """Give it up should it wait for an operator, and wait for its end."""
    while not run.ended.is_set():
        if run.waits:
            run.offer(Event.ABORT_REQUESTED, "the test is over")
        await anyio.lowlevel.checkpoint()


def check_end(world: World, run: DeployRun) -> None:
    """Check what must be true of every deploy that has ended."""
    assert run.ended.is_set()
    assert run.settled.is_set()
    assert run.phase is Phase.ENDED
    assert world.record == run.record
    assert run.record.ended_ts is not None
    sources = [each.source for each in world.journaled]
    targets = [each.target for each in world.journaled]
    assert sources == [FIRST_PHASE, *targets[:-1]]
    # Each transition is published: in order, and in the end under the journal's id.
    published = list(dict.fromkeys((event.source, event.target) for event, _ in world.published))
    assert published == list(dict.fromkeys(zip(sources, targets, strict=True)))
    ids = [journal_id for _, journal_id in world.published if journal_id is not None]
    assert ids == list(range(1, len(world.journaled) + 1))
    result = run.record.result
    assert result is not None
    assert result != "awaiting_switch"
    assert (world.active == GREEN) == (result == "switched"), result
    if result != "switched":
        assert run.record.reason or result == "dry_run_passed"
    # Each flip that is in the journal has changed the versions, and nothing else has.
    flips = [each for each in world.journaled if each[:2] in FLIPPED]
    assert len([each for each in world.versions if each.added or each.back]) == len(flips)
    ports = (world.active, world.staging)
    assert (run.record.active_port, run.record.staging_port) == ports


class MemoryJournal:
    """Ids from 1 on; a read takes a turn of the loop, in which more may be written."""

    def __init__(self) -> None:
        self.rows: list[PublishedEvent] = []
        self.unwritten: list[PublishedEvent] = []

    def pending(self) -> list[PublishedEvent]:
        return self.unwritten

    async def newest(self) -> int:
        await asyncio.sleep(0)
        return len(self.rows)

    async def knows(self, transition_id: int) -> bool:
        await asyncio.sleep(0)
        return 1 <= transition_id <= len(self.rows)

    async def after(
        self, transition_id: int, *, deploy_id: str | None, limit: int
    ) -> list[PublishedEvent]:
        await asyncio.sleep(0)
        found = [
            PublishedEvent(row.event, id=number, journal_id=number, is_published=True)
            for number, row in enumerate(self.rows, 1)
            if number > transition_id and deploy_id in (None, row.event.deploy_id)
        ]
        await asyncio.sleep(0)
        return found[:limit]
