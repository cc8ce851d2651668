"""The programs around this host that ask its supervisor: HAProxy, and agents that reboot the host.

Agent checks need no fleet: one machine behind HAProxy has a use for them too. FleetLock does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from socket import socket

import anyio

from atlas_supervisor.config import Settings
from atlas_supervisor.config.settings import FIELD_OF_KEY
from atlas_supervisor.fleet.agent_check import AgentCheck
from atlas_supervisor.fleet.engine import Engine
from atlas_supervisor.fleet.fleetlock import FleetLock
from atlas_supervisor.fleet.listening import bind
from atlas_supervisor.fleet.reboots import Reboots
from atlas_supervisor.system.passed_sockets import PassedSockets

AGENT_CHECK, FLEETLOCK = "agent-check", "fleetlock"
"""The names under which the next daemon gets their sockets at a reload."""

Listeners = Mapping[str, socket]
"""Their sockets by these names; one whose port is off is missing."""


def neighbours(settings: Settings) -> tuple[tuple[str, str, str], ...]:
    """Return the name of each socket, the key of its port, and its host.

    HAProxy may be on another machine: it asks at the address to which it sends requests.
    """
    return (
        (AGENT_CHECK, "FLEET_AGENT_PORT", str(settings.public_host)),
        (FLEETLOCK, "FLEETLOCK_PORT", "127.0.0.1"),
    )


@contextmanager
def listening(settings: Settings, passed: PassedSockets) -> Iterator[Listeners]:
    """Bind the ports, if they were not passed, and close them at the end.

    Raises StartRefusedError.
    """
    with ExitStack() as stack:
        made = {}
        for name, key, host in neighbours(settings):
            port: int = getattr(settings, FIELD_OF_KEY[key])
            sock = passed.take(name)
            if sock is not None and sock.getsockname()[:2] != (host, port):
                sock.close()
                sock = None
            if port:
                made[name] = stack.enter_context(sock or bind(key, host, port))
        yield made


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
        audit: Callable[..., object],
    ) -> None:
        """Without a fleet `engine` is None.

        The callables return whether a worker serves, a deploy ramps, a deploy is in progress;
        `audit` queues an entry of the audit trail.
        """
        self._reboots: Reboots | None = None
        self._fleetlock: FleetLock | None = None
        self._agent_check = AgentCheck(
            listeners.get(AGENT_CHECK),
            serves=serves,
            ramps=ramps,
            reboots=lambda: self._reboots is not None and self._reboots.held,
        )
        if engine is not None:
            self._reboots = Reboots(
                engine, host, deploys=deploys, drained=self._agent_check.drained, audit=audit
            )
            if FLEETLOCK in listeners:
                self._fleetlock = FleetLock(listeners[FLEETLOCK], self._reboots)

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
