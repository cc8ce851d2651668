"""What is known of a worker process that the process itself can't be asked for.

It is recorded as it changes, so that the next daemon goes on with a living worker as its own.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from atlas_supervisor.model.release import Release
from atlas_supervisor.model.socket_passing import SocketPassing


class Life(BaseModel, frozen=True):
    """An instance's life so far."""

    release: Release
    started_ts: datetime
    port: int = 0
    """Its slot's own port."""
    socket_passing: SocketPassing | None = None
    launched_with: str = ""
    """A digest of the settings that it was launched with; empty if they are unknown."""
    restarts: int = 0
    """Automatic restarts in its slot since the deploy."""
    ready: bool = False
    """Whether it has answered a request."""
    draining_ts: datetime | None = None
    """When its drain began."""
    asked_to_end: bool = False
    not_accepting: bool = False
    """Whether it has reported that it accepts nothing more."""
