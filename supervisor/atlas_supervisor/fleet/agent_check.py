"""Answers HAProxy's agent-check: whether this host takes requests, and how many of them.

HAProxy connects every second or two, reads one line and applies it. A word that a line leaves out
keeps its last value, and only the agent can undo its own words, so each line has the operating
state, the administrative state and the weight:

    up ready 100%                   an active worker serves
    up ready 50%                    the same, while a deploy ramps
    up drain 0% #REASON             finish what is in progress, send nothing new
    down #REASON                    no worker serves

Silence changes nothing. That is what makes a killed daemon harmless: its workers go on serving, and
HAProxy's own health check, which asks them, stays the judge.

Draining is of use only if HAProxy learns of it before the host stops serving. `drained` waits for
that: the daemon before it stops its workers, and FleetLock before it allows a reboot.

A ramp halves the weight, because two versions share the machine then, the new one with cold caches,
and because the requests that a bad version may spoil are halved with it. The price is that a step's
least number of requests takes twice as long.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from atlas_supervisor.fleet.listening import accepting

RAMP_WEIGHT = 50
"""Percent of its configured weight that a host has while a deploy ramps."""

LEARN_SECONDS = 3.0
"""How long HAProxy may take to ask again, and to send the requests that it has assigned.

The configuration in docs/how-to/haproxy.md asks every second, HAProxy's default is every two.
"""
_ASKS_SECONDS = 10.0
"""A balancer that has not asked for so long does not count on an answer."""


def reply(*, serves: bool, drains: str, ramps: bool) -> bytes:
    """Return the line for HAProxy; `drains` is why the host drains, or empty."""
    if not serves:
        state = "down #no worker serves"
    elif drains:
        state = f"up drain 0% #{drains}"
    else:
        state = f"up ready {RAMP_WEIGHT if ramps else 100}%"
    return f"{state}\n".encode()


class AgentCheck:
    """Answers on one listening socket."""

    def __init__(
        self,
        listener: socket.socket | None,
        *,
        serves: Callable[[], bool],
        ramps: Callable[[], bool],
        reboots: Callable[[], bool],
    ) -> None:
        """`reboots` returns whether this host holds a slot for its reboot.

        Without a listener it answers nothing, and no drain takes any time.
        """
        self._listener = listener
        self._serves = serves
        self._ramps = ramps
        self._reboots = reboots
        self._stopping = False
        self._asked = float("-inf")
        self._draining_since: float | None = None
        """When an answer said so for the first time."""

    async def run(self) -> None:
        """Answer until cancelled."""
        if self._listener is None:
            return
        async with accepting(self._listener, self._answer):
            await asyncio.Event().wait()

    def _answer(self, client: socket.socket) -> None:
        self._asked = asyncio.get_running_loop().time()
        drains = self._why_drains()
        self._draining_since = (self._draining_since or self._asked) if drains else None
        line = reply(serves=self._serves(), drains=drains, ramps=self._ramps())
        with client, suppress(OSError):
            client.send(line)  # a fresh connection has room for it

    def _why_drains(self) -> str:
        if self._stopping:
            return "the supervisor stops"
        return "the host holds a slot for its reboot" if self._reboots() else ""

    async def stop(self) -> None:
        """Drain for good, and return once balancers have had the time to learn of it."""
        self._stopping = True
        await self.drained()

    async def drained(self) -> None:
        """Wait until balancers that ask have learned of a drain; not at all if none asks."""
        now = asyncio.get_running_loop().time()
        if now - self._asked < _ASKS_SECONDS:
            await asyncio.sleep((self._draining_since or now) + LEARN_SECONDS - now)
