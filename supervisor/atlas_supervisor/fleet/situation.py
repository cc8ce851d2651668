"""All that a host's turn in a rollout depends on, read from the documents of one revision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Self

from atlas_supervisor.fleet.documents import (
    HOSTS,
    PRESENT,
    RESULTS,
    ROLLOUT,
    SEMAPHORE,
    TURNS,
    Holder,
    HostResult,
    HostState,
    Presence,
    Purpose,
    Rollout,
    RolloutState,
    Semaphore,
)
from atlas_supervisor.fleet.engine import Snapshot, Unchanged
from atlas_supervisor.model.deploy import Result

ALL = (TURNS, RESULTS, HOSTS, PRESENT)
"""The prefixes of all that a turn depends on."""
FAILURES = frozenset({Result.FAILED, Result.ROLLED_BACK})
"""Results of a host's last deploy that stop all other hosts."""


def result_key(rollout_id: str, host: str) -> str:
    """Return the key of a host's result."""
    return f"{RESULTS}{rollout_id}/{host}"


@lru_cache(maxsize=8)
def _rollout(value: bytes) -> Rollout:
    """Parse a rollout; one of a thousand hosts stays the same while slots change hands."""
    return Rollout.read(ROLLOUT, value)


# Of a thousand hosts, most announce the same as when they were looked at last.


@lru_cache(maxsize=4096)
def _presence(key: str, value: bytes) -> Presence:
    return Presence.read(key, value)


@lru_cache(maxsize=4096)
def _result(key: str, value: bytes) -> HostResult:
    return HostResult.read(key, value)


@dataclass(frozen=True)
class Turns:
    """The two documents that decide whose turn it is, and what a commit's conditions name."""

    rollout: Rollout | None
    semaphore: Semaphore
    conditions: tuple[Unchanged, Unchanged]

    @classmethod
    def read(cls, snapshot: Snapshot) -> Self:
        """Read them. Raises UnreadableDocumentError."""
        rollout, semaphore = snapshot.value(ROLLOUT), snapshot.value(SEMAPHORE)
        return cls(
            rollout=None if rollout is None else _rollout(rollout),
            semaphore=Semaphore() if semaphore is None else Semaphore.read(SEMAPHORE, semaphore),
            conditions=(
                Unchanged(ROLLOUT, snapshot.revision_of(ROLLOUT)),
                Unchanged(SEMAPHORE, snapshot.revision_of(SEMAPHORE)),
            ),
        )

    def is_older(self, other: Turns) -> bool:
        """Return whether one of the documents was written before that of another reading."""
        pairs = zip(self.conditions, other.conditions, strict=True)
        return any(own.revision < its.revision for own, its in pairs)

    def slot_of(self, host: str) -> Holder | None:
        """Return the slot that a host holds for a deploy."""
        holder = self.semaphore.holders.get(host)
        return holder if holder and holder.purpose is Purpose.DEPLOY else None

    def hosts_with_slots(self, rollout_id: str | None) -> set[str]:
        """Return the hosts that hold a slot for a rollout: they have not passed it yet."""
        held = self.semaphore.holders.items()
        return {host for host, holder in held if rollout_id and holder.rollout_id == rollout_id}

    def lets_begin(self, holder: Holder) -> bool:
        """Return whether a deploy that was not begun yet may begin with this slot."""
        rollout = self.rollout
        return (
            rollout is not None
            and rollout.rollout_id == holder.rollout_id
            and rollout.state is RolloutState.RUNNING
        )

    def gives_up(self, holder: Holder) -> bool:
        """Return whether a deploy that has not switched yet is to be given up."""
        rollout = self.rollout
        return (
            rollout is None
            or rollout.rollout_id != holder.rollout_id
            or rollout.state is RolloutState.ABORTED
        )


@dataclass(frozen=True)
class Situation:
    """All that a turn depends on, as of one revision."""

    turns: Turns
    results: Mapping[str, HostResult]
    """By host, of the present rollout, or of the slot that is given back."""
    members: frozenset[str]
    presences: Mapping[str, Presence]

    @classmethod
    def read(cls, snapshot: Snapshot, rollout_id: str | None = None) -> Self:
        """Read it from all that is under `ALL`; the results are by default the present rollout's.

        Raises UnreadableDocumentError.
        """
        turns = Turns.read(snapshot)
        if rollout_id is None and turns.rollout is not None:
            rollout_id = turns.rollout.rollout_id
        results = result_key(rollout_id or "", "")
        return cls(
            turns=turns,
            results={
                entry.key.removeprefix(results): _result(entry.key, entry.value)
                for entry in snapshot.entries
                if entry.key.startswith(results)
            },
            members=frozenset(
                entry.key.removeprefix(HOSTS)
                for entry in snapshot.entries
                if entry.key.startswith(HOSTS)
            ),
            presences={
                entry.key.removeprefix(PRESENT): _presence(entry.key, entry.value)
                for entry in snapshot.entries
                if entry.key.startswith(PRESENT)
            },
        )

    def has_passed(self, host: str) -> bool:
        """Return whether nothing has to be waited for of a host: it passed, or was forgotten."""
        result = self.results.get(host)
        return host not in self.members or (result is not None and result.state is HostState.PASSED)

    def last_deploy_failed(self, host: str) -> bool:
        """Return whether a host that shows signs of life has a failed last deploy."""
        presence = self.presences.get(host)
        last = presence.last_deploy if presence else None
        return last is not None and last.result in FAILURES

    def failed_last(self, host: str) -> bool:
        """Return whether the last that a host did failed: its deploy, or its part in a rollout.

        The result is known at once, and the host may not have announced its deploy yet.
        """
        result = self.results.get(host)
        has_failed = result is not None and result.state is HostState.FAILED
        return has_failed or self.last_deploy_failed(host)

    @cached_property
    def waiting(self) -> list[str]:
        """The hosts that may take a slot next, in their order; those to be tried alone, if any."""
        rollout = self.turns.rollout
        waiting = [
            host
            for host in (rollout.order if rollout else ())
            if host in self.members
            and host not in self.results
            and host not in self.turns.semaphore.holders
        ]
        tried = set(self.tried)
        return [host for host in waiting if host in tried] if tried else waiting

    @cached_property
    def tried(self) -> list[str]:
        """The excused hosts of the present wave and those before it that have not passed yet."""
        rollout = self.turns.rollout
        if rollout is None:
            return []
        left = {host for host in rollout.excused if not self.has_passed(host)}
        place = next(
            (place for place, host in enumerate(rollout.order) if not self.has_passed(host)), 0
        )
        end = next(end for end in rollout.wave_ends if end > place)
        return [host for host in rollout.order[:end] if host in left]
