"""The role of this instance, from the state file, and whether new connections are held.

A thread checks the file every 50 ms, so that the server's own threads and event loop never touch
the disk for it, under asyncio and under threads alike. The file is replaced atomically; one that
can't be read or parsed leaves the role as it was.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

POLL_SECONDS = 0.05


class InstanceRole(StrEnum):
    """The role of an instance. `UNKNOWN`: there is no state file yet, or no supervisor."""

    UNKNOWN = "unknown"
    STAGING = "staging"
    ACTIVE = "active"
    RETIRED = "retired"
    HELD_BACK = "held_back"
    """Not active any more, and still with a share of the new connections."""


_NEVER_ACTIVE = (InstanceRole.UNKNOWN, InstanceRole.STAGING)


def next_role(
    role: InstanceRole, *, own_port: int, active_port: int, shared: bool = False
) -> InstanceRole:
    """Return the role for the active port in the state file, and whether staging has a share."""
    if active_port == own_port:
        return InstanceRole.ACTIVE
    if role in _NEVER_ACTIVE:
        return InstanceRole.STAGING
    return InstanceRole.HELD_BACK if shared else InstanceRole.RETIRED


class RoleWatcher:
    """Follows the state file, and calls `on_change` in its thread when something changes.

    It gets the role, and whether connections are to be announced closed because new ones are held.
    """

    def __init__(
        self, state_file: Path, own_port: int, on_change: Callable[[InstanceRole, bool], object]
    ) -> None:
        self.role = InstanceRole.UNKNOWN
        self.held = False
        self._state_file = state_file
        self._own_port = own_port
        self._on_change = on_change
        self._seen: tuple[int, int, int] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="atlas-role", daemon=True)

    def start(self) -> None:
        """Read the file in the caller's thread, then follow it until `stop`."""
        self.check()
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns once it has ended."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def check(self) -> None:
        """Read the file if it has changed, and report a change of the role."""
        try:
            stat = os.stat(self._state_file)  # noqa: PTH116 - every 50 ms: the plain call is cheaper
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if seen == self._seen:
                return
            state = json.loads(self._state_file.read_bytes())
            active_port, shared = state["active_port"], bool(state.get("staging_weight"))
            held = state.get("announce_close") is True
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return
        if type(active_port) is not int:  # a bool is an int to isinstance
            return
        self._seen = seen
        role = next_role(self.role, own_port=self._own_port, active_port=active_port, shared=shared)
        if (role, held) != (self.role, self.held):
            self.role, self.held = role, held
            self._on_change(role, held)

    def _follow(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            self.check()
