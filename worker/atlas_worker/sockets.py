"""Take the listening sockets that were handed over, or open one where nobody did.

The supervisor hands sockets over as systemd does (socket activation), so that a listening socket
outlives every process that serves it. The descriptors are shared with the supervisor: they are
never shut down here, and only close-on-exec is set on them, which belongs to this process alone.
Descriptor 5, the other slot's public socket, may be there too; it is carried and never touched.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import MutableMapping
from dataclasses import dataclass

from atlas_worker.contract import LISTEN_FDS_START
from atlas_worker.instance import BadEnvironmentError

# Large enough that a burst waits instead of being dropped; the kernel caps it at somaxconn.
BACKLOG = 4096

_ENV_FDS, _ENV_PID, _ENV_NAMES = "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"
_MAX_HANDED = 64
# struct tcp_info: eight one-byte fields, then 32-bit ones. Of a listening socket, the kernel
# reports in tcpi_unacked how many connections wait to be accepted.
_TCPI_UNACKED_OFFSET = 24


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. `handed` ones live on after this process and are not ours to close."""

    name: str
    socket: socket.socket
    handed: bool

    @property
    def url(self) -> str:
        """Where it is reached, for people."""
        address = self.socket.getsockname()
        if self.socket.family not in (socket.AF_INET, socket.AF_INET6):
            return f"unix:{address}"
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"http://{host}:{address[1]}"

    def queue_length(self) -> int:
        """Return how many connections wait to be accepted; 0 where the kernel can't tell."""
        size = _TCPI_UNACKED_OFFSET + 4
        try:
            info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        except OSError:
            return 0
        return int(struct.unpack_from("=I", info, _TCPI_UNACKED_OFFSET)[0])


def find_listeners(
    environ: MutableMapping[str, str] = os.environ,
    *,
    host: str,
    port: int | None,
    fd: int | None,
    own_port: int | None,
) -> list[Listener]:
    """Return what to listen on: `fd` or `port` if given, else what was handed over.

    With none of these it is `own_port` (ATLAS_PORT). Raises `BadEnvironmentError` if there is
    nothing to listen on or it is unusable, and OSError if the port can't be bound.
    """
    handed = take_handed(environ)
    if fd is not None:
        return [adopt(fd)]
    if port is None and handed:
        return handed
    chosen = own_port if port is None else port
    if chosen is None:
        raise BadEnvironmentError(
            "no socket was handed over, and neither a port nor ATLAS_PORT given"
        )
    return [open_listener(host, chosen)]


def take_handed(environ: MutableMapping[str, str] = os.environ) -> list[Listener]:
    """Return the sockets handed to this very process, in order; none is the plain case.

    The variables are removed, so that no child takes the sockets for its own. Raises
    `BadEnvironmentError` if the variables or the descriptors are not what they should be.
    """
    fds, pid, names = (environ.pop(name, "") for name in (_ENV_FDS, _ENV_PID, _ENV_NAMES))
    if not fds or pid != str(os.getpid()):
        return []
    if not fds.isdecimal() or not 0 <= int(fds) <= _MAX_HANDED:
        raise BadEnvironmentError(f"{_ENV_FDS}={fds!r}: a number from 0 to {_MAX_HANDED} is taken")
    count = int(fds)
    labels = names.split(":") if names else []
    if labels and len(labels) != count:
        raise BadEnvironmentError(f"{_ENV_NAMES}={names!r}: {count} names are taken, as {_ENV_FDS}")
    labels = labels or ["unknown"] * count
    return [adopt(LISTEN_FDS_START + index, label) for index, label in enumerate(labels)]


def adopt(fd: int, name: str = "public") -> Listener:
    """Wrap an inherited descriptor; raises `BadEnvironmentError` if it is no listening socket."""
    if fd < 0:
        raise BadEnvironmentError(f"descriptor {fd} ({name}): a number from 0 is taken")
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise BadEnvironmentError(
            f"descriptor {fd} ({name}) is no socket: {error.strerror}"
        ) from None
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise BadEnvironmentError(f"descriptor {fd} ({name}) is no listening socket")
    sock.set_inheritable(False)
    return Listener(name, sock, handed=True)


def open_listener(host: str, port: int) -> Listener:
    """Listen on an address of our own; raises OSError where that can't be done.

    SO_REUSEADDR lets the worker bind beside the supervisor, which reserves the port by a socket
    that is bound but does not listen.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
    return Listener("public", sock, handed=False)
