"""Processes that the kernel gives us as children: descendants whose own parents have ended.

The daemon is a subreaper, so a worker's process that is forked twice to run on its own becomes a
child of the daemon, and not of pid 1. In a container the daemon often is pid 1, and gets every
process without a parent. None of them is waited for elsewhere, so they are reaped here.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import anyio
import structlog

from atlas_supervisor.system import procfs
from atlas_supervisor.system.clock import Stopwatch

log = structlog.get_logger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_SECONDS = 1.0
_OWN_SECONDS = 3.0
"""A child that we have started is reaped by the code that waits for it, much sooner than this."""


def become_subreaper() -> None:
    """Become the parent of all descendants that lose theirs; without it pid 1 would."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        log.warning("subreaper_unavailable", why=os.strerror(ctypes.get_errno()))


class Reaper:
    """Reaps the children that we have not started."""

    def __init__(self) -> None:
        self._zombies: dict[tuple[int, int], Stopwatch] = {}
        """Zombies that may be our own children, by pid and start, since they were first seen."""

    async def run(self) -> None:
        """Reap until cancelled."""
        while True:
            try:
                self.reap()
            except OSError as error:  # no descriptor is left: they wait
                log.warning("children_unknown", why=str(error))
            await anyio.sleep(_LOOK_SECONDS)

    def reap(self) -> None:
        """Reap the adopted children that have ended."""
        ours, before, self._zombies = os.getsid(0), self._zombies, {}
        for pid in procfs.children(os.getpid()):
            identity = procfs.zombie(pid)
            if identity is None:
                continue
            # What we start is in our session, or leads one of its own.
            if identity.session in {ours, pid}:
                key = (pid, identity.start_ticks)
                self._zombies[key] = before.get(key) or Stopwatch()
                if self._zombies[key].seconds < _OWN_SECONDS:
                    continue
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def living_children() -> list[int]:
    """Return our children that have not ended."""
    children = procfs.children(os.getpid())
    return [pid for pid in children if procfs.zombie(pid) is None and procfs.start_ticks(pid)]
