"""What an operator does with rollouts, from any of the hosts: begin, pause, resume, abort, go back.

Each command reads, decides and commits on the condition that nothing it decided by has changed; if
something has, it begins again. So two operators at once are one after the other. If the engine does
not answer a commit, the command fails and it is open whether it was done: the status shows it, and
a repeated command is refused by what it finds.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from atlas_supervisor.errors import (
    FLEET_DOCUMENT_UNREADABLE,
    FLEET_IS_BUSY,
    FLEET_IS_EMPTY,
    FLEET_UNAVAILABLE,
    INVALID_MAX_UNAVAILABLE,
    NO_ROLLOUT,
    ROLLOUT_IN_PROGRESS,
    ROLLOUT_NOT_POSSIBLE,
    SLOT_HAS_CHANGED,
    SLOT_NOT_HELD,
    SLOTS_ARE_HELD,
    UNKNOWN_HOST,
    RefusedError,
)
from atlas_supervisor.fleet import semaphore as slots
from atlas_supervisor.fleet.documents import (
    HOSTS,
    RESULTS,
    ROLLOUT,
    SEMAPHORE,
    TURNS,
    Direction,
    HostResult,
    HostState,
    Purpose,
    Rollout,
    RolloutState,
    Semaphore,
    UnreadableDocumentError,
)
from atlas_supervisor.fleet.engine import Delete, Engine, EngineError, Put
from atlas_supervisor.fleet.situation import ALL, Situation, result_key
from atlas_supervisor.fleet.turn import (
    OPEN,
    Writes,
    halted,
)
from atlas_supervisor.fleet.waves import DEFAULT_WAVES, wave_ends
from atlas_supervisor.system.clock import now

T = TypeVar("T")

_ATTEMPTS = 20
_WRITES_AT_ONCE = 100
"""Of one commit; etcd takes 128 unless it is configured otherwise."""


class Rollouts:
    """The fleet's rollout, to be changed by an operator.

    All commands raise RefusedError; those of the engine and of its documents among them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def begin(
        self,
        release: str,
        *,
        by: str,
        max_unavailable: int = 1,
        waves: Sequence[float] = DEFAULT_WAVES,
    ) -> Rollout:
        """Begin to deploy a release on all hosts that the fleet has now, and return the rollout."""

        def begun(situation: Situation) -> tuple[Rollout, Writes]:
            present = situation.turns.rollout
            if present is not None and present.state in OPEN:
                raise ROLLOUT_IN_PROGRESS.error(
                    rollout_id=present.rollout_id, release=present.release, state=present.state
                )
            failed = sorted(filter(situation.failed_last, situation.members))
            order = (*failed, *sorted(situation.members.difference(failed)))
            _check_budget(situation.turns.semaphore, max_unavailable, len(order))
            rollout = Rollout(
                rollout_id=_new_id(),
                release=release,
                max_unavailable=max_unavailable,
                order=order,
                wave_ends=wave_ends(waves, len(order)),
                started_ts=now(),
                started_by=by,
                excused=tuple(failed),
            )
            resized = slots.resized(situation.turns.semaphore, max_unavailable)
            return rollout, (
                Put(ROLLOUT, rollout.written()),
                Put(SEMAPHORE, resized.written()),
            )

        rollout = await self._change(begun, *ALL)
        with suppress(EngineError):
            await self._forget_old_results(rollout)
        return rollout

    async def pause(self) -> Rollout:
        """Let no further host take a slot until the rollout is resumed."""

        def paused(situation: Situation) -> tuple[Rollout, Writes]:
            rollout = _present(situation, "be paused", RolloutState.RUNNING)
            return _with(rollout, state=RolloutState.PAUSED)

        return await self._change(paused, TURNS)

    async def resume(self) -> Rollout:
        """Go on after a pause or a halt; hosts whose deploy failed are tried again, first."""

        def resumed(situation: Situation) -> tuple[Rollout, Writes]:
            wanted = RolloutState.PAUSED, RolloutState.HALTED
            rollout = _present(situation, "be resumed", *wanted)
            failed = [
                host
                for host, result in situation.results.items()
                if result.state is HostState.FAILED
            ]
            again, later = failed[:_WRITES_AT_ONCE], failed[_WRITES_AT_ONCE:]
            left = [host for host in rollout.excused if not situation.has_passed(host)]
            excused = tuple(sorted({*left, *filter(situation.failed_last, situation.members)}))
            removed = [Delete(result_key(rollout.rollout_id, host)) for host in again]
            if later:
                changed, writes = _with(rollout, excused=excused)
            else:
                changed, writes = _with(
                    rollout, excused=excused, state=RolloutState.RUNNING, halt=None
                )
            return changed, (*writes, *removed)

        rollout = await self._change(resumed, *ALL)
        while rollout.state is not RolloutState.RUNNING:
            rollout = await self._change(resumed, *ALL)
        return rollout

    async def abort(self) -> Rollout:
        """End the rollout: no further host takes a slot, and what has not switched is given up."""

        def aborted(situation: Situation) -> tuple[Rollout, Writes]:
            rollout = _present(situation, "be aborted", *sorted(OPEN))
            return _with(rollout, state=RolloutState.ABORTED, ended_ts=now())

        return await self._change(aborted, TURNS)

    async def roll_back(self, *, by: str) -> Rollout:
        """Let the hosts that have the release go back, the last one first; return that rollout.

        A host that failed may have it all the same, if its slot was broken: each sees for itself.
        """

        def back(situation: Situation) -> tuple[Rollout, Writes]:
            undone = _present(situation, "be rolled back", *RolloutState)
            if undone.direction is Direction.BACK:
                raise _not_possible("be rolled back", "goes back already")
            order = tuple(host for host in reversed(undone.order) if host in situation.results)
            if not order:
                raise _not_possible("be rolled back", "was begun by no host; abort it instead")
            rollout = Rollout(
                rollout_id=_new_id(),
                release=undone.release,
                direction=Direction.BACK,
                max_unavailable=undone.max_unavailable,
                order=order,
                wave_ends=(len(order),),
                started_ts=now(),
                started_by=by,
                undoes=undone.rollout_id,
            )
            return rollout, (Put(ROLLOUT, rollout.written()),)

        return await self._change(back, TURNS, RESULTS)

    async def break_slot(self, host: str, generation: int, *, by: str) -> Semaphore:
        """Free the slot of a host that will not give it back; return the semaphore.

        Only if the slot has this generation. A deploy counts as failed, which halts its rollout.
        """

        def broken(situation: Situation) -> tuple[Semaphore, Writes]:
            turns = situation.turns
            holder = turns.semaphore.holders.get(host)
            if holder is None:
                _check_known(situation, host)
                raise SLOT_NOT_HELD.error(host=host)
            freed = slots.give_back(turns.semaphore, host, generation)
            if freed is None:
                raise SLOT_HAS_CHANGED.error(host=host, present=holder.generation, given=generation)
            writes: Writes = (Put(SEMAPHORE, freed.written()),)
            if holder.purpose is Purpose.REBOOT or holder.rollout_id is None:
                return freed, writes
            reason = f"its slot was broken by {by}"
            result = HostResult(
                state=HostState.FAILED, started_ts=holder.since_ts, ended_ts=now(), reason=reason
            )
            writes = (*writes, Put(result_key(holder.rollout_id, host), result.written()))
            rollout = turns.rollout
            if rollout is None or rollout.rollout_id != holder.rollout_id:
                return freed, writes
            stopped = halted(rollout, host, reason, now())
            return freed, (*writes, Put(ROLLOUT, stopped.written()))

        return await self._change(broken, TURNS, HOSTS)

    async def _change(self, decide: Callable[[Situation], tuple[T, Writes]], *prefixes: str) -> T:
        """Commit what is decided by the present situation, and return the answer.

        Only what the command needs is read: a presence that can't be read stops no abort.
        """
        with _refusing():
            for _ in range(_ATTEMPTS):
                situation = Situation.read(await self._engine.read(*prefixes))
                answer, writes = decide(situation)
                if await self._engine.commit(situation.turns.conditions, *writes) is not None:
                    return answer
        raise FLEET_IS_BUSY.error()

    async def _forget_old_results(self, rollout: Rollout) -> None:
        """Remove the results of all rollouts but this one."""
        kept = result_key(rollout.rollout_id, "")
        snapshot = await self._engine.read(RESULTS)
        old = [entry.key for entry in snapshot.entries if not entry.key.startswith(kept)]
        for start in range(0, len(old), _WRITES_AT_ONCE):
            await self._engine.commit((), *map(Delete, old[start : start + _WRITES_AT_ONCE]))


@contextmanager
def _refusing() -> Iterator[None]:
    """Raise RefusedError for what goes wrong with the engine."""
    try:
        yield
    except UnreadableDocumentError as error:
        raise FLEET_DOCUMENT_UNREADABLE.error(problem=error) from error
    except EngineError as error:
        raise FLEET_UNAVAILABLE.error(problem=error) from error


def _new_id() -> str:
    return f"{now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _check_budget(semaphore: Semaphore, max_unavailable: int, hosts: int) -> None:
    """Raise RefusedError unless a rollout over so many hosts may have so many slots."""
    if not hosts:
        raise FLEET_IS_EMPTY.error()
    if not 1 <= max_unavailable <= hosts:
        field = {"field": "max_unavailable"}
        raise INVALID_MAX_UNAVAILABLE.error(value=max_unavailable, hosts=hosts, extra=field)
    held = sorted(semaphore.holders)
    if len(held) > max_unavailable:
        raise SLOTS_ARE_HELD.error(held=len(held), hosts=", ".join(held), slots=max_unavailable)


def _check_known(situation: Situation, host: str) -> None:
    if host not in situation.members:
        raise UNKNOWN_HOST.error(host=host, known=", ".join(sorted(situation.members)) or "none")


def _present(situation: Situation, action: str, *states: RolloutState) -> Rollout:
    """Return the present rollout if it is in one of these states. Raises RefusedError."""
    rollout = situation.turns.rollout
    if rollout is None:
        raise NO_ROLLOUT.error()
    if rollout.state not in states:
        raise _not_possible(action, _IS[rollout.state])
    return rollout


_IS = {
    RolloutState.RUNNING: "is running",
    RolloutState.PAUSED: "is paused",
    RolloutState.HALTED: "is halted",
    RolloutState.ABORTED: "was aborted",
    RolloutState.PASSED: "has passed",
}


def _not_possible(action: str, state: str) -> RefusedError:
    return ROLLOUT_NOT_POSSIBLE.error(action=action, state=state)


def _with(rollout: Rollout, **changes: object) -> tuple[Rollout, Writes]:
    changed = rollout.model_copy(update=changes)
    return changed, (Put(ROLLOUT, changed.written()),)
