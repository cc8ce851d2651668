"""Ends the wait of clients while no worker can serve.

Connections wait while a worker restarts, which none of them notices. A worker that does not come
up again would let them wait without an end: after `READY_TIMEOUT_SECONDS` the daemon answers them
with 503 (over TLS it can only close them), and new ones likewise. As soon as a worker is ready it
gets the next connection.
"""

from __future__ import annotations

import asyncio

import structlog

from atlas_supervisor.config import Settings
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.traffic import Plane
from atlas_supervisor.traffic.refusal import Refusal

log = structlog.get_logger(__name__)

_BODY = b"No worker can answer at the moment. Try again later.\n"
_RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nConnection: close\r\n"
    b"Cache-Control: no-store\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b"
) % (len(_BODY), _BODY)


class Outage:
    """Notices that no worker can serve for too long, and that one can again."""

    def __init__(self, plane: Plane, settings: Settings) -> None:
        self._plane = plane
        self._patience = settings.ready_timeout_seconds
        self._refusal = Refusal(b"" if settings.health_scheme == "https" else _RESPONSE)
        self._timer: asyncio.TimerHandle | None = None
        self.noted = False
        """Whether the last note was that no worker can serve."""
        self.refusing: SlotName | None = None
        """The slot whose clients are refused."""
        self._launching = False

    def note(self, active: SlotName, *, can_serve: bool, launching: bool = False) -> None:
        """Note whether the active worker can serve, or is being launched.

        To be called whenever that may have changed.
        """
        self.noted, self._launching = not can_serve, launching
        if self.refusing is not None and (can_serve or self.refusing is not active):
            self._plane.admit(self.refusing)
            self.refusing = None
            log.info("clients_admitted", slot=active)
        if can_serve:
            self.stop()
        elif self.refusing is not None:
            self._plane.refuse(active, self._refusal, launching)
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._patience, self._begin, active)

    def stop(self) -> None:
        """Let it not begin."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, active: SlotName) -> None:
        self._timer, self.refusing = None, active
        log.critical("clients_refused", slot=active, waited_seconds=self._patience)
        self._plane.refuse(active, self._refusal, self._launching)
