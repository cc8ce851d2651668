"""Where connections go: the listening sockets, the steering program, the relay."""

from __future__ import annotations

import structlog

from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.traffic import listeners
from atlas_supervisor.traffic.kernel_plane import KernelPlane
from atlas_supervisor.traffic.plane import Endpoints, InheritedSockets, Plane
from atlas_supervisor.traffic.relay_plane import RelayPlane

__all__ = ["Endpoints", "InheritedSockets", "Plane", "make_plane"]

log = structlog.get_logger(__name__)


def make_plane(endpoints: Endpoints, hand_over: SocketPassing) -> Plane:
    """Return the best plane that can carry such workers on these addresses, not yet open.

    A worker that binds its own port can't be handed a socket. One that takes a single descriptor
    is reached on its own port through loopback sources, of which IPv6 alone has but one. And not
    every kernel steers: an old one refuses the program, a sandbox's may not know of it.
    """
    ipv6_only = ":" in endpoints.public_host and endpoints.public_host != "::"
    if (
        not endpoints.public_port
        or hand_over is SocketPassing.PORT
        or (hand_over is SocketPassing.FD and ipv6_only)
    ):
        return RelayPlane(endpoints, hand_over)
    try:
        listeners.prove_steering()
    except OSError as error:
        log.warning(
            "kernel_does_not_steer", why=str(error), instead="the relay plane: see traffic.plane"
        )
        return RelayPlane(endpoints, hand_over)
    return KernelPlane(endpoints, hand_over)
