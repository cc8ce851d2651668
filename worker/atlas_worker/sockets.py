"""The listening sockets of a worker: inherited from the supervisor, or opened here.

The supervisor passes sockets as systemd does (socket activation), so that a listening socket
outlives every process that serves it. The descriptors are shared with the supervisor: they are
never shut down here, and only close-on-exec is set on them, which is per process. Descriptor 5, the
other slot's public socket, may be inherited too; it is kept open and never used.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

from atlas_worker.contract import LISTEN_FDS_START
from atlas_worker.instance import BadEnvironmentError

# Large enough that a burst waits instead of being dropped; the kernel caps it at somaxconn.
BACKLOG = 4096

_ENV_FDS, _ENV_PID, _ENV_NAMES = "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"
_MAX_INHERITED = 64
# struct tcp_info: eight one-byte fields, then 32-bit ones. Of a listening socket, the kernel
# reports in tcpi_unacked how many connections wait to be accepted.
_TCPI_UNACKED_OFFSET = 24


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. An `inherited` one outlives this process, which never closes it."""

    name: str
    socket: socket.socket
    inherited: bool

    @property
    def url(self) -> str:
        """Its address, for people."""
        address = self.socket.getsockname()
        if self.socket.family not in (socket.AF_INET, socket.AF_INET6):
            return f"unix:{address}"
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"http://{host}:{address[1]}"

    def queue_length(self) -> int:
        """Return how many connections wait to be accepted; 0 if the kernel does not know."""
        size = _TCPI_UNACKED_OFFSET + 4
        try:
            info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        except OSError:
            return 0
        return int(struct.unpack_from("=I", info, _TCPI_UNACKED_OFFSET)[0])


def drawn_from(listeners: Sequence[Listener]) -> list[Listener]:
    """Return those whose connections may be drawn between two versions.

    Beside a public socket the others are for probes, and for what is relayed in an outage.
    """
    return [each for each in listeners if each.name == "public"] or list(listeners)


def find_listeners(
    environ: MutableMapping[str, str] = os.environ,
    *,
    host: str,
    port: int | None,
    fd: int | None,
    own_port: int | None,
) -> list[Listener]:
    """Return the sockets to serve: `fd` or `port` if given, else the inherited ones.

    Without any of these it is `own_port` (ATLAS_PORT). Raises `BadEnvironmentError` if there is no
    usable socket, and OSError if the port can't be bound.
    """
    inherited = take_inherited(environ)
    if fd is not None:
        return [adopt(fd)]
    if port is None and inherited:
        return inherited
    chosen = own_port if port is None else port
    if chosen is None:
        raise BadEnvironmentError(
            "no socket was inherited, and neither a port nor ATLAS_PORT is given"
        )
    return [open_listener(host, chosen)]


def take_inherited(environ: MutableMapping[str, str] = os.environ) -> list[Listener]:
    """Return the sockets passed to this process, in order; without a supervisor there are none.

    The variables are removed, so that no child process uses the sockets. Raises
    `BadEnvironmentError` if the variables or the descriptors are invalid.
    """
    fds, pid, names = (environ.pop(name, "") for name in (_ENV_FDS, _ENV_PID, _ENV_NAMES))
    if not fds or pid != str(os.getpid()):
        return []
    if not fds.isdecimal() or not 0 <= int(fds) <= _MAX_INHERITED:
        raise BadEnvironmentError(
            f"{_ENV_FDS}={fds!r}: expected a number from 0 to {_MAX_INHERITED}"
        )
    count = int(fds)
    labels = names.split(":") if names else []
    if labels and len(labels) != count:
        raise BadEnvironmentError(
            f"{_ENV_NAMES}={names!r}: expected {count} names, as in {_ENV_FDS}"
        )
    labels = labels or ["unknown"] * count
    return [adopt(LISTEN_FDS_START + index, label) for index, label in enumerate(labels)]


def adopt(fd: int, name: str = "public") -> Listener:
    """Wrap an inherited descriptor; raises `BadEnvironmentError` if it does not listen."""
    if fd < 0:
        raise BadEnvironmentError(f"descriptor {fd} ({name}): expected a number from 0")
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise BadEnvironmentError(
            f"descriptor {fd} ({name}) is not a socket: {error.strerror}"
        ) from None
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise BadEnvironmentError(f"descriptor {fd} ({name}) is not a listening socket")
    sock.set_inheritable(False)
    return Listener(name, sock, inherited=True)


def open_listener(host: str, port: int) -> Listener:
    """Listen on a new socket; raises OSError if that fails.

    SO_REUSEADDR lets the worker bind beside the supervisor, which reserves the port by a socket
    that is bound but does not listen.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
    return Listener("public", sock, inherited=False)
