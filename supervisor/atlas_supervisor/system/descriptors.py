"""Keeps file descriptors free for the daemon's own work.

Clients decide how many connections there are. Without a bound they would take the descriptors that
the restart of a worker, the state file and the API need. The kernel assigns the lowest free number,
so a listener that accepts only below a number leaves all numbers from there on to others: the relay
of the public port has the lowest bound, then come the API over TCP, its Unix socket, and the slots'
own ports. No counting is needed.

The daemon's own work has no bound. Should there be no descriptor left all the same, a few spare
ones are closed for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import NamedTuple, TypeVar

FEWEST = 65
"""With a lower limit the daemon does not start."""

_SPARES = 8
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE})

T = TypeVar("T")


class _Kept(NamedTuple):
    share: float
    most: int


class Purpose(Enum):
    """What connections are accepted for, with what stays free for others."""

    RELAY = _Kept(1 / 4, 64)
    API_TCP = _Kept(1 / 8, 32)
    API_UNIX = _Kept(1 / 16, 16)
    OWN_PORT = _Kept(1 / 32, 8)
    """The slots' own ports, where the daemon relays: its probes go there."""

    def bound(self, limit: int) -> int:
        """Return the number from which on descriptors are left to others."""
        return limit - min(int(limit * self.value.share), self.value.most)


def has_room(listener: socket.socket, purpose: Purpose, needed: int = 1) -> bool:
    """Return whether so many more descriptors may be used for it."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        lowest = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, 0)
    except OSError:
        return False
    os.close(lowest)
    return lowest + needed <= purpose.bound(limit)


class _Spares:
    def __init__(self) -> None:
        self._held: list[int] = []
        self._lock = threading.RLock()

    def hold(self) -> None:
        """Open what is missing, as far as possible."""
        with self._lock, suppress(OSError):
            while len(self._held) < _SPARES:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    @contextmanager
    def released(self) -> Iterator[None]:
        """Leave them to others meanwhile."""
        with self._lock:
            held, self._held = self._held, []
        for each in held:
            os.close(each)
        try:
            yield
        finally:
            self.hold()


SPARES = _Spares()


def is_shortage(error: OSError) -> bool:
    """Return whether there was no free descriptor."""
    return error.errno in _SHORTAGES


def with_spares(work: Callable[[], T]) -> T:
    """Return the result of some own work; with the spare descriptors if there are no others."""
    try:
        return work()
    except OSError as error:
        if not is_shortage(error):
            raise
    with SPARES.released():
        return work()
