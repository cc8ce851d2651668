"""The programs around this host that ask its supervisor: HAProxy, and agents that reboot the host.

Agent checks need no fleet: one machine behind HAProxy has a use for them too. FleetLock does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from socket import socket

import anyio

from atlas_supervisor.config import Settings
from atlas_supervisor.fleet.agent_check import AgentCheck
from atlas_supervisor.fleet.engine import Engine
from atlas_supervisor.fleet.fleetlock import FleetLock
from atlas_supervisor.fleet.listening import bind
from atlas_supervisor.fleet.reboots import Reboots


@dataclass(frozen=True)
class Listeners:
    """Their sockets; None where a port is off."""

    agent_check: socket | None
    fleetlock: socket | None


@contextmanager
def listening(settings: Settings) -> Iterator[Listeners]:
    """Bind them, and close them at the end. Raises StartRefusedError.

    HAProxy may be on another machine: it asks at the address to which it sends requests.
    """
    wanted = (
        ("FLEET_AGENT_PORT", str(settings.public_host), settings.fleet_agent_port),
        ("FLEETLOCK_PORT", "127.0.0.1", settings.fleetlock_port),
    )
    made: list[socket | None] = []
    try:
        for key, host, port in wanted:
            made.append(bind(key, host, port) if port else None)
        yield Listeners(*made)
    finally:
        for each in made:
            if each is not None:
                each.close()


class Neighbours:
    """Answers all of them."""

    def __init__(
        self,
        listeners: Listeners,
        engine: Engine | None,
        host: str,
        *,
        serves: Callable[[], bool],
        ramps: Callable[[], bool],
        deploys: Callable[[], bool],
    ) -> None:
        """Without a fleet `engine` is None.

        The callables return whether a worker serves, a deploy ramps, a deploy is in progress.
        """
        self._reboots: Reboots | None = None
        self._fleetlock: FleetLock | None = None
        self._agent_check = AgentCheck(
            listeners.agent_check,
            serves=serves,
            ramps=ramps,
            reboots=lambda: self._reboots is not None and self._reboots.held,
        )
        if engine is not None:
            self._reboots = Reboots(
                engine, host, deploys=deploys, drained=self._agent_check.drained
            )
            if listeners.fleetlock is not None:
                self._fleetlock = FleetLock(listeners.fleetlock, self._reboots)

    async def run(self) -> None:
        """Answer until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._agent_check.run)
            for part in (self._reboots, self._fleetlock):
                if part is not None:
                    tasks.start_soon(part.run)

    async def stop(self) -> None:
        """Drain this host for good; return once load balancers that ask have learned of it."""
        await self._agent_check.stop()
