"""Where connections go: the listening sockets, the steering program, the relay."""

from __future__ import annotations

import structlog

from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.traffic import listeners
from atlas_supervisor.traffic.kernel_plane import KernelPlane
from atlas_supervisor.traffic.plane import Endpoints, InheritedSockets, Plane, TakenBack
from atlas_supervisor.traffic.refusal import PATIENCE_SECONDS
from atlas_supervisor.traffic.relay_connection import Answers
from atlas_supervisor.traffic.relay_plane import RelayPlane
from atlas_supervisor.traffic.steering import Split, SteeringPolicy

__all__ = [
    "PATIENCE_SECONDS",
    "Answers",
    "Endpoints",
    "InheritedSockets",
    "Plane",
    "Split",
    "SteeringPolicy",
    "TakenBack",
    "make_plane",
]

log = structlog.get_logger(__name__)

_HIDDEN = "the relay serves workers on {}, which see 127.0.0.1 as the address of every client"


def make_plane(endpoints: Endpoints, socket_passing: SocketPassing) -> Plane:
    """Return the best plane that can carry such workers on these addresses, not yet open.

    A worker that binds its own port can't inherit a socket. A worker with a single descriptor is
    reached on its own port through two loopback sources, and IPv6 has only one. Not every kernel
    steers: an old one refuses the program, a sandbox may not implement it.
    """
    ipv6_only = ":" in endpoints.public_host and endpoints.public_host != "::"
    if (
        not endpoints.public_port
        or socket_passing is SocketPassing.PORT
        or (socket_passing is SocketPassing.FD and ipv6_only)
    ):
        if endpoints.public_port and socket_passing is SocketPassing.FD:
            log.warning("client_address_hidden", why=_HIDDEN.format("an IPv6-only PUBLIC_HOST"))
        return RelayPlane(endpoints, socket_passing)
    try:
        listeners.prove_steering()
    except OSError as error:
        log.warning("kernel_steering_unavailable", why=str(error), instead="using the relay plane")
        log.warning("client_address_hidden", why=_HIDDEN.format("a kernel that can't steer"))
        return RelayPlane(endpoints, socket_passing)
    return KernelPlane(endpoints, socket_passing)
