"""Proves by etcd's history that a fleet's rollouts kept their promises.

`facts` has every revision under a prefix, and beside it what no engine knows: which commits each
client sent and by what it had read, when machines deployed, died and came back, what an operator
asked for. The checker plays the revisions one after the other and holds each to

    the budget      never more holders than slots; each change makes the generation grow by one
    taking          only in a running rollout, in the order of hosts and waves, with all others
                    present and well; never by a host that holds a slot
    giving back     by the holder itself, after its deploy; or by an operator who named the slot's
                    generation, and only so if the holder is dead
    deploying       only with the slot of the deploy's key, or after that slot was broken
    results         deploying, passed and failed as the slots and the machines have it
    rollouts        one at a time, by the transitions that there are; passed only if all hosts are
    kills           epochs that grow: in etcd, and of what each machine applies and acknowledges

It shares the documents with the program, and none of its decisions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from atlas_supervisor.fleet.documents import (
    HOSTS,
    KILL,
    PRESENT,
    RESULTS,
    ROLLOUT,
    SEMAPHORE,
    Direction,
    Holder,
    HostResult,
    HostState,
    KillSwitch,
    Presence,
    Purpose,
    Rollout,
    RolloutState,
    Semaphore,
    UnreadableDocumentError,
)
from tests.simulation.fleet.facts import OPERATOR, Facts, Revision, Sent

_R = RolloutState
TRANSITIONS = {
    _R.RUNNING: {_R.PAUSED, _R.HALTED, _R.ABORTED, _R.PASSED},
    _R.PAUSED: {_R.RUNNING, _R.HALTED, _R.ABORTED, _R.PASSED},
    _R.HALTED: {_R.RUNNING, _R.ABORTED},
    _R.ABORTED: set(),
    _R.PASSED: set(),
}
_GOES_ON = {_R.RUNNING, _R.PAUSED}
BAD_RESULTS = {"failed", "rolled_back"}


@dataclass(frozen=True)
class _Change:
    """A change of the semaphore: the state before it, both semaphores, and who may have sent it."""

    before: dict[str, bytes]
    old: Semaphore
    new: Semaphore
    authors: list[Sent]


class Checker:
    """Plays a history."""

    def __init__(self, history: list[Revision], facts: Facts) -> None:
        self._history, self._facts = history, facts
        self._state: dict[str, bytes] = {}
        self._number = 0
        self._at: dict[int, dict[str, bytes]] = {}
        self._broken: set[tuple[str, int]] = set()
        self._slots: dict[tuple[str, int], tuple[int, int | None]] = {}
        self.found: list[str] = []

    def violations(self) -> list[str]:
        """Return one line for each promise that was broken."""
        wanted = {each.read_at for each in self._facts.sent}
        wanted |= {each.seen for each in self._facts.deploys}
        for revision in self._history:
            before = dict(self._state)
            for number in [n for n in wanted if n < revision.number]:
                wanted.discard(number)
                self._at[number] = before
            for key, value in revision.written.items():
                if value is None:
                    self._state.pop(key, None)
                else:
                    self._state[key] = value
            self._number = revision.number
            self._check(before, revision)
        self._at |= dict.fromkeys(wanted, self._state)
        self._check_deploys()
        self._check_applied_kills()
        return self.found

    def _say(self, text: str) -> None:
        self.found.append(f"revision {self._number}: {text}")

    def _check(self, before: dict[str, bytes], revision: Revision) -> None:
        if SEMAPHORE in revision.written or ROLLOUT in revision.written:
            old, new = _semaphore(before), _semaphore(self._state)
            if SEMAPHORE in revision.written:
                self._check_semaphore(before, revision, old, new)
            elif old != new:
                self._say("the semaphore changed without being written")
            if ROLLOUT in revision.written:
                self._check_rollout(before, revision)
        self._check_results(before, revision)
        if KILL in revision.written:
            self._check_kill(before)
        self._check_acknowledged(revision)

    def _authors(self, revision: Revision) -> list[Sent]:
        """Return the commits that the revision may be: a host may send the same one again."""
        return [each for each in self._facts.sent if each.is_in(revision)]

    def _check_semaphore(
        self, before: dict[str, bytes], revision: Revision, old: Semaphore, new: Semaphore
    ) -> None:
        authors = self._authors(revision)
        if not authors:
            self._say("a semaphore that no client sent")
            return
        if len(new.holders) > new.slots:
            self._say(f"{len(new.holders)} holders of {new.slots} slots: {sorted(new.holders)}")
        if new.generation != old.generation + 1:
            self._say(f"the generation went from {old.generation} to {new.generation}")
        gone = [(host, each) for host, each in old.holders.items() if new.holders.get(host) != each]
        come = [(host, each) for host, each in new.holders.items() if old.holders.get(host) != each]
        if len(gone) + len(come) > 1:
            self._say(f"more than one slot changed: {gone} {come}")
        for host, holder in come:
            self._slots[host, holder.generation] = (self._number, None)
            self._check_taking(_Change(before, old, new, authors), host, holder)
        for host, holder in gone:
            begin, _ = self._slots.get((host, holder.generation), (0, None))
            self._slots[host, holder.generation] = (begin, self._number)
            self._check_freeing(authors, host, holder)
        if new.slots != old.slots and (gone or come):
            self._say("slots were added or removed while one changed hands")

    def _check_freeing(self, authors: list[Sent], host: str, holder: Holder) -> None:
        slot = f"the slot of {host}, generation {holder.generation}"
        own = [each for each in authors if each.client == host]
        if not own and all(each.client == OPERATOR for each in authors):
            self._broken.add((host, holder.generation))
            if (host, holder.generation) not in self._facts.breaks:
                self._say(f"{slot} was broken, and no operator named this generation")
            return
        if not own:
            self._say(f"{slot} was freed by {authors[-1].client}")
            return
        if holder.purpose is Purpose.DEPLOY and own[-1].deploying == _key(holder):
            self._say(f"{slot} was given back while {host} still deployed with it")
        for death in self._facts.deaths:
            is_back = death.back_at is not None and death.back_at < self._number
            is_dead = death.died_at < self._number and not is_back
            if death.host == host and is_dead and own[0].life >= death.life:
                self._say(f"{slot} was freed by a dead host")

    def _check_taking(self, change: _Change, host: str, holder: Holder) -> None:
        author, before = change.authors[-1], change.before
        if author.client != host:
            self._say(f"{host} got a slot by {author.client}")
        if holder.generation != change.new.generation or host in change.old.holders:
            self._say(f"{host} got a slot of generation {holder.generation} out of order")
        if holder.purpose is Purpose.REBOOT:
            return
        rollout = _rollout(before)
        if rollout is None or rollout.rollout_id != holder.rollout_id:
            self._say(f"{host} took a slot for {holder.rollout_id}, which is not the rollout")
            return
        if rollout.state is not RolloutState.RUNNING:
            self._say(f"{host} took a slot while the rollout was {rollout.state}")
        if f"{RESULTS}{rollout.rollout_id}/{host}" in before:
            self._say(f"{host} took a slot although it has a result")
        read = self._at.get(author.read_at, before)
        members = {key.removeprefix(HOSTS) for key in read if key.startswith(HOSTS)}
        self._check_order(change, rollout, members, host)
        self._check_others(read, rollout, members, host)

    def _check_order(self, change: _Change, rollout: Rollout, members: set[str], host: str) -> None:
        results = _results(change.before, rollout.rollout_id)
        done = {each for each, state in results.items() if state is HostState.PASSED}
        done |= set(rollout.order) - members
        if host not in rollout.order or host not in members:
            self._say(f"{host} took a slot and is no host of the rollout, or of the fleet")
            return
        wave = next(end for end in rollout.wave_ends if end > rollout.order.index(host))
        start = max((end for end in rollout.wave_ends if end < wave), default=0)
        if missing := set(rollout.order[:start]) - done:
            self._say(f"{host} took a slot before {sorted(missing)} of an earlier wave passed")
        open_waves = [end for end in rollout.wave_ends if set(rollout.order[:end]) - done]
        tried = set(rollout.excused) & set(rollout.order[: min(open_waves)]) - done
        queue = [
            each
            for each in rollout.order
            if each in members
            and each not in results
            and each not in change.old.holders
            and (not tried or each in tried)
        ]
        if host not in queue[: change.old.slots - len(change.old.holders)]:
            self._say(f"{host} took a slot out of turn: {queue}")

    def _check_others(
        self, read: dict[str, bytes], rollout: Rollout, members: set[str], host: str
    ) -> None:
        for other in members - {host}:
            value = read.get(PRESENT + other)
            if value is None:
                self._say(f"{host} took a slot while {other} showed no sign of life")
                continue
            try:
                last = Presence.read(other, value).last_deploy
            except UnreadableDocumentError:
                self._say(f"{host} took a slot although the presence of {other} can't be read")
                continue
            is_excused = other in rollout.excused or rollout.direction is Direction.BACK
            if last and last.result in BAD_RESULTS and not is_excused:
                self._say(f"{host} took a slot although the last deploy of {other} failed")

    def _check_rollout(self, before: dict[str, bytes], revision: Revision) -> None:
        old, new = _rollout(before), _rollout(self._state)
        if new is None:
            self._say("the rollout was removed")
        elif old is None or old.rollout_id != new.rollout_id:
            self._check_replaced(old, new, before)
        else:
            if new.state is not old.state and new.state not in TRANSITIONS[old.state]:
                self._say(f"the rollout went from {old.state} to {new.state}")
            fixed = {"order", "wave_ends", "release", "direction", "max_unavailable", "undoes"}
            if new.model_dump(include=fixed) != old.model_dump(include=fixed):
                self._say("a rollout changed while it ran")
            if new.state is RolloutState.PASSED is not old.state:
                authors = self._authors(revision)
                self._check_passed(self._at.get(authors[-1].read_at, before), new)

    def _check_replaced(self, old: Rollout | None, new: Rollout, before: dict[str, bytes]) -> None:
        is_open = old is not None and old.state not in {_R.ABORTED, _R.PASSED}
        if old is not None and is_open and new.undoes != old.rollout_id:
            self._say(f"rollout {new.rollout_id} began while {old.rollout_id} was {old.state}")
        if new.state is not RolloutState.RUNNING:
            self._say(f"a rollout began {new.state}")
        if new.direction is Direction.FORWARD:
            if _semaphore(self._state).slots != new.max_unavailable:
                self._say("a rollout began with another number of slots")
        elif set(new.order) != _results(before, new.undoes or "").keys():
            self._say(f"{new.order} go back, which is not the hosts that had begun")

    def _check_passed(self, read: dict[str, bytes], rollout: Rollout) -> None:
        results = _results(self._state, rollout.rollout_id)
        members = {key.removeprefix(HOSTS) for key in read if key.startswith(HOSTS)}
        ends = [each for each in rollout.order if each in members]
        if missing := [each for each in ends if results.get(each) is not HostState.PASSED]:
            self._say(f"the rollout passed without {missing}")
        holders = _semaphore(self._state).holders.values()
        if any(each.rollout_id == rollout.rollout_id for each in holders):
            self._say("the rollout passed while a slot was held for it")

    def _check_results(self, before: dict[str, bytes], revision: Revision) -> None:
        for key, value in revision.written.items():
            if key.startswith(RESULTS):
                rollout_id, _, host = key.removeprefix(RESULTS).partition("/")
                was = HostResult.read(key, before[key]).state if key in before else None
                state = None if value is None else HostResult.read(key, value).state
                self._check_result(before, rollout_id, host, (was, state))

    def _check_result(
        self,
        before: dict[str, bytes],
        rollout_id: str,
        host: str,
        states: tuple[HostState | None, HostState | None],
    ) -> None:
        was, state = states
        rollout = _rollout(self._state)
        is_present = rollout is not None and rollout.rollout_id == rollout_id
        holder = _semaphore(before).holders.get(host)
        if was is HostState.PASSED and is_present:
            self._say(f"the passed result of {host} was removed or overwritten")
        if state is HostState.DEPLOYING:
            taken = _semaphore(self._state).holders.get(host)
            if taken is None or taken.rollout_id != rollout_id or was is not None:
                self._say(f"{host} deploys by its result, and has taken no slot")
        elif state is not None and (holder is None or holder.rollout_id != rollout_id):
            self._say(f"{host} has the result {state} without a slot")
        elif state is HostState.PASSED and holder and not self._has_passed(host, _key(holder)):
            self._say(f"{host} has the result passed, and its deploy did not pass")
        if state is HostState.FAILED and rollout and is_present and rollout.state in _GOES_ON:
            self._say(f"{host} failed, and the rollout is still {rollout.state}")

    def _has_passed(self, host: str, key: str) -> bool:
        found = [each for each in self._facts.deploys if (each.host, each.key) == (host, key)]
        return bool(found) and found[-1].passed is True

    def _check_kill(self, before: dict[str, bytes]) -> None:
        old, new = before.get(KILL), self._state.get(KILL)
        if new is None:
            self._say("the kill switch was removed")
        elif old and KillSwitch.read(KILL, new).epoch <= KillSwitch.read(KILL, old).epoch:
            self._say("the kill switch's epoch did not grow")

    def _check_acknowledged(self, revision: Revision) -> None:
        """Hold the epochs that hosts announce to those that there were."""
        kill = self._state.get(KILL)
        for key, value in revision.written.items():
            if not key.startswith(PRESENT) or (epoch := _kill_epoch(value)) is None:
                continue
            if epoch > (KillSwitch.read(KILL, kill).epoch if kill else 0):
                self._say(f"{key} announces epoch {epoch}, which was never set")

    def _check_applied_kills(self) -> None:
        applied: dict[str, int] = {}
        for host, switch in self._facts.kills:
            epoch = switch.epoch if switch else 0
            if epoch < applied.get(host, 0):
                self.found.append(f"{host} has epoch {epoch} in force after a higher one")
            applied[host] = epoch

    def _check_deploys(self) -> None:
        """Hold each true deploy to the slot that its key names."""
        for deploy in self._facts.deploys:
            rollout_id, _, generation = deploy.key.removeprefix("fleet-").rpartition("-")
            what = f"{deploy.host} deployed with {deploy.key}"
            held = self._slots.get((deploy.host, int(generation)))
            if held is None or held[0] > deploy.seen:
                self.found.append(f"{what} before it had taken a slot")
                continue
            rollout = _rollout(self._at[deploy.seen])
            if rollout is None or rollout.rollout_id != rollout_id:
                self.found.append(f"{what} although it knew of another rollout")
            elif rollout.state is not RolloutState.RUNNING:
                self.found.append(f"{what} although it knew that the rollout was {rollout.state}")
            _, freed = held
            broken = (deploy.host, int(generation)) in self._broken
            if freed is not None and freed <= deploy.seen:
                self.found.append(f"{what} although it knew that the slot was freed")
            end = deploy.newest_at_end
            if freed is not None and not broken and (end is None or end > freed):
                self.found.append(f"{what} after it had given the slot back")


def _semaphore(state: dict[str, bytes]) -> Semaphore:
    value = state.get(SEMAPHORE)
    return Semaphore() if value is None else Semaphore.read(SEMAPHORE, value)


def _rollout(state: dict[str, bytes]) -> Rollout | None:
    value = state.get(ROLLOUT)
    return None if value is None else Rollout.read(ROLLOUT, value)


def _results(state: dict[str, bytes], rollout_id: str) -> dict[str, HostState]:
    return dict(_states(state, f"{RESULTS}{rollout_id}/"))


def _states(state: dict[str, bytes], prefix: str) -> Iterator[tuple[str, HostState]]:
    for key, value in state.items():
        if key.startswith(prefix):
            yield key.removeprefix(prefix), HostResult.read(key, value).state


def _kill_epoch(value: bytes | None) -> int | None:
    with suppress(UnreadableDocumentError):
        return None if value is None else Presence.read(PRESENT, value).kill_epoch
    return None


def _key(holder: Holder) -> str:
    return f"fleet-{holder.rollout_id}-{holder.generation}"
