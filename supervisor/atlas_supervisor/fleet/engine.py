"""What a fleet asks of the engine that it agrees in: compare-and-set, reads, watches, presence.

The interface is narrow so that its promises can be listed. Reads are linearizable: an answer is
never older than the question. A commit is atomic over all of its keys. A watch loses no change,
or says that it has to begin anew. `etcd` fulfils it; the simulation of a fleet plays it.

What a host may ask for, so that a thousand of them are no load (`./scripts/bench fleet`):

    watches      single keys that change rarely, such as `kill` and `rollout`; a key that each host
                 writes, such as `semaphore`, by a few hosts at a time, for a thousand hosts are
                 otherwise a million events
    each second  one key read, the kill switch's
    each 6 s     its own key kept alive, and written only if it has changed
    whole reads  (of all hosts, of all results) by the one host whose turn it is, and by an
                 operator's question; never by every host at each change
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from atlas_supervisor.errors import AtlasError


class EngineError(AtlasError):
    """The engine did not answer that it did what was asked; it may have done it."""


class EngineUnavailableError(EngineError):
    """The engine can't be reached, has no leader, or did not answer in time."""


class GarbledAnswerError(EngineError):
    """An endpoint answers what no engine answers. Nothing is decided by it."""


class RefusedByEngineError(EngineError):
    """The engine refuses a request and did nothing, for example because permission is missing."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
        """The gRPC code."""


class Outage(NamedTuple):
    """Since when, and why, the engine does not do what it is asked."""

    since_ts: datetime
    reason: str


@dataclass(frozen=True)
class Entry:
    """A key with its value. `revision` is the store's revision at which it was last written."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True)
class Snapshot:
    """Entries under a prefix, in order of their keys, all as of one revision of the store."""

    revision: int
    entries: tuple[Entry, ...]

    def value(self, key: str) -> bytes | None:
        """Return the value of a key; None if it is absent."""
        return next((entry.value for entry in self.entries if entry.key == key), None)

    def revision_of(self, key: str) -> int:
        """Return the revision at which a key was last written; 0 if it is absent."""
        return next((entry.revision for entry in self.entries if entry.key == key), 0)


NOTHING = Snapshot(0, ())


@dataclass(frozen=True)
class Unchanged:
    """A condition of a commit: the key still has this revision (0: it is absent)."""

    key: str
    revision: int


@dataclass(frozen=True)
class Put:
    """A write of a commit."""

    key: str
    value: bytes


@dataclass(frozen=True)
class Delete:
    """A removal in a commit."""

    key: str


@dataclass(frozen=True)
class Changes:
    """Entries that changed, and keys that were removed, up to a revision of the store.

    Of a key that was written several times meanwhile it has the last value.
    `anew`: it is a whole snapshot, because changes before it may be missing (the first of a watch,
    or the first after the store's history was compacted). What is not in it is not there.
    """

    revision: int
    entries: tuple[Entry, ...]
    removed: tuple[str, ...] = ()
    anew: bool = False


class Engine(Protocol):
    """An engine, with every key relative to the fleet's prefix."""

    @property
    def outage(self) -> Outage | None:
        """Since when the engine is away, and why; None while it does what it is asked."""
        ...

    async def read(self, *prefixes: str) -> Snapshot:
        """Return all entries under the prefixes, linearizably and as of one revision.

        Raises EngineError.
        """
        ...

    async def read_again(self, earlier: Snapshot, *prefixes: str) -> Snapshot:
        """Read the same as in an earlier answer; only changes since then are sent.

        Raises EngineError. If the store was restored from a backup, it may have what was there
        before: compare it with a read.
        """
        ...

    async def count(self, prefix: str) -> int:
        """Return how many keys have the prefix, linearizably. Raises EngineError."""
        ...

    async def commit(self, conditions: Sequence[Unchanged], *writes: Put | Delete) -> int | None:
        """Do all writes if all conditions hold; return the revision, or None if one did not hold.

        Raises EngineError. After EngineUnavailableError they may have been done, or may be done
        later, even after another commit: so conditions are needed if that would do harm.
        """
        ...

    def watch(self, prefix: str) -> AsyncGenerator[Changes, None]:
        """Yield a snapshot and then every change under a prefix, until it is closed.

        Reconnects by itself, from the revision after the last change, and raises nothing: while
        there is nothing to yield, `outage` says why. Close it (`aclosing`) when done.
        """
        ...

    async def claim(
        self, key: str, value: bytes, *, revision: int, ttl_seconds: float
    ) -> int | None:
        """Write a key that goes away by itself, if it still has this revision (0: it is absent).

        Return its new revision, or None if it did not have the one that was named. It stays for
        half of its time at least, and as long as `keep` is called. Raises EngineError, and
        then it is open whether it was written.
        """
        ...

    async def keep(self, *, ttl_seconds: float) -> bool:
        """Keep all keys with this time to live that this process has claimed.

        Return False if they are gone: then they are to be claimed again. Raises EngineError.
        """
        ...
