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

A host of a thousand can't read a thousand documents at each change. So what it follows anyway
(`turn_watch`) decides first, if it can; what that can't decide is looked at closely.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

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
from atlas_supervisor.fleet.engine import NOTHING, Engine, EngineError
from atlas_supervisor.fleet.local import LocalOutcome, LocalSupervisor
from atlas_supervisor.fleet.situation import ALL, Situation, Turns, result_key
from atlas_supervisor.fleet.turn import (
    OPEN,
    Take,
    Use,
    Wait,
    decide,
    give_back,
    reason_to_wait,
)
from atlas_supervisor.fleet.turn_watch import Pace, TurnWatch
from atlas_supervisor.system.clock import jittered, now

log = structlog.get_logger(__name__)


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
        self._turns = TurnWatch(engine, host, self._pace)
        self._seen = NOTHING
        """All that a turn depends on, as it was read last."""
        self._is_to_look_closely = True
        self._looked_at, self._jitter = 0.0, 1.0
        """When it was looked closely last, by anyio's clock."""
        self.waits_for = ""
        """Why the host takes no slot now; empty if it waits for nothing, or has one."""

    async def run(self) -> None:
        """Take part until this is cancelled. What has begun on the host goes on without it."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._turns.run)
            while True:
                changed = self._turns.changed
                seconds = await self._look()
                with anyio.move_on_after(seconds):
                    await changed.wait()

    async def _look(self) -> float:
        """Do what there is to do; return after how many seconds to look again at the latest."""
        try:
            waiting = None if self._is_to_look_closely else self._turns.waiting()
            if waiting is not None and (left := self._seconds_left()) > 0:
                self.waits_for = waiting.reason
                return min(waiting.seconds, left)
            self._is_to_look_closely = False
            self._looked_at, self._jitter = anyio.current_time(), jittered(1.0)
            return await self._look_closely()
        except EngineError as error:
            self.waits_for = _engine_reason(error)
            self._is_to_look_closely = True  # it may have taken a slot
        return jittered(self._turns.near_seconds)

    def _seconds_left(self) -> float:
        """Return after how many seconds to look closely, though what is followed is enough."""
        return self._looked_at + self._jitter * self._turns.far_seconds - anyio.current_time()

    async def _look_closely(self) -> float:
        turns = Turns.read(await self._engine.read(TURNS))
        if (holder := turns.slot_of(self._host)) is not None:
            self.waits_for = ""
            return await self._use(turns, holder)
        rollout = turns.rollout
        is_open = rollout is not None and rollout.state in OPEN
        # While a slot is held for it, a rollout is not through: there is nothing to record.
        is_enough = not is_open or turns.hosts_with_slots(rollout.rollout_id if rollout else None)
        if is_enough and (reason := reason_to_wait(turns, self._host)) is not None:
            self.waits_for = reason
            return self._pause()
        situation = await self._situation(turns)
        self._turns.note(situation)
        decision = decide(situation, self._host, self._local.state(), now())
        self.waits_for = decision.reason if isinstance(decision, Wait) else ""
        if isinstance(decision, Wait):
            return self._pause()
        if isinstance(decision, Use):
            return await self._use(situation.turns, decision.holder)
        revision = await self._engine.commit(situation.turns.conditions, *decision.writes)
        if revision is None:  # another host was faster: what it did is watched
            return jittered(self._turns.near_seconds)
        self._is_to_look_closely = True
        if isinstance(decision, Take):
            log.info("fleet_slot_acquired", generation=decision.holder.generation)
        return _AGAIN_SECONDS

    def _pause(self) -> float:
        """Return after how many seconds to look again, if nothing changes."""
        waiting = self._turns.waiting()
        if waiting is None:
            return jittered(self._turns.near_seconds)
        return min(waiting.seconds, self._seconds_left())

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
        with self._turns.using_slot():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._give_up_if_asked, holder, key)
                outcome = await self._outcome(turns, holder, key)
                tasks.cancel_scope.cancel()
            if outcome is not None and self._announce is not None:
                with suppress(EngineError):  # it is announced again within seconds
                    await self._announce()  # before others read that it has passed or failed
            is_recorded = await self._give_back(holder, outcome)
        if is_recorded and outcome is not None and outcome.passed:
            self._turns.note_passed(holder.rollout_id or "")
        else:
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
            changed = self._turns.changed
            try:
                if is_to_read or self._turns.turns().gives_up(holder):
                    turns = Turns.read(await self._engine.read(TURNS))
                    if turns.gives_up(holder):
                        await self._local.abort(key=key)
                        return
            except EngineError as error:
                log.debug("fleet_turns_not_read", why=str(error))
            with anyio.move_on_after(jittered(self._turns.near_seconds)):
                await changed.wait()
            is_to_read = not changed.is_set()

    async def _give_back(self, holder: Holder, outcome: LocalOutcome | None) -> bool:
        """Record the outcome and free the slot, however long the engine is away.

        Return False if the slot had gone: by a commit whose answer was lost, or by an operator.
        """
        ended, is_unanswered = now(), False
        while True:
            try:
                situation = await self._situation_at_the_end(holder)
                writes = give_back(situation, self._host, holder, outcome, ended)
                if writes is None and not is_unanswered:
                    log.warning("fleet_slot_lost", generation=holder.generation)
                if writes is None:
                    return False
                is_unanswered = True
                done = await self._engine.commit(situation.turns.conditions, *writes)
                if done is not None:
                    log.info("fleet_slot_released", generation=holder.generation)
                    return True
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


def _engine_reason(error: EngineError) -> str:
    if isinstance(error, UnreadableDocumentError):
        return f"waits for an operator: {error}"
    return f"waits for the fleet's engine: {error}"
