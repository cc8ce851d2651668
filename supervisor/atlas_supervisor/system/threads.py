"""Blocking work in threads, and in the event loop where the machine has no room for a thread.

What a service may have of processes is bounded (TasksMax, pids.max, ulimit -u), and threads count.
A worker that leaks either takes the room from the daemon as well, which has to go on all the same:
it is what restarts that worker, and on the relay plane all traffic goes through it. A pause of the
event loop is the lesser harm.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread
import structlog

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.system.clock import Stopwatch

log = structlog.get_logger(__name__)

_REPORT_SECONDS = 60.0
NO_ROOM = "no room for another process or thread (TasksMax, pids.max or ulimit -u)"

_NO_THREAD = "can't start new thread"
"""What Python says; there is no class of its own for it."""

_NEEDED = 4
"""So many threads a daemon has from its start on: for its logs, the database, and one for work."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def refuse_without_room() -> None:
    """Raise StartRefusedError where the daemon could not even start its own threads."""
    done, started = threading.Event(), list[threading.Thread]()
    try:
        for _ in range(_NEEDED):
            thread = threading.Thread(target=done.wait)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise StartRefusedError(f"there is {NO_ROOM}") from error
    finally:
        done.set()
        for each in started:
            each.join()


class _Shortage:
    def __init__(self) -> None:
        self._reported: Stopwatch | None = None

    def report(self) -> None:
        """Log it, at most once a minute: there may be hundreds of calls."""
        if self._reported is None or self._reported.seconds > _REPORT_SECONDS:
            self._reported = Stopwatch()
            log.error("threads_exhausted", why=NO_ROOM)


_SHORTAGE = _Shortage()


async def in_thread(
    work: Callable[[Unpack[Ts]], T],
    *arguments: *Ts,
    limiter: anyio.CapacityLimiter | None = None,
) -> T:
    """Run `work` in a thread, or here if none can be started, and return its result."""
    try:
        return await anyio.to_thread.run_sync(work, *arguments, limiter=limiter)
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
    _SHORTAGE.report()
    return work(*arguments)
