r"""A host's part in the fleet's rollouts: takes a slot in its turn, deploys, gives the slot back.

    look --> wait, with a reason
     ^  \--> take a slot --> use it: deploy by the host's own gates and guard --> give it back
     |                           (given up if the rollout is aborted or replaced)       |
     +----------------------------------------------------------------------------------+

Nothing is remembered but what stands in the engine and in the host's own database. A slot is held
if the engine says so, whether this process took it, an earlier one, or a commit whose answer was
lost. So each step begins with a read, and a commit without an answer needs no care of its own: the
next read shows what came of it. A deploy's key has the slot's generation in it, so that one slot is
one deploy: a host that restarts goes on with it, and one that comes back after its slot was broken
can begin nothing with it.

A host of a thousand can't read a thousand documents at each change. So what is watched (`turns/`)
decides first, if it can; what it can't decide is looked at closely. And hosts that may take a slot
at the same time look closely one after the other, because each commit makes the others' vain.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass

import anyio
import structlog

from atlas_supervisor.errors import DEPLOY_IN_PROGRESS, STOPPING, RefusedError
from atlas_supervisor.fleet.documents import (
    HOSTS,
    RESULTS,
    TURNS,
    Direction,
    Holder,
    Rollout,
    UnreadableDocumentError,
)
from atlas_supervisor.fleet.engine import NOTHING, Changes, Engine, EngineError, Entry, Snapshot
from atlas_supervisor.fleet.local import LocalOutcome, LocalSupervisor
from atlas_supervisor.fleet.semaphore import free_slots
from atlas_supervisor.fleet.situation import ALL, Situation, Turns, result_key
from atlas_supervisor.fleet.turn import (
    OPEN,
    Take,
    Use,
    Wait,
    decide,
    give_back,
    is_far,
    places_behind,
    reached,
    reason_to_stay,
    reason_to_wait,
)
from atlas_supervisor.system.clock import jittered, now

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Pace:
    """How often a host looks closely, in seconds. What stands under `turns/` is watched besides."""

    near: float = 2.0
    """While its turn may have come, while it uses a slot, and while the engine is away."""
    far: float = 30.0
    """Otherwise, as a remedy for all that a watch may miss. In a fleet of more than a hundred hosts
    it is longer by as much, and `near` in one of more than four hundred."""


class Agent:
    """Takes part in rollouts for one host."""

    def __init__(
        self,
        engine: Engine,
        local: LocalSupervisor,
        host: str,
        pace: Pace | None = None,
        announce: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`announce` announces the host as it is now, and may raise EngineError."""
        self._announce = announce
        self._engine = engine
        self._local = local
        self._host = host
        self._pace = pace or Pace()
        self._watched: dict[str, Entry] = {}
        self._turns: Turns | None = None
        """The documents that are watched, if they were parsed since the last change."""
        self._changed = anyio.Event()
        self._seen = NOTHING
        """All that a turn depends on, as it was read last."""
        self._is_to_look_closely = True
        self._progress = _Progress()
        self.waits_for = ""
        """Why the host takes no slot now; empty if it waits for nothing, or has one."""

    async def run(self) -> None:
        """Take part until this is cancelled. What has begun on the host goes on without it."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            while True:
                changed = self._changed
                seconds = await self._look()
                with anyio.move_on_after(jittered(seconds)):
                    await changed.wait()
                self._is_to_look_closely |= not changed.is_set()

    async def _watch(self) -> None:
        """Keep what stands under `turns/`, and wake all that waits for a change."""
        while True:
            try:
                async with aclosing(self._engine.watch(TURNS)) as watch:
                    async for changes in watch:
                        self._keep(changes)
            except EngineError as error:
                log.warning("fleet_watch_ended", why=str(error))
            await anyio.sleep(jittered(self._pace.near))

    def _keep(self, changes: Changes) -> None:
        if changes.anew:
            self._watched.clear()
        for key in changes.removed:
            self._watched.pop(key, None)
        self._watched |= {entry.key: entry for entry in changes.entries}
        self._turns = None
        self._changed.set()
        self._changed = anyio.Event()

    async def _look(self) -> float:
        """Do what there is to do; return after how many seconds to look closely at the latest."""
        try:
            if not self._is_to_look_closely and await self._waits_by_watch():
                return self._progress.far(self._pace)
            self._is_to_look_closely = False
            return await self._look_closely()
        except EngineError as error:
            self.waits_for = _engine_reason(error)
        return self._progress.near(self._pace)

    async def _waits_by_watch(self) -> bool:
        """Note why the host waits, and return True, if what is watched is enough to know it."""
        reason = self._reason_by_watch()
        if reason is None and (behind := self._places_behind()):
            await anyio.sleep(behind * self._progress.scaled_by_host(_PLACE_SECONDS_PER_HOST))
            reason = self._reason_by_watch()
        if reason is None:
            return False
        self.waits_for = reason
        if self._places_behind() >= self._watched_turns().semaphore.slots:
            # Changes of the next moments are looked at together: each reaches each host.
            await anyio.sleep(self._progress.scaled_by_host(_REST_SECONDS_PER_HOST))
        return True

    def _watched_turns(self) -> Turns:
        """Return the documents that are watched. Raises UnreadableDocumentError."""
        if self._turns is None:
            self._turns = Turns.read(Snapshot(0, tuple(self._watched.values())))
        return self._turns

    def _places_behind(self) -> int:
        rollout = self._watched_turns().rollout
        return places_behind(rollout, self._host, self._progress.reached) if rollout else 0

    def _reason_by_watch(self) -> str | None:
        """Return why the host waits, if what is watched is enough to know it."""
        turns = self._watched_turns()
        rollout = turns.rollout
        self._progress.note_turns(turns)
        if turns.slot_of(self._host) is not None:
            return None
        if rollout is None:
            return ""
        if self._progress.stays is not None:
            return self._progress.stays
        if (reason := reason_to_wait(turns, self._host)) is not None:
            return reason
        begun = self._progress.reached
        if is_far(rollout, self._host, begun, free_slots(turns.semaphore)):
            return f"waits for its turn: {begun} of {len(rollout.order)} hosts have begun"
        return None

    async def _look_closely(self) -> float:
        turns = Turns.read(await self._engine.read(TURNS))
        self._progress.note_turns(turns)
        if (holder := turns.slot_of(self._host)) is not None:
            self.waits_for = ""
            return await self._use(turns, holder)
        rollout = turns.rollout
        is_open = rollout is not None and rollout.state in OPEN
        # While a slot is held for it, a rollout is not through: there is nothing to record.
        is_enough = not is_open or turns.hosts_with_slots(rollout.rollout_id if rollout else None)
        if is_enough and (reason := reason_to_wait(turns, self._host)) is not None:
            self.waits_for = reason
            return (self._progress.near if is_open else self._progress.far)(self._pace)
        situation = await self._situation(turns)
        self._progress.note(situation, self._host)
        decision = decide(situation, self._host, self._local.state(), now())
        self.waits_for = decision.reason if isinstance(decision, Wait) else ""
        if isinstance(decision, Wait):
            stays = self._progress.stays is not None
            return (self._progress.far if stays else self._progress.near)(self._pace)
        if isinstance(decision, Use):
            return await self._use(situation.turns, decision.holder)
        revision = await self._engine.commit(situation.turns.conditions, *decision.writes)
        if revision is None:  # another host was faster: what it did is watched
            return self._progress.near(self._pace)
        self._is_to_look_closely = True
        if isinstance(decision, Take):
            log.info("fleet_slot_acquired", generation=decision.holder.generation)
        return _AGAIN_SECONDS

    async def _situation(self, turns: Turns) -> Situation:
        """Read all that a turn depends on, by what has changed since the last time."""
        self._seen = await self._engine.read_again(self._seen, *ALL)
        situation = Situation.read(self._seen)
        if situation.turns.is_older(turns):  # the store was restored, and is another one
            self._seen = await self._engine.read(*ALL)
            situation = Situation.read(self._seen)
        return situation

    async def _use(self, turns: Turns, holder: Holder) -> float:
        """Deploy with a slot and give it back; return after how many seconds to look again."""
        key = f"fleet-{holder.rollout_id}-{holder.generation}"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._give_up_if_asked, holder, key)
            outcome = await self._outcome(turns, holder, key)
            tasks.cancel_scope.cancel()
        if outcome is not None and self._announce is not None:
            with suppress(EngineError):  # it is announced again within seconds
                await self._announce()  # before others read that it has passed or failed
        await self._give_back(holder, outcome)
        self._is_to_look_closely = True
        return _AGAIN_SECONDS if outcome else self._pace.near

    async def _outcome(self, turns: Turns, holder: Holder, key: str) -> LocalOutcome | None:
        """Return how the slot's deploy ended, once it has; None if none was begun."""
        while True:
            try:
                if turns.rollout is None or not turns.lets_begin(holder):
                    return await self._local.outcome(key=key)
                return await self._deployed(turns.rollout, key)
            except RefusedError as error:
                if error.code == DEPLOY_IN_PROGRESS.code:
                    return None
                if error.code != STOPPING.code:
                    reason = f"its deploy could not begin: {error.message}"
                    return LocalOutcome(passed=False, deploy_id=None, version=None, reason=reason)
            await anyio.sleep(self._pace.near)  # the daemon's next start goes on with the slot

    async def _deployed(self, rollout: Rollout, key: str) -> LocalOutcome:
        log.info("fleet_deploy_started", rollout_id=rollout.rollout_id, release=rollout.release)
        if rollout.direction is Direction.BACK:
            return await self._local.go_back(rollout.release, key=key)
        return await self._local.deploy(rollout.release, key=key)

    async def _give_up_if_asked(self, holder: Holder, key: str) -> None:
        """Abort the slot's deploy once its rollout is aborted or replaced."""
        is_to_read = False  # what is watched is enough, unless it was silent for a while
        while True:
            changed = self._changed
            try:
                if is_to_read or self._watched_turns().gives_up(holder):
                    turns = Turns.read(await self._engine.read(TURNS))
                    if turns.gives_up(holder):
                        await self._local.abort(key=key)
                        return
            except EngineError as error:
                log.debug("fleet_turns_not_read", why=str(error))
            with anyio.move_on_after(jittered(self._progress.near(self._pace))):
                await changed.wait()
            is_to_read = not changed.is_set()

    async def _give_back(self, holder: Holder, outcome: LocalOutcome | None) -> None:
        """Record the outcome and free the slot, however long the engine is away."""
        ended, is_unanswered = now(), False
        while True:
            try:
                situation = await self._situation_at_the_end(holder)
                writes = give_back(situation, self._host, holder, outcome, ended)
                if writes is None and not is_unanswered:
                    log.warning("fleet_slot_lost", generation=holder.generation)
                if writes is None:
                    return
                is_unanswered = True
                done = await self._engine.commit(situation.turns.conditions, *writes)
                if done is not None:
                    log.info("fleet_slot_released", generation=holder.generation)
                    return
                is_unanswered = False
                await anyio.sleep(jittered(_AGAIN_SECONDS))
            except EngineError as error:
                self.waits_for = f"deployed, and {_engine_reason(error)}"
                await anyio.sleep(jittered(self._pace.near))

    async def _situation_at_the_end(self, holder: Holder) -> Situation:
        """Read what giving a slot back depends on.

        While other hosts hold slots, the rollout can't be through, and this host's own result is
        enough; the last has to know all.
        """
        own = result_key(holder.rollout_id or "", self._host)
        snapshot = await self._engine.read(TURNS, own)
        held = Turns.read(snapshot).hosts_with_slots(holder.rollout_id)
        if not held - {self._host}:
            snapshot = await self._engine.read(TURNS, RESULTS, HOSTS)
        return Situation.read(snapshot, holder.rollout_id)


_AGAIN_SECONDS = 0.05
"""After which what was done, or did not work because another host did something, is read."""
_PLACE_SECONDS_PER_HOST = 1e-3
"""How long a host that may take a slot leaves to each one before it, to read all and commit. The
first waits for none, and once it has its slot, the next is the first."""
_REST_SECONDS_PER_HOST = 1e-3
"""How long a host whose turn is far rests after each look at what is watched."""


@dataclass
class _Progress:
    """What looks have found that spares further ones, as long as the rollout is the same."""

    rollout_id: str = ""
    revision: int = 0
    """Of the rollout's document."""
    hosts: int = 0
    reached: int = 0
    """How many hosts of the order have begun, so far as it is known."""
    stays: str | None = None
    """Why the host has no part in the rollout any more, or yet."""

    def note_turns(self, turns: Turns) -> None:
        """Note which hosts hold slots."""
        rollout = turns.rollout
        revision = turns.conditions[0].revision
        if rollout is None or rollout.rollout_id != self.rollout_id:
            self.rollout_id = rollout.rollout_id if rollout else ""
            self.reached, self.stays = 0, None
        if revision != self.revision and self.stays:  # a passed host stays passed
            self.stays = None
        self.revision = revision
        if rollout is not None:
            self.hosts = len(rollout.order)
            held = turns.semaphore.holders.items()
            begun = [host for host, each in held if each.rollout_id == rollout.rollout_id]
            self.reached = max(self.reached, reached(rollout, begun))

    def note(self, situation: Situation, host: str) -> None:
        """Note which hosts have results, and whether this one's part has ended."""
        self.note_turns(situation.turns)
        rollout = situation.turns.rollout
        if rollout is not None:
            self.reached = max(self.reached, reached(rollout, situation.results))
            self.stays = reason_to_stay(rollout, host, situation)

    def far(self, pace: Pace) -> float:
        """Return the pause of a host whose turn is far."""
        return pace.far * max(self.hosts / 100, 1.0)

    def near(self, pace: Pace) -> float:
        """Return the pause of a host whose turn may have come; they are as many as slots."""
        return pace.near * max(self.hosts / 400, 1.0)

    def scaled_by_host(self, seconds: float) -> float:
        """Return a pause of so many seconds for each host."""
        return seconds * self.hosts


def _engine_reason(error: EngineError) -> str:
    if isinstance(error, UnreadableDocumentError):
        return f"waits for an operator: {error}"
    return f"waits for the fleet's engine: {error}"
