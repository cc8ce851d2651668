"""Passes relayed connections on to the next program of this process.

At a reload the daemon executes its next program. A connection that it relays goes on there: both
sockets are passed by name, and what else is known of it in a file in memory. No byte is lost, since
what was read and not sent on is in that file, and what comes meanwhile waits in the kernel.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.traffic.relay import Target
from atlas_supervisor.traffic.relay_connection import RelayConnection, RelayState

_FILE, _CLIENT, _SERVER = "relayed", "client-{}", "server-{}"
_MOST = 4000
"""Their names are one variable, which has a limit; further connections end with the program."""


class CarriedConnection(NamedTuple):
    """A connection from before the exec."""

    client: socket.socket
    server: socket.socket
    target: Target
    state: RelayState


def pass_on(pairs: Iterable[tuple[RelayConnection, Target]]) -> dict[str, int]:
    """Return the descriptors of these connections by name; none if there is no connection.

    The caller closes that of the file, which comes first, if it is still there.
    """
    found: dict[str, int] = {}
    states = []
    for index, (pair, target) in enumerate(pairs):
        if index == _MOST:
            break
        found[_CLIENT.format(index)] = pair.client.fd
        found[_SERVER.format(index)] = pair.server.fd
        states.append({"target": target, "state": pair.state()._asdict()})
    if not states:
        return {}
    file = os.memfd_create(_FILE, os.MFD_CLOEXEC)
    with open(file, "w", encoding="ascii", closefd=False) as content:  # a descriptor
        json.dump(states, content)
    os.lseek(file, 0, os.SEEK_SET)
    return {_FILE: file, **found}


def taken_from(passed: PassedSockets) -> Iterator[CarriedConnection]:
    """Yield the connections that the program before has passed on."""
    file = passed.take_descriptor(_FILE)
    if file is None:
        return
    with open(file, encoding="ascii") as content:  # noqa: PTH123  # a descriptor
        states = json.load(content)
    for index, each in enumerate(states):
        client = passed.take(_CLIENT.format(index))
        server = passed.take(_SERVER.format(index))
        if client is not None and server is not None:
            target, state = Target(*each["target"]), RelayState(**each["state"])
            yield CarriedConnection(client, server, target, state)
