"""Takes the listening sockets back from the workers of an earlier daemon.

A worker that outlives its daemon keeps the public port's group open: it inherited its own socket
of the group, and carries the other one. The next daemon copies the descriptors. So no connection
is refused or reset, and the traffic stays with the old worker until a fresh one is ready.

Two things about a socket are known to the daemon that opened it and are lost with it: its place in
the group, and whether the program steers to it. They are kept on the socket itself, in two flags
that mean something for multicast and nothing for TCP.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.system import pidfd, procfs, sockdiag
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.traffic.listeners import SECOND_IN_GROUP, WITHOUT_TRAFFIC
from atlas_supervisor.traffic.plane import Endpoints, TakenBack


def take_back(endpoints: Endpoints, pids: Collection[int], passed: PassedSockets) -> TakenBack:
    """Take what was passed, and copy the listening sockets of these processes.

    Nothing changes for them.

    One on another address of the public port, as after a change of `PUBLIC_HOST`, is in the way.
    """
    public = _inodes(endpoints.public_port, endpoints.public_host)
    own = set[int]().union(*(_inodes(port) for port in endpoints.slot_ports.values()))
    other = _inodes(endpoints.public_port) - public - own
    in_the_way: set[int] = set()
    held: dict[int, list[tuple[int, int]]] = {}
    first: dict[int, int] = {}
    for pid in pids:
        for number, inode in sorted(procfs.open_sockets(pid).items()):
            if inode in public or inode in own:
                held.setdefault(inode, []).append((pid, number))
            if inode in other:
                in_the_way.add(inode)
            if inode in public:  # its own one comes first: the other's place is behind it
                first.setdefault(pid, inode)
    copies = _taken(passed, public | own)
    copies |= {
        inode: copy
        for inode in held.keys() - copies.keys()
        if (copy := _copied(held[inode])) is not None
    }
    for sock in copies.values():  # a worker that some other version started lacks it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    group = sorted(
        ((inode, copies[inode]) for inode in public & copies.keys()),
        key=lambda each: not each[1].getsockopt(*SECOND_IN_GROUP[each[1].family]),
    )
    traffic = _traffic([sock for _, sock in group])
    serving = frozenset(pid for pid in first if group and first[pid] == group[traffic or 0][0])
    return TakenBack(
        group=tuple(sock for _, sock in group),
        traffic=traffic or 0,
        serving=serving,
        waiting=frozenset(first) - serving,
        kept=tuple(copies[inode] for inode in own & copies.keys()),
        inodes=frozenset(in_the_way.union(held, copies)),
        complete=held.keys() <= copies.keys() and traffic is not None and not in_the_way,
    )


def _taken(passed: PassedSockets, wanted: Collection[int]) -> dict[int, socket.socket]:
    """Return the passed sockets that listen on our addresses."""
    found = {}
    for name in (f"{kind}-{slot}" for kind in ("public", "own") for slot in SlotName):
        sock = passed.take(name)
        if sock is not None and (inode := procfs.inode_of(sock)) in wanted:
            found[inode] = sock
        elif sock is not None:
            sock.close()
    return found


def _inodes(port: int, host: str | None = None) -> set[int]:
    found = sockdiag.listeners(port) if port else []
    return {each.inode for each in found if host in {None, each.address}}


def _copied(places: Iterable[tuple[int, int]]) -> socket.socket | None:
    """Return a copy from the first process that allows it."""
    for pid, number in places:
        with suppress(OSError):  # gone, or not ours to trace
            return socket.socket(fileno=pidfd.copy_descriptor(pid, number))
    return None


def _traffic(group: Sequence[socket.socket]) -> int | None:
    """Return the index of the socket with the traffic; None if the marks make no sense."""
    if len(group) < 2:
        return 0
    places = [bool(sock.getsockopt(*SECOND_IN_GROUP[sock.family])) for sock in group]
    traffic = [bool(sock.getsockopt(*WITHOUT_TRAFFIC[sock.family])) for sock in group]
    return traffic.index(True) if places == [True, False] and sum(traffic) == 1 else None
