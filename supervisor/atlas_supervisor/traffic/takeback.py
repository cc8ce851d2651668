"""Takes the listening sockets of an earlier daemon back: those passed on, or from its workers.

A worker that outlives its daemon keeps the public port's group open: it inherited its own socket
of the group, and carries the other one. Its own port's listener it has as well. The next daemon
copies these descriptors, unless they were passed to it. So no connection is refused or reset.

Two things about a socket are known to the daemon that opened it and are lost with it: its place in
the group, and whether the program steers to it. They are kept on the socket itself, in two flags
that mean something for multicast and nothing for TCP.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, suppress
from dataclasses import replace

from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.system import pidfd, procfs, sockdiag
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.system.procfs import inode_of
from atlas_supervisor.traffic import listeners
from atlas_supervisor.traffic.listeners import SECOND_IN_GROUP, WITHOUT_TRAFFIC
from atlas_supervisor.traffic.plane import Endpoints, TakenBack
from atlas_worker.contract import LISTEN_FDS_START

PUBLIC_NAME = "public"
"""The name under which the relay's public socket is passed on."""
PARKED_NAME = "public-parked"
"""The name under which the listener is passed on whose queue a hold fills."""


def public_name(slot: SlotName) -> str:
    """Return the name under which the slot's public socket is passed on."""
    return f"public-{slot}"


def own_name(slot: SlotName) -> str:
    """Return the name under which the socket of the slot's own port is passed on."""
    return f"own-{slot}"


def reserved_name(slot: SlotName) -> str:
    """Return the name under which the socket is passed on that reserves the slot's own port.

    It does not listen. One that does would refuse the port to a worker that binds it.
    """
    return f"reserved-{slot}"


def own_addresses(
    endpoints: Endpoints, name: Callable[[SlotName], str] = own_name
) -> dict[str, tuple[str, int]]:
    """Return host and port of the sockets of the slots' own ports, by name."""
    return {name(slot): ("127.0.0.1", port) for slot, port in endpoints.slot_ports.items()}


def drop_passed(passed: PassedSockets, names: Iterable[str]) -> None:
    """Close sockets of the public port that are for another plane: they are in the way."""
    for name in names:
        if sock := passed.take(name, shared=True):
            sock.close()


def take_passed(passed: PassedSockets, name: str, host: str, port: int) -> socket.socket | None:
    """Return the socket that was passed under this name, if it has this address."""
    sock = passed.take(name, shared=True)
    if sock is None or sock.getsockname()[:2] == (host, port):
        return sock
    sock.close()
    return None


def take_back(endpoints: Endpoints, pids: Collection[int], passed: PassedSockets) -> TakenBack:
    """Take what was passed, and copy the listening sockets of these processes.

    Changes nothing for them. One on another address of the public port, as after a change of
    `PUBLIC_HOST`, is in the way.
    """
    address = endpoints.public_host, endpoints.public_port
    parked = take_passed(passed, PARKED_NAME, *address)
    behind = {inode_of(parked)} if parked else set[int]()
    public = _inodes(endpoints.public_port, endpoints.public_host) - behind
    ports = {slot: _inodes(port) for slot, port in endpoints.slot_ports.items()}
    other = _inodes(endpoints.public_port) - behind - public - set().union(*ports.values())
    places: dict[int, list[tuple[int, int]]] = {}
    accepts: dict[int, int] = {}
    own: dict[tuple[SlotName, int], int] = {}
    for pid in pids:
        for number, inode in _own_first(procfs.open_sockets(pid), set().union(*ports.values())):
            places.setdefault(inode, []).append((pid, number))
            if inode in public:
                accepts.setdefault(pid, inode)
            for slot, inodes in ports.items():
                if inode in inodes:
                    own.setdefault((slot, pid), inode)
    in_the_way = other & places.keys()
    held = places.keys() & public.union(*ports.values())
    given, named = _passed(endpoints, passed)
    copies = given | {
        inode: copy for inode in held - given.keys() if (copy := _copied(places[inode]))
    }
    for sock in copies.values():  # a worker that some other version started lacks it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    group = sorted(
        ((inode, copies[inode]) for inode in public & copies.keys()),
        key=lambda each: not each[1].getsockopt(*SECOND_IN_GROUP[each[1].family]),
    )
    if parked and len(group) < len(SlotName):  # it would not be the last one of the next group
        parked.close()
        parked = None
    order = [inode for inode, _ in group]
    traffic = _traffic([sock for _, sock in group])
    return TakenBack(
        group=tuple(sock for _, sock in group),
        parked=parked,
        traffic=traffic or 0,
        accepts={pid: order.index(inode) for pid, inode in accepts.items() if inode in order},
        own={place: copies[inode] for place, inode in own.items() if inode in copies}
        | {(slot, 0): copies[inode] for slot, inode in named.items()},
        kept=tuple(copies[inode] for inode in copies.keys() - public),
        inodes=frozenset(in_the_way | held | given.keys() | behind),
        complete=held <= copies.keys() and traffic is not None and not in_the_way,
    )


def _own_first(found: Mapping[int, int], private: AbstractSet[int]) -> list[tuple[int, int]]:
    """Return a process's sockets by descriptor, the other slot's public one last.

    A server may move its own to higher numbers, as gunicorn does; the one that it does not know of
    stays behind those that it was started with.
    """
    announced = 1 if private.isdisjoint(found.values()) else 2
    unknown = LISTEN_FDS_START + announced
    return sorted(found.items(), key=lambda each: (each[0] == unknown, each[0]))


def continued_group(
    taken: TakenBack, adopted: Mapping[SlotName, int], with_traffic: SlotName, host: str, port: int
) -> dict[SlotName, socket.socket]:
    """Return the group as it was taken back, in its order, which can't be changed.

    Whose socket is whose is known by an adopted worker, else by the traffic. Raises OSError.
    """
    known = [(slot, taken.accepts[pid]) for slot, pid in adopted.items()]
    slot, index = known[0] if known else (with_traffic, taken.traffic)
    order = (slot, slot.other) if index == 0 else (slot.other, slot)
    with ExitStack() as opened:  # after a failure, none is left open
        group = [opened.enter_context(sock) for sock in taken.group]
        if len(group) == 1:
            group.append(opened.enter_context(listeners.listen(host, port, reuse_port=True)))
        for sock in group:
            listeners.restore_backlog(sock)
        opened.pop_all()
    return dict(zip(order, group, strict=True))


def looked_at(endpoints: Endpoints, pids: Collection[int], passed: PassedSockets) -> TakenBack:
    """Return the sockets of workers that bind their own ports: these are not to be copied."""
    taken = take_back(replace(endpoints, slot_ports={}), pids, passed)
    theirs, own = set[int](), {}
    for slot, port in endpoints.slot_ports.items():
        theirs |= {*holders(port, pids).values()}
        if sock := take_passed(passed, reserved_name(slot), "127.0.0.1", port):
            own[slot, 0] = sock
    return replace(taken, own=own, inodes=taken.inodes | theirs)


def _passed(
    endpoints: Endpoints, passed: PassedSockets
) -> tuple[dict[int, socket.socket], dict[SlotName, int]]:
    """Return the sockets that were passed and have our addresses, and which are of own ports."""
    found, own = {}, {}
    for slot, port in endpoints.slot_ports.items():
        public = endpoints.public_host, endpoints.public_port
        if sock := take_passed(passed, public_name(slot), *public):
            found[inode_of(sock)] = sock
        if sock := take_passed(passed, own_name(slot), "127.0.0.1", port):
            found[inode_of(sock)] = sock
            own[slot] = inode_of(sock)
    return found, own


def take_inner(endpoints: Endpoints, pids: Collection[int]) -> dict[int, socket.socket]:
    """Copy the listener of each process that is on loopback, and on none of our ports."""
    ours = {endpoints.public_port, *endpoints.slot_ports.values()}
    inner = {
        each.inode
        for each in sockdiag.listeners()
        if each.address == "127.0.0.1" and each.port not in ours
    }
    found = {}
    for pid in pids:
        places = [
            (pid, n) for n, inode in sorted(procfs.open_sockets(pid).items()) if inode in inner
        ]
        if copy := _copied(places[:1]):
            found[pid] = copy
    return found


def holders(port: int, pids: Collection[int]) -> dict[int, int]:
    """Return the listener on the port that each of these processes has open, by its inode."""
    inodes = _inodes(port)
    held = {pid: inodes & procfs.sockets_of(pid) for pid in pids}
    return {pid: min(found) for pid, found in held.items() if found}


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
