"""Whose turn it is in a rollout: what a host does next, by the documents of one revision.

The order of hosts is fixed when a rollout begins. A host is *waiting* while it has no result and no
slot. With f free slots, the first f waiting hosts of the order may take one each, if

    the rollout is running, and the host belongs to the fleet,
    every host of the waves before its own has passed,
    every other host shows a sign of life, and its last deploy did not fail,
    and the host itself can deploy now.

Excused hosts are those whose last deploy had failed when the rollout began or was resumed. They are
tried before all others of their wave, which wait until they have passed; otherwise one failed
deploy would stop every later rollout, the one that mends it too. A rollout that goes back asks for
no passed deploys at all, because a failed one is the reason for it.

A slot is taken in one commit on the condition that `turns/` is as it was. Results change in such
commits only, so what was read of them still holds then. All here is pure; `agent` does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from atlas_supervisor.fleet import semaphore as slots
from atlas_supervisor.fleet.documents import (
    ROLLOUT,
    SEMAPHORE,
    Direction,
    Halt,
    Holder,
    HostResult,
    HostState,
    Purpose,
    Rollout,
    RolloutState,
)
from atlas_supervisor.fleet.engine import Delete, Put
from atlas_supervisor.fleet.local import LocalOutcome, LocalState
from atlas_supervisor.fleet.situation import Situation, Turns, result_key
from atlas_supervisor.model.deploy import Mode

Writes = tuple[Put | Delete, ...]

OPEN = frozenset({RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.HALTED})
"""States of a rollout that has not ended."""


@dataclass(frozen=True)
class Wait:
    """Take nothing now. `reason` is empty if the host waits for nothing."""

    reason: str = ""


@dataclass(frozen=True)
class Use:
    """Go on with a slot that the host holds."""

    holder: Holder


@dataclass(frozen=True)
class Take:
    """Take a slot by these writes."""

    holder: Holder
    writes: Writes


@dataclass(frozen=True)
class Finish:
    """Record by these writes that the rollout has passed."""

    writes: Writes


def decide(
    situation: Situation, host: str, local: LocalState, now: datetime
) -> Wait | Use | Take | Finish:
    """Return the next thing that a host does, or why it waits."""
    turns = situation.turns
    rollout = turns.rollout
    if holder := turns.slot_of(host):
        return Use(holder)
    if rollout is None or rollout.state not in OPEN:
        return Wait()
    if (ended := _ended(rollout, situation, now)) is not rollout:
        return Finish((Put(ROLLOUT, ended.written()),))
    for reason in _reasons(situation, rollout, host, local):
        if reason is not None:
            return Wait(reason)
    taken = slots.take(
        turns.semaphore, host, Purpose.DEPLOY, now=now, rollout_id=rollout.rollout_id
    )
    if taken is None:
        return Wait(f"waits: {slots.in_words(turns.semaphore)}")
    result = HostResult(state=HostState.DEPLOYING, started_ts=now)
    return Take(
        taken.holders[host],
        (
            Put(SEMAPHORE, taken.written()),
            Put(result_key(rollout.rollout_id, host), result.written()),
        ),
    )


def _reasons(
    situation: Situation, rollout: Rollout, host: str, local: LocalState
) -> Iterator[str | None]:
    """Yield why a host can't take a slot, or None, from one thing after the other."""
    yield reason_to_stay(rollout, host, situation)
    yield reason_to_wait(situation.turns, host)
    yield _reason_by_others(situation, rollout, host)
    yield _reason_by_order(situation, rollout, host)
    yield _reason_by_itself(rollout, local)


def reason_to_stay(rollout: Rollout, host: str, situation: Situation) -> str | None:
    """Return why a host has no part in the rollout any more, or yet; None if it has."""
    result = situation.results.get(host)
    if result is not None and result.state is HostState.PASSED:
        return ""
    if result is not None and result.state is HostState.FAILED:
        return f"failed, and waits for an operator: {result.reason}"
    if result is not None:
        return "waits for an operator: its deploy is recorded as begun, but it holds no slot"
    if host not in situation.members:
        return "waits: the fleet was asked to forget this host"
    if host not in rollout.order:
        return "waits for the next rollout: it has no part in this one"
    return None


def reason_to_wait(turns: Turns, host: str) -> str | None:
    """Return why the host can take no slot, if `turns/` is enough to know it; None if it is not."""
    rollout, semaphore = turns.rollout, turns.semaphore
    if rollout is None or rollout.state not in OPEN:
        return ""
    if rollout.state is not RolloutState.RUNNING:
        return _reason_by_state(rollout)
    if host in semaphore.holders:
        return "waits: this host holds a slot for a reboot"
    if not slots.free_slots(semaphore):
        return f"waits: {slots.in_words(semaphore)}"
    held = turns.hosts_with_slots(rollout.rollout_id)
    earlier = rollout.order[: _wave_start(rollout, host)]
    return next((_reason_by_wave(before) for before in earlier if before in held), None)


def _reason_by_state(rollout: Rollout) -> str:
    if rollout.state is RolloutState.PAUSED:
        return "waits: the rollout is paused"
    halt = rollout.halt
    by = f" by host {halt.host}: {halt.reason}" if halt else ""
    return f"waits: the rollout is halted{by}"


def is_far(rollout: Rollout, host: str, reached: int, free: int) -> bool:
    """Return whether a host's turn can't have come, if so many hosts of the order have begun.

    It spares a host of a thousand the reading of a thousand documents at each change. Hosts that
    were forgotten may make it wrong, so a host that is far looks closely too, but seldom.
    """
    return host not in rollout.excused and host in rollout.order[reached + free :]


def reached(rollout: Rollout, begun: Iterable[str]) -> int:
    """Return how many hosts of the order lie before or at the last of those that have begun."""
    hosts = set(begun)
    return max((place for place, host in enumerate(rollout.order, 1) if host in hosts), default=0)


def places_behind(rollout: Rollout, host: str, reached: int) -> int:
    """Return how many hosts of the order come before a host, of those that have not begun."""
    if host not in rollout.order:
        return 0
    return max(rollout.order.index(host) - reached, 0)


def _wave_start(rollout: Rollout, host: str) -> int:
    """Return how many hosts are in the waves before a host's own; 0 if it has no part."""
    place = rollout.order.index(host) if host in rollout.order else 0
    return max((end for end in rollout.wave_ends if end <= place), default=0)


def _reason_by_wave(before: str) -> str:
    return f"waits for its wave: host {before} of an earlier one has not passed"


def _reason_by_order(situation: Situation, rollout: Rollout, host: str) -> str | None:
    for before in rollout.order[: _wave_start(rollout, host)]:
        if not situation.has_passed(before):
            return _reason_by_wave(before)
    if host not in situation.waiting:
        return f"waits for host {situation.tried[0]}: it failed, and is tried first"
    ahead = situation.waiting[: situation.waiting.index(host)]
    if len(ahead) >= slots.free_slots(situation.turns.semaphore):
        return f"waits for its turn: host {ahead[0]}{_and_more(len(ahead) - 1)} comes first"
    return None


def _reason_by_others(situation: Situation, rollout: Rollout, host: str) -> str | None:
    others = situation.members - {host}
    silent = sorted(others - situation.presences.keys())
    if silent:
        return f"waits for host {silent[0]}{_and_more(len(silent) - 1)}: no sign of life"
    if rollout.direction is Direction.BACK:
        return None
    failed = sorted(filter(situation.last_deploy_failed, others.difference(rollout.excused)))
    if failed:
        return (
            f"waits for host {failed[0]}{_and_more(len(failed) - 1)}: its last deploy failed; "
            "deploy on it, or pause and resume the rollout"
        )
    return None


def _reason_by_itself(rollout: Rollout, local: LocalState) -> str | None:
    if local.deploying:
        return "waits: a deploy of its own is in progress on this host"
    if local.mode == Mode.SINGLE and rollout.direction is Direction.FORWARD:
        return "waits: deploys are disabled on this host; atlasctl mode bluegreen enables them"
    return None


def give_back(
    situation: Situation, host: str, holder: Holder, outcome: LocalOutcome | None, now: datetime
) -> Writes | None:
    """Return the writes that end a host's turn; None if the slot is not its own any more.

    Without an outcome nothing was begun, and the host waits again. A failure halts the rollout; the
    last host that passes ends it. The situation has the results of the slot's rollout.
    """
    turns = situation.turns
    freed = slots.give_back(turns.semaphore, host, holder.generation)
    if freed is None or holder.rollout_id is None:
        return None
    key = result_key(holder.rollout_id, host)
    semaphore = Put(SEMAPHORE, freed.written())
    if outcome is None:
        return (semaphore, Delete(key))
    result = _result(outcome, holder, situation.results.get(host), now)
    writes = (semaphore, Put(key, result.written()))
    rollout = turns.rollout
    if rollout is None or rollout.rollout_id != holder.rollout_id:
        return writes
    if not outcome.passed:
        changed = halted(rollout, host, outcome.reason, now)
    else:
        after = replace(
            situation,
            turns=replace(turns, semaphore=freed),
            results={**situation.results, host: result},
        )
        changed = _ended(rollout, after, now)
    return writes if changed is rollout else (*writes, Put(ROLLOUT, changed.written()))


def _result(
    outcome: LocalOutcome, holder: Holder, before: HostResult | None, now: datetime
) -> HostResult:
    return HostResult(
        state=HostState.PASSED if outcome.passed else HostState.FAILED,
        started_ts=before.started_ts if before else holder.since_ts,
        ended_ts=now,
        deploy_id=outcome.deploy_id,
        version=outcome.version,
        reason=outcome.reason,
    )


def _ended(rollout: Rollout, situation: Situation, now: datetime) -> Rollout:
    """Return the rollout as passed if nothing is left to do; otherwise the same.

    One that is halted stays so: an operator has to see it.
    """
    goes_on = rollout.state in {RolloutState.RUNNING, RolloutState.PAUSED}
    if goes_on and _is_through(situation, rollout):
        return rollout.model_copy(update={"state": RolloutState.PASSED, "ended_ts": now})
    return rollout


def halted(rollout: Rollout, host: str, reason: str, now: datetime) -> Rollout:
    """Return the rollout stopped by a host's failure; the same if it is stopped or has ended."""
    if rollout.state not in {RolloutState.RUNNING, RolloutState.PAUSED}:
        return rollout
    halt = Halt(host=host, reason=reason, at_ts=now)
    return rollout.model_copy(update={"state": RolloutState.HALTED, "halt": halt})


def _is_through(situation: Situation, rollout: Rollout) -> bool:
    """Return whether all hosts have passed, and no slot is held for the rollout any more."""
    return not situation.turns.hosts_with_slots(rollout.rollout_id) and all(
        situation.has_passed(host) for host in rollout.order
    )


def _and_more(count: int) -> str:
    return f" and {count} more" if count else ""
