"""Tell whether this instance is the active one, from the state file that anyone may read.

A helper thread looks at the file every 50 ms, so the server's own threads and event loop never
touch the disk for it, and it works alike under asyncio and under threads. The file is replaced
atomically; what can't be read or understood leaves the last known role standing.
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
    """What this instance is for. `UNKNOWN`: no state file so far, or no supervisor at all."""

    UNKNOWN = "unknown"
    STAGING = "staging"
    ACTIVE = "active"
    RETIRED = "retired"


def next_role(role: InstanceRole, *, own_port: int, active_port: int) -> InstanceRole:
    """Return the role after the state file said which port is active."""
    if active_port == own_port:
        return InstanceRole.ACTIVE
    return (
        InstanceRole.RETIRED
        if role in (InstanceRole.ACTIVE, InstanceRole.RETIRED)
        else InstanceRole.STAGING
    )


class RoleWatcher:
    """Follows the state file and calls `on_change`, in the helper thread, when the role changes."""

    def __init__(
        self, state_file: Path, own_port: int, on_change: Callable[[InstanceRole], object]
    ) -> None:
        self.role = InstanceRole.UNKNOWN
        self._state_file = state_file
        self._own_port = own_port
        self._on_change = on_change
        self._seen: tuple[int, int, int] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="atlas-role", daemon=True)

    def start(self) -> None:
        """Look once, in the caller's thread, then follow the file until `stop`."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """End the helper thread; returns once it has ended."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Read the file if it changed, and report a change of the role."""
        try:
            stat = os.stat(self._state_file)  # noqa: PTH116 - every 50 ms: the plain call is cheaper
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if seen == self._seen:
                return
            active_port = json.loads(self._state_file.read_bytes())["active_port"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return
        if type(active_port) is not int:  # a bool is an int to isinstance
            return
        self._seen = seen
        role = next_role(self.role, own_port=self._own_port, active_port=active_port)
        if role is not self.role:
            self.role = role
            self._on_change(role)

    def _follow(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            self.look()
