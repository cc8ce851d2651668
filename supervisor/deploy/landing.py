"""Where does a connection to the public port really arrive? Asked after every switch.

The kernel said that it took the program; this looks at what it does. A stranger's listener that
is more specific than ours, or a group out of order, shows here and nowhere else.
"""

from __future__ import annotations

import socket
import time
from enum import StrEnum

import anyio

from supervisor import procfs, sockdiag
from supervisor.traffic.listeners import loopback_of
from supervisor.workers.instance import Instance

_ACCEPT_SECONDS = 0.25
_POLL_SECONDS = 0.001


class Landing(StrEnum):
    """What was seen."""

    RIGHT = "right"
    WRONG = "wrong"
    UNSEEN = "unseen"
    """Nobody accepted it in time: the worker is busy, or what we may look at does not tell."""


async def landing(host: str, port: int, instance: Instance) -> tuple[Landing, str]:
    """Connect to the public port, and tell whether `instance` got the connection."""
    return await anyio.to_thread.run_sync(_look, loopback_of(host), port, instance)


def _look(host: str, port: int, instance: Instance) -> tuple[Landing, str]:
    try:
        with socket.create_connection((host, port), _ACCEPT_SECONDS) as client:
            inode = _accepted(client)
            if inode == 0:
                return Landing.UNSEEN, f"nobody accepted it within {_ACCEPT_SECONDS:g} s"
            if inode in procfs.sockets_of(instance.pid):
                return Landing.RIGHT, f"pid {instance.pid} accepted it"
            if any(inode in procfs.sockets_of(pid) for pid in instance.family()):
                return Landing.RIGHT, f"a process of pid {instance.pid} accepted it"
            others = [procfs.describe(pid) for pid in procfs.holders(inode)]
    except OSError as error:
        return Landing.UNSEEN, f"it could not be looked at: {error}"
    if not others:  # accepted and closed again before we could look
        return Landing.UNSEEN, "whoever accepted it closed it at once"
    return Landing.WRONG, f"{', '.join(others)} accepted it"


def _accepted(client: socket.socket) -> int:
    """Return the inode of the server's end once there is one; 0 if nobody accepted in time."""
    deadline = time.monotonic() + _ACCEPT_SECONDS
    while True:
        inode = sockdiag.accepted_inode(client)
        if inode or time.monotonic() > deadline:
            return inode
        time.sleep(_POLL_SECONDS)
