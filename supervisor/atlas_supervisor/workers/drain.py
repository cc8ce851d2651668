"""The drain: how a worker that has lost the traffic finishes its connections and ends.

What always holds:
- No new connection is steered to a slot whose worker drains. But a handshake that began before
  the switch still ends in its queue, so the worker goes on accepting until the queue has been
  empty for SETTLE_SECONDS.
- Nothing that the worker has accepted is cut off before its deadline, `DRAIN_TIMEOUT_SECONDS`
  after the drain began, unless the next deploy needs the slot and the worker is hurried.
- Each drain ends: after the deadline the worker has `STOP_TIMEOUT_SECONDS` to exit, then it and
  its descendants are killed.
- A slot is reported free once per drain, and only when no process of that drain will accept from
  the slot's sockets again.

The order (`Slot.drain` performs it):
1. Settle: wait for the empty queue. A worker without the kit may cut answers off on SIGTERM, so
   for it also wait until all is answered: the relay knows where an answer ends, and on other
   connections the kernel shows for how long they were silent (`DRAIN_QUIET_SECONDS`).
2. SIGTERM, or without the kit `STOP_SIGNAL`. A worker with the kit reports when it accepts nothing
   more.
3. If it does, and its sockets were inherited, it *lingers*: its queue goes to the other slot, its
   own slot is free for the next launch, and it ends in a task of its own. A WebSocket or a long
   download then delays the end of one process, and not the next deploy. At most LINGERING_LIMIT
   linger; one more keeps its slot until there is room.
   Otherwise it keeps its slot until it has ended: there is no telling when it stops accepting, or
   whose listener is on a port that it binds itself.
4. Wait for its connections, for its exit, then kill what is left.

When the next deploy waits for the slot, `Drains.hurry` bounds step 1 to HURRY_SECONDS, and sends a
second SIGTERM (close your streams now) to those that keep a slot or, if there is no room, to the
oldest that lingers.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Any

import anyio
import structlog

from atlas_supervisor.model.drain import DrainCounts, DrainingView
from atlas_supervisor.system.clock import Stopwatch, now
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.process import WorkerProcess

log = structlog.get_logger(__name__)

SETTLE_SECONDS = 0.25
"""How long a queue must stay empty: a handshake that began before a flip still ends in it."""

HURRY_SECONDS = 1.0
"""How much longer a foreign worker's answers are waited for once the next deploy has started."""

LINGERING_LIMIT = 4
"""With those in the two slots, six processes of an application: what a machine must have memory
for. It lets a deploy follow every few seconds while each version before has a slow client."""

_POLL_SECONDS = 0.02

_ORDERLY = frozenset({0, -signal.SIGTERM, 128 + signal.SIGTERM, None})
"""Exit statuses of a program that ended as asked, or of which that is unknown."""

_NAMES = {"requests": "request", "websockets": "WebSocket", "event_streams": "event stream"}


class Drain:
    """One worker's drain. Its connections have `seconds` in all."""

    def __init__(
        self,
        instance: WorkerProcess,
        ports: Collection[int],
        seconds: float,
        quiet_seconds: float = 1.0,
    ) -> None:
        self.instance = instance
        self.ports = ports
        self.detached = False
        """Whether it accepts nothing more, and a task of its own ends it."""
        self.lingers = False
        """Whether it has left its slot to the next worker."""
        self.keeps_slot = False
        """Whether it keeps its slot until it has ended."""
        self.by_itself = False
        self.gone = anyio.Event()
        self._seconds = seconds
        self._quiet_seconds = quiet_seconds
        if instance.life.draining_ts is None:  # else an earlier daemon began it
            instance.note(draining_ts=now())
        self._since_ts = instance.life.draining_ts or now()
        self._age = Stopwatch.since(self._since_ts)
        self._settling: anyio.CancelScope | None = None
        self._hurried = False

    @property
    def seconds_left(self) -> float:
        """How long its connections still have."""
        return max(self._seconds - self._age.seconds, 0.0)

    async def settle(self, plane: Plane) -> None:
        """Wait until its queue stays empty and, without the kit, all its answers are given."""
        with anyio.move_on_after(self.seconds_left) as self._settling:
            quiet = Stopwatch()
            while self.instance.alive and quiet.seconds < SETTLE_SECONDS:
                if plane.queued(self.instance.slot):
                    quiet = Stopwatch()
                await anyio.sleep(_POLL_SECONDS)
            if not self.instance.kit:
                await self.instance.answered(self.ports, self._quiet_seconds, plane.answers)
        self._settling = None

    async def stops_accepting(self) -> bool:
        """Ask the worker to drain, and return whether it reports that it accepts nothing more."""
        with anyio.move_on_after(self.seconds_left):
            return await self.instance.stops_accepting(self.ports)
        return False

    def hurry_settling(self) -> None:
        """Bound the wait of `settle`: the slot is needed."""
        if self._settling is not None:
            soon = anyio.current_time() + HURRY_SECONDS
            self._settling.deadline = min(self._settling.deadline, soon)

    def hurry(self) -> None:
        """Ask the worker to close its streams now; at most once."""
        if not self._hurried and self.instance.hurry():
            self._hurried = True
            log.info("drain_shortened", **self.instance.facts, pid=self.instance.pid)

    def view(self) -> DrainingView:
        """Return it as the status shows it."""
        instance = self.instance
        return DrainingView(
            slot=instance.slot,
            instance=instance.name,
            pid=instance.pid,
            version=instance.release.version,
            since_ts=self._since_ts,
            deadline_ts=self._since_ts + timedelta(seconds=self._seconds),
            left=instance.reported.left,
            connections=instance.connected,
            **instance.usage._asdict(),
        )

    def story(self) -> dict[str, Any]:
        """Return how it went, once the worker has ended: the detail of the deploy's step."""
        return {
            "message": f"{self.instance.slot} {self._how()}",
            "by_itself": self.by_itself,
            **counts(self.instance),
        }

    def _how(self) -> str:
        reported, instance = self.instance.reported, self.instance
        took = f"after {self._age.seconds:.1f} s"
        if not self.by_itself:
            still = in_words(reported.cut or reported.left)
            return f"had to be killed {took}" + (f"; it still had {still}" if still else "")
        if instance.kit and instance.exit_status not in _ORDERLY:
            return f"did not finish: it {instance.exit_text} {took}"
        if reported.most is None and reported.cut is None:
            return f"finished by itself {took}"
        streams = in_words(reported.most and reported.most.model_copy(update={"requests": 0}))
        cut = in_words(reported.cut)
        end = f"cut off at the deadline of {self._seconds:g} s: {cut}" if cut else "nothing was cut"
        return f"left {took}: " + (f"asked to close: {streams}; {end}" if streams else end)


def counts(instance: WorkerProcess) -> dict[str, Any]:
    """Return its reports of remaining and cut connections; None without a report."""
    left, cut = instance.reported.left, instance.reported.cut
    return {"left": left and left.model_dump(), "cut": cut and cut.model_dump()}


def in_words(left: DrainCounts | None) -> str:
    """Return the counts as text, without idle connections; empty if there are no others."""
    found = [
        f"{count} {_NAMES[kind]}{'' if count == 1 else 's'}"
        for kind, count in (left or ())
        if kind in _NAMES and count
    ]
    return " and ".join(filter(None, (", ".join(found[:-1]), *found[-1:])))


class Drains:
    """All drains in progress, in the order in which they began."""

    def __init__(self) -> None:
        self._all: list[Drain] = []
        self._changed = anyio.Event()
        self._no_room = False
        """Whether one waits for room to linger."""

    def begin(self, drain: Drain) -> Drain:
        """Add a drain that has begun."""
        self._all.append(drain)
        return drain

    def end(self, drain: Drain) -> None:
        """Remove a drain whose worker has ended; does nothing a second time."""
        if drain in self._all:
            self._all.remove(drain)
            drain.gone.set()
            self._changed.set()
            self._changed = anyio.Event()

    def __iter__(self) -> Iterator[Drain]:
        """Yield the drains that there are now, oldest first."""
        yield from list(self._all)

    def views(self) -> list[DrainingView]:
        """Return all of them as the status shows them, from memory."""
        return [drain.view() for drain in self._all]

    async def linger(self, drain: Drain) -> bool:
        """Wait for room, and let the drain linger; false if its worker ended before that."""
        self._no_room = True
        try:
            while len(self._lingering()) >= LINGERING_LIMIT and not drain.gone.is_set():
                await self._changed.wait()
        finally:
            self._no_room = False
        drain.lingers = not drain.gone.is_set()
        return drain.lingers

    def hurry(self) -> None:
        """Hurry the drains that the next deploy waits for. May be called again and again."""
        for drain in self._all:
            drain.hurry_settling()
            if drain.keeps_slot:
                drain.hurry()
        if self._no_room and (lingering := self._lingering()):
            lingering[0].hurry()

    async def all_gone(self) -> None:
        """Wait for the end of every drain that has a task of its own; each has its deadline."""
        while any(drain.detached for drain in self._all):
            await self._changed.wait()

    def _lingering(self) -> list[Drain]:
        return [drain for drain in self._all if drain.lingers]
