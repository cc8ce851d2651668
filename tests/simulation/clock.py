"""Virtual time: what happens next happens at once, and in the same order every time.

`Timeline` is the one clock, and holds what happens outside of a daemon. `VirtualLoop` is an event
loop that runs on it: when a loop has nothing to do, the clock jumps to its next timer or to the
world's next event, the earlier of both. There are no threads, and no descriptor is waited for.

The order in which asyncio and anyio go through sets of tasks and scopes depends on addresses. Here
it depends on the order in which they were made.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, tzinfo
from typing import Any
from unittest.mock import patch

from anyio._backends import _asyncio as backend

from atlas_supervisor.canary import evidence
from atlas_supervisor.system import clock

BEGAN = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
"""The wall clock's time when every story begins."""

_BUSY_LIMIT = 20_000
"""Rounds of a loop without any time passing: more is a loop that never rests."""


class KilledError(BaseException):
    """The daemon got a SIGKILL: nothing of it runs any more."""


class HaltedError(Exception):
    """The loop waits for what never comes, or never rests."""


class Timeline:
    """The clock, and what happens by itself."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wall = BEGAN
        """The wall clock's time at the beginning; it can be set."""
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, event: Callable[[], object]) -> None:
        """Let this happen then."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), event))

    @property
    def next(self) -> float:
        """When the next event is due."""
        return self._events[0][0] if self._events else float("inf")

    def advance(self, until: float) -> None:
        """Go to this time, or to the first event before it, and let that happen."""
        if self.next > until:
            self.now = until
            return
        moment, _, event = heapq.heappop(self._events)
        self.now = max(self.now, moment)
        event()

    def pass_time(self, seconds: float) -> None:
        """Let everything happen until then; no daemon runs meanwhile."""
        until = self.now + seconds
        while self.now < until:
            self.advance(until)


class _Task(asyncio.Task[Any]):
    """A task whose place in a set depends on nothing but its number."""

    numbers = itertools.count()

    def __init__(self, coro: Coroutine[Any, Any, Any] | Generator[Any], **options: Any) -> None:
        self._number = next(_Task.numbers)
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.BaseEventLoop):
    """The event loop of one daemon."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self._timeline = timeline
        self._selector = self  # which is asked for what happens outside
        self._clock_resolution = 1e-7
        self._rounds_left: int | None = None
        self._busy = (0.0, 0)
        self.killed = False
        self.set_task_factory(lambda _loop, coro, **options: _Task(coro, loop=_loop, **options))

    def time(self) -> float:
        return self._timeline.now

    def kill_after(self, rounds: int) -> None:
        """Kill the daemon after so many more rounds of the loop."""
        self._rounds_left = rounds

    def select(self, timeout: float | None) -> list[Any]:
        """Let time pass until something happens, `timeout` seconds at most."""
        until = float("inf") if timeout is None else self._timeline.now + timeout
        if until == self._timeline.next == float("inf"):
            raise HaltedError("nothing can happen any more")
        if timeout != 0 or self._timeline.next <= self._timeline.now:
            self._timeline.advance(until)
        return []

    def _process_events(self, _events: list[Any]) -> None:
        """Do nothing: no descriptor is waited for."""

    def _write_to_self(self) -> None:
        """Do nothing: there is no other thread."""

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]  # asyncio's own, which typeshed leaves out
        moment, rounds = self._busy
        self._busy = (moment, rounds + 1) if moment == self.time() else (self.time(), 0)
        if rounds > _BUSY_LIMIT:
            raise HaltedError("the daemon never rests")
        if self._rounds_left is not None:
            self._rounds_left -= 1
            self.killed = self.killed or self._rounds_left <= 0
        if self.killed:
            raise KilledError

    def discard(self) -> None:
        """Drop every task without letting any of them do something."""
        self.killed = True
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # an attribute in C
            for _ in range(50):  # a coroutine that goes on waiting while it is closed
                with suppress(BaseException):
                    coroutine: Any = task.get_coro()
                    coroutine.close()
                    break
        self._ready.clear()  # type: ignore[attr-defined]  # asyncio's own
        self._scheduled.clear()  # type: ignore[attr-defined]  # as above
        self.close()


class _Time:
    """What the modules of the daemon use of `time`."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def monotonic(self) -> float:
        return self._timeline.now

    def time(self) -> float:
        return self._timeline.wall + self._timeline.now

    def clock_gettime(self, _clock: int) -> float:
        return self._timeline.now


class _Datetime:
    """What `system.clock` uses of `datetime`."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def now(self, zone: tzinfo) -> datetime:
        return datetime.fromtimestamp(self._timeline.wall + self._timeline.now, zone)


@contextmanager
def virtual(timeline: Timeline) -> Iterator[None]:
    """Let the daemon's modules go by this clock while the context lasts."""
    _Task.numbers = itertools.count()
    with (
        patch.object(clock, "time", _Time(timeline)),
        patch.object(clock, "datetime", _Datetime(timeline)),
        patch.object(clock, "_STARTED_AT", BEGAN),
        patch.object(evidence, "time", _Time(timeline)),
        # All in one place of a set: then they stay in their order.
        patch.object(backend.CancelScope, "__hash__", lambda _scope: 0),
    ):
        yield
