"""Receives open descriptors by name at the start, and passes them on at a reload.

One protocol for both, sd_listen_fds(3): `LISTEN_PID` is the receiver, `LISTEN_FDS` the number of
descriptors from 3 on, `LISTEN_FDNAMES` their names, separated by colons. systemd's descriptor store
hands its content out this way, and so does the daemon to itself when it executes its next version.
A descriptor that is not passed on stands between those that are with an empty name, which systemd
never gives: so each keeps its number, and if the exec fails the daemon goes on as it was.

Another source of sockets for this start, such as a process that kept them, adds them by `put`.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_UNNAMED = "unknown"
"""The name of a descriptor without one, as systemd has it."""


class PassedSockets:
    """Open descriptors from before this start, by name. Each can be taken once."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._others: list[tuple[str, int]] = []
        """Further ones of a name, which the first one makes superfluous."""

    @property
    def names(self) -> frozenset[str]:
        """The names of those that can be taken."""
        return frozenset(self._descriptors)

    @property
    def identities(self) -> frozenset[tuple[str, int]]:
        """The names and inodes of all that was passed and not taken yet."""
        pairs = (*self._descriptors.items(), *self._others)
        return frozenset((name, os.fstat(descriptor).st_ino) for name, descriptor in pairs)

    def put(self, name: str, descriptor: int) -> None:
        """Add an open descriptor, which is ours from now on; one of that name comes first."""
        os.set_inheritable(descriptor, False)
        if name in self._descriptors:
            self._others.append((name, descriptor))
        else:
            self._descriptors[name] = descriptor

    def take(self, name: str, *, shared: bool = False) -> socket.socket | None:
        """Return the socket of this name, not blocking; None if there is none.

        `shared`: a worker may have it, too, and the mode that it has chosen is left as it is.
        """
        descriptor = self.take_descriptor(name)
        if descriptor is None:
            return None
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:  # it is something else
            os.close(descriptor)
            return None
        if not shared:
            sock.setblocking(False)
        return sock

    def take_descriptor(self, name: str) -> int | None:
        """Return the descriptor of this name, closed on exec; None if there is none."""
        return self._descriptors.pop(name, None)

    def close(self) -> frozenset[str]:
        """Close what was not taken; return the names under which nothing was of use.

        To be called once the plane and the API are open: closing the last copy of a listener resets
        the connections in its queue.
        """
        unused = frozenset(self._descriptors)
        for _, descriptor in (*self._descriptors.items(), *self._others):
            os.close(descriptor)
        self._descriptors.clear()
        self._others.clear()
        return unused


def receive(environ: MutableMapping[str, str] = os.environ) -> PassedSockets:
    """Return the descriptors that were passed to this process, and remove the variables.

    Of variables that are for another process or make no sense, nothing is taken.
    """
    pid, count, names, _ = (environ.pop(name, "") for name in _VARIABLES)
    passed = PassedSockets()
    if pid != str(os.getpid()):
        return passed
    given = names.split(":") if names else []
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # numbers may be above the soft limit
    for index in range(min(_number(count), most)):
        name = given[index] if index < len(given) else _UNNAMED
        if name:
            with suppress(OSError):  # it is not open
                passed.put(name, _FIRST + index)
    return passed


@contextmanager
def passing(descriptors: Mapping[str, int]) -> Iterator[dict[str, str]]:
    """Let these descriptors survive an exec of this process meanwhile.

    Yields the variables that the next program's `receive` goes by.
    """
    names = [""] * (max(descriptors.values(), default=_FIRST - 1) + 1 - _FIRST)
    for name, descriptor in descriptors.items():
        names[descriptor - _FIRST] = name
    values = (str(os.getpid()), str(len(names)), ":".join(names))
    try:
        for descriptor in descriptors.values():
            os.set_inheritable(descriptor, True)
        yield dict(zip(_VARIABLES, values, strict=False))
    finally:
        for descriptor in descriptors.values():
            os.set_inheritable(descriptor, False)


def _number(text: str) -> int:
    with suppress(ValueError):
        return max(0, int(text))
    return 0
