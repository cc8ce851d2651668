"""What a host knows of a rollout without asking for it: its document, and how far it has come.

    the rollout's document    each host watches it
    the semaphore             hosts whose turn is near watch it, others read it now and then

The semaphore changes with each slot that is taken or given back. If each of a thousand hosts
watched it, a rollout over them would be two million events. A host whose turn is far needs no more
of it than how many have begun, to notice when its turn is near.

A host that may take a slot looks closely, which costs a read of all hosts and results. If several
may at the same time, each leaves some time to those before it, because each commit makes the looks
of the others vain. The first leaves none, and once it has its slot, the next is the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import anyio
import structlog

from atlas_supervisor.fleet.documents import (
    ROLLOUT,
    SEMAPHORE,
    Rollout,
    UnreadableDocumentError,
)
from atlas_supervisor.fleet.engine import Changes, Engine, EngineError, Entry, Snapshot
from atlas_supervisor.fleet.semaphore import free_slots
from atlas_supervisor.fleet.situation import Situation, Turns
from atlas_supervisor.fleet.turn import (
    OPEN,
    is_far,
    places_behind,
    reached,
    reason_to_stay,
    reason_to_wait,
)
from atlas_supervisor.system.clock import jittered

log = structlog.get_logger(__name__)

_LEFT_SECONDS_PER_HOST = 1e-3
"""How long a host leaves to each one before it, for each host of the fleet."""


@dataclass(frozen=True)
class Pace:
    """How often a host looks, in seconds. What it watches is besides."""

    near: float = 2.0
    """Closely, while its turn may have come, while it uses a slot, and while the engine is away. In
    a fleet of more than four hundred hosts it is longer by as much."""
    glance: float = 10.0
    """At the semaphore, while its turn is far."""
    far: float = 30.0
    """Closely otherwise, as a remedy for all that a watch may miss."""
    far_per_host: float = 2.0
    """It is as much longer in a large fleet: one of its hosts looks closely each two seconds."""
    near_hosts: int = 20
    """A turn is near for so many hosts more than there are slots."""


class Waiting(NamedTuple):
    """Why a host waits, and for how many seconds if nothing changes."""

    reason: str
    seconds: float


class TurnWatch:
    """Follows a rollout for one host, and notes what its close looks have found."""

    def __init__(self, engine: Engine, host: str, pace: Pace) -> None:
        self._engine = engine
        self._host = host
        self._pace = pace
        self._entries: dict[str, Entry | None] = {}
        """What stands under the keys that are known; None if it is nothing."""
        self._turns: Turns | None = None
        """The same, if it was parsed since the last change."""
        self._rollout_id = ""
        self._revision = 0
        """Of the rollout's document."""
        self._begun = 0
        """How many hosts of the order have begun, so far as it is known."""
        self._hosts = 0
        self._stays: str | None = None
        """Why the host has no part in the rollout any more, or yet."""
        self._uses_slot = False
        self._turn: tuple[int, float] | None = None
        """How many had begun when a slot was free for this host, and since when."""
        self.changed = anyio.Event()
        """Set when something changes that was followed."""
        self._moved = anyio.Event()
        """Set when the host's turn may be nearer or farther than before."""

    async def run(self) -> None:
        """Follow the rollout until this is cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, ROLLOUT)
            tasks.start_soon(self._follow_semaphore)

    async def _watch(self, key: str) -> None:
        while True:
            try:
                async with aclosing(self._engine.watch(key)) as watch:
                    async for changes in watch:
                        self._keep(key, changes)
            except EngineError as error:
                log.warning("fleet_watch_ended", why=str(error))
            await anyio.sleep(jittered(self._pace.near))

    async def _follow_semaphore(self) -> None:
        """Watch the semaphore while the host's turn is near, and read it while it is far."""
        while True:
            if self._is_near():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch, SEMAPHORE)
                    while self._is_near():
                        await self._moved.wait()
                    tasks.cancel_scope.cancel()
            elif self._waits():
                with suppress(EngineError):
                    snapshot = await self._engine.read(SEMAPHORE)
                    self._keep(SEMAPHORE, Changes(snapshot.revision, snapshot.entries, anew=True))
                moved = self._moved
                with anyio.move_on_after(jittered(self._pace.glance)):
                    while self._waits() and not self._is_near():
                        await moved.wait()
                        moved = self._moved
            else:
                self._entries.pop(SEMAPHORE, None)  # it grows old, with this host's slot in it
                self._turns = None
                await self._moved.wait()

    def _keep(self, key: str, changes: Changes) -> None:
        found = next((entry for entry in changes.entries if entry.key == key), None)
        is_told = found is not None or changes.anew or key in changes.removed
        if not is_told or (key in self._entries and self._entries[key] == found):
            return
        self._entries[key] = found
        self._turns = None
        with suppress(EngineError):  # the host's next look raises it
            self._note(self.turns())
        self.changed.set()
        self.changed = anyio.Event()
        self._move()

    def _move(self) -> None:
        """Let it be seen again whether the host's turn is near."""
        self._moved.set()
        self._moved = anyio.Event()

    def _waits(self) -> bool:
        """Return whether the host has a turn before it, and uses no slot yet."""
        with suppress(UnreadableDocumentError):
            rollout = self.turns().rollout
            is_open = rollout is not None and rollout.state in OPEN
            return is_open and self._stays is None and not self._uses_slot
        return False

    def _is_near(self) -> bool:
        """Return whether the host's turn may come before it reads the semaphore again."""
        rollout = self.turns().rollout if self._waits() else None
        if rollout is None:
            return False
        near = rollout.max_unavailable + self._pace.near_hosts
        return not is_far(rollout, self._host, self._begun, near)

    def turns(self) -> Turns:
        """Return the documents as they are known. Raises UnreadableDocumentError.

        As long as the semaphore is not known, it is one of which no slot is held.
        """
        if self._turns is None:
            entries = [entry for entry in self._entries.values() if entry is not None]
            self._turns = Turns.read(Snapshot(0, tuple(entries)))
        return self._turns

    # What is known, for the host's looks.

    def waiting(self) -> Waiting | None:
        """Return why the host waits; None if only a close look can tell.

        Raises UnreadableDocumentError.
        """
        turns = self.turns()
        rollout = turns.rollout
        if ROLLOUT not in self._entries or turns.slot_of(self._host) is not None:
            return None
        if rollout is None or rollout.state not in OPEN:
            return Waiting("", math.inf)
        reason = self._stays
        if reason is None:
            reason = reason_to_wait(turns, self._host)
        if reason is not None:
            return Waiting(reason, math.inf)
        free = free_slots(turns.semaphore) if SEMAPHORE in self._entries else 0
        seconds = math.inf
        if not is_far(rollout, self._host, self._begun, free):
            seconds = self._seconds_for_others(rollout)
        begun = f"{self._begun} of {len(rollout.order)} hosts have begun"
        return Waiting(f"waits for its turn: {begun}", seconds) if seconds > 0 else None

    def _seconds_for_others(self, rollout: Rollout) -> float:
        """Return how long this host still leaves its turn to those that come before it."""
        now = anyio.current_time()
        if self._turn is None or self._turn[0] != self._begun:
            self._turn = (self._begun, now)
        behind = places_behind(rollout, self._host, self._begun)
        left = behind * self._hosts * _LEFT_SECONDS_PER_HOST
        return max(self._turn[1] + left - now, 0.0)

    @property
    def far_seconds(self) -> float:
        """The pause of a host that is not near."""
        return max(self._pace.far, self._pace.far_per_host * self._hosts)

    @property
    def near_seconds(self) -> float:
        """The pause of a host whose turn may have come; they are as many as slots."""
        return self._pace.near * max(self._hosts / 400, 1.0)

    # What the host finds.

    def note(self, situation: Situation) -> None:
        """Note how many have begun, and whether this host's part has ended."""
        self._note(situation.turns)
        rollout = situation.turns.rollout
        if rollout is not None:
            self._begun = max(self._begun, reached(rollout, situation.results))
            self._stays = reason_to_stay(rollout, self._host, situation)
        self._move()

    def note_passed(self, rollout_id: str) -> None:
        """Note that this host has passed, if it is still that rollout: it stays passed."""
        if rollout_id == self._rollout_id:
            self._stays = ""
            self._move()

    @contextmanager
    def using_slot(self) -> Iterator[None]:
        """Note that this host has its slot: it waits for no other one."""
        self._uses_slot = True
        self._move()
        try:
            yield
        finally:
            self._uses_slot = False
            self._move()

    def _note(self, turns: Turns) -> None:
        """Note which hosts hold slots, and forget what was another rollout's."""
        rollout, revision = turns.rollout, turns.conditions[0].revision
        if rollout is None or rollout.rollout_id != self._rollout_id:
            self._rollout_id = rollout.rollout_id if rollout else ""
            self._begun, self._stays = 0, None
        if revision != self._revision and self._stays:  # a passed host stays passed
            self._stays = None
        self._revision = revision
        if rollout is not None:
            self._hosts = len(rollout.order)
            begun = reached(rollout, turns.hosts_with_slots(rollout.rollout_id))
            self._begun = max(self._begun, begun)
