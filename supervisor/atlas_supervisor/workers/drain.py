"""Instances on their way out: each from the beginning of its drain to its last descendant.

An instance that accepts nothing more needs its slot no longer. It *lingers* beside the slot's
next instance until its own connections are done or its drain time is over, so that a WebSocket
or a long download delays the end of one process and not the next deploy.
"""

from __future__ import annotations

import signal
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import anyio
import structlog

from atlas_supervisor.model.drain import DrainCounts, DrainingView
from atlas_supervisor.system.clock import Stopwatch, now
from atlas_supervisor.workers.process import WorkerProcess

log = structlog.get_logger(__name__)

LINGERING_LIMIT = 4
"""With those in the two slots, six processes of an application: what a machine must have memory
for. It lets a deploy follow every few seconds while each version before has a slow client."""

_IN_ORDER = frozenset({0, -signal.SIGTERM, 128 + signal.SIGTERM})
"""Exit statuses of a program that was told to end, and did."""

_NAMES = {"requests": "request", "websockets": "WebSocket", "event_streams": "event stream"}


class Drain:
    """One instance's drain. `seconds` is the time that its connections have, in all."""

    def __init__(self, instance: WorkerProcess, ports: Collection[int], seconds: float) -> None:
        self.instance = instance
        self.ports = ports
        self.leaves_alone = False
        """Whether it accepts nothing more, and is seen off by a task of its own."""
        self.lingers = False
        """Whether it has left its slot to the next instance."""
        self.stays = False
        """Whether it keeps its slot until it is gone."""
        self.by_itself = False
        self.gone = anyio.Event()
        self._seconds = seconds
        self._age = Stopwatch()
        self._since_ts = now()
        self._hurried = False

    @property
    def seconds_left(self) -> float:
        """How long its connections still have."""
        return max(self._seconds - self._age.seconds, 0.0)

    def hurry(self) -> None:
        """Tell it that its place is needed; once."""
        if not self._hurried and self.instance.hurry():
            self._hurried = True
            log.info("worker_hurried", **self.instance.facts, pid=self.instance.pid)

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
            left=instance.said.left,
            connections=instance.connected,
        )

    def story(self) -> dict[str, Any]:
        """Return how it went, once it is gone: for the record of the deploy."""
        return {
            "message": f"{self.instance.slot} {self._how()}",
            "by_itself": self.by_itself,
            **counts(self.instance),
        }

    def _how(self) -> str:
        said, instance = self.instance.said, self.instance
        took = f"after {self._age.seconds:.1f} s"
        if not self.by_itself:
            still = in_words(said.cut or said.left)
            return f"had to be killed {took}" + (f"; it still had {still}" if still else "")
        if instance.kit and instance.exit_status not in _IN_ORDER:
            return f"did not finish: it {instance.exit_text} {took}"
        if said.most is None and said.cut is None:
            return f"finished by itself {took}"
        told = in_words(said.most and said.most.model_copy(update={"requests": 0}))
        cut = in_words(said.cut)
        end = f"cut off at the deadline of {self._seconds:g} s: {cut}" if cut else "nothing was cut"
        return f"left {took}: " + (f"told to go: {told}; {end}" if told else end)


def counts(instance: WorkerProcess) -> dict[str, Any]:
    """Return what it says that it still has, and what it has cut; None where it has not said."""
    left, cut = instance.said.left, instance.said.cut
    return {"left": left and left.model_dump(), "cut": cut and cut.model_dump()}


def in_words(left: DrainCounts | None) -> str:
    """Return what is not idle as a person would say it; empty if that is nothing."""
    found = [
        f"{count} {_NAMES[kind]}{'' if count == 1 else 's'}"
        for kind, count in (left or ())
        if kind in _NAMES and count
    ]
    return " and ".join(filter(None, (", ".join(found[:-1]), *found[-1:])))


class Drains:
    """All departures of the daemon, in the order in which they began."""

    def __init__(self) -> None:
        self._all: list[Drain] = []
        self._changed = anyio.Event()
        self._someone_waits = False

    def begin(self, departure: Drain) -> Drain:
        """Note that an instance's drain has begun."""
        self._all.append(departure)
        return departure

    def end(self, departure: Drain) -> None:
        """Note that it is gone; does nothing a second time."""
        if departure in self._all:
            self._all.remove(departure)
            departure.gone.set()
            self._changed.set()
            self._changed = anyio.Event()

    def views(self) -> list[DrainingView]:
        """Return all of them as the status shows them, from memory."""
        return [departure.view() for departure in self._all]

    async def linger(self, departure: Drain) -> bool:
        """Wait until one more may linger, and let it; false if it went before that."""
        self._someone_waits = True
        try:
            while len(self._lingering()) >= LINGERING_LIMIT and not departure.gone.is_set():
                await self._changed.wait()
        finally:
            self._someone_waits = False
        departure.lingers = not departure.gone.is_set()
        return departure.lingers

    def hurry(self) -> None:
        """Tell whoever is in the way to hurry: those that keep a slot, else the oldest."""
        for departure in self._all:
            if departure.stays:
                departure.hurry()
        if self._someone_waits and (lingering := self._lingering()):
            lingering[0].hurry()

    async def all_gone(self) -> None:
        """Wait until nobody is seen off any more; each has its own deadline."""
        while any(departure.leaves_alone for departure in self._all):
            await self._changed.wait()

    def _lingering(self) -> list[Drain]:
        return [departure for departure in self._all if departure.lingers]
