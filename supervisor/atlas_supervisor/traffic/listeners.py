"""The listening sockets: opened once, in a fixed order, and never closed while the daemon lives.

Closing a listener resets every connection that waits in its queue, and reorders the group that
the steering program indexes. So nothing here closes a listener, and workers only stop accepting.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.system import procfs, sockdiag
from atlas_supervisor.system.sockdiag import TcpSocket
from atlas_supervisor.system.tcp_info import queue_length
from atlas_supervisor.traffic.steering import (
    DIRECT_SOURCE,
    GROUP_ORDER,
    SteeringPolicy,
    compile_index,
    compile_policy,
)

BACKLOG = 4096
"""Connections that may wait in one listener's queue (the kernel's somaxconn may cut it)."""

_SO_LOCK_FILTER, _SO_ATTACH_REUSEPORT_CBPF = 44, 51
_INSTRUCTION_BYTES = 8
_TRIALS = 8  # a kernel that spreads by chance passes once in four thousand million times
_TRIAL_SECONDS = 2.0
_ARRIVAL_SECONDS = 0.05
_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104  # compared, not bound

_IP_MULTICAST_ALL, _IPV6_MULTICAST_ALL = 49, 29
SECOND_IN_GROUP = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP),
}
"""Cleared on the second socket of the group."""
WITHOUT_TRAFFIC = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_MULTICAST_ALL),
    socket.AF_INET6: (socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL),
}
"""Cleared on a socket without the traffic."""


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Return a socket that listens on the address. Raises OSError."""
    sock = bind(host, port, reuse_port=reuse_port)
    restore_backlog(sock)
    return sock


def bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Return a socket that is bound and does not listen, which reserves the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        # Inherited by every accepted connection; not every server sets it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def open_group(host: str, port: int, policy: SteeringPolicy) -> dict[SlotName, socket.socket]:
    """Return two listeners on one port (0: any free one), in the order that the program indexes.

    The program is attached before the first of them listens: without one the kernel would spread
    early clients over both. Raises OSError.
    """
    group = {}
    with ExitStack() as opened:  # after a failure, none is left open
        for slot in GROUP_ORDER:
            group[slot] = opened.enter_context(bind(host, port, reuse_port=True))
            port = group[slot].getsockname()[1]
        attach(group[GROUP_ORDER[0]], policy)
        for slot in GROUP_ORDER:
            restore_backlog(group[slot])
        opened.pop_all()
    return group


def own_port_label(slot: SlotName) -> str:
    """Return the name of the setting that has the slot's own port."""
    return "ACTIVE_PORT" if slot is SlotName.BLUE else "STAGING_PORT"


def open_slot_ports(
    ports: dict[SlotName, int],
    open_one: Callable[[str, int], socket.socket],
    known: Collection[int] = (),
) -> dict[SlotName, socket.socket]:
    """Return a socket on each slot's own port, on loopback. Raises StartRefusedError.

    `known` are the inodes of listeners that workers of an earlier daemon still have.
    """
    found = {}
    with ExitStack() as opened:  # after a failure, none is left open
        for slot, port in ports.items():
            label = own_port_label(slot)
            refuse_foreign_listeners(label, "127.0.0.1", port, known)
            try:
                found[slot] = opened.enter_context(open_one("127.0.0.1", port))
            except OSError as error:
                raise explain_bind_error(label, "127.0.0.1", port, error) from error
        opened.pop_all()
    return found


def listen_in_front(host: str, port: int) -> socket.socket:
    """Return a listener that gets every new connection, also where others listen on the port.

    The others are of workers that an earlier daemon has left behind. Raises OSError.
    """
    others = len(sockdiag.listeners(port))
    sock = listen(host, port, reuse_port=True)
    try:
        if others:
            _steer_to(sock, others)
    except BaseException:
        sock.close()
        raise
    return sock


def _steer_to(sock: socket.socket, others: int) -> None:
    """Make the kernel send every new connection of the port to this socket of the group.

    Its index is the number of the others, unless one of them is closing; so it is tried out.
    """
    for index in range(others, -1, -1):
        _attach_program(sock, compile_index(index))
        with socket.create_connection(sock.getsockname(), _TRIAL_SECONDS):
            deadline = time.monotonic() + _ARRIVAL_SECONDS
            while time.monotonic() < deadline:
                if queue_length(sock):
                    sock.accept()[0].close()
                    return
    raise OSError(errno.EADDRINUSE, "the kernel does not steer the port")


def restore_backlog(sock: socket.socket) -> None:
    """Set the queue's size again: servers shrink it on the socket that they share with us."""
    sock.listen(BACKLOG)


def listen_last(sock: socket.socket) -> None:
    """Make the socket the last one of its group; what waits in its queue is reset."""
    sock.shutdown(socket.SHUT_RDWR)
    restore_backlog(sock)


def attach(sock: socket.socket, policy: SteeringPolicy) -> None:
    """Make the kernel steer the socket's whole group by the policy. Raises OSError."""
    _attach_program(sock, compile_policy(policy))


def attach_to_group(sock: socket.socket, policy: SteeringPolicy) -> None:
    """Attach the policy though a worker may have locked the sockets of the group.

    The lock is a socket's, the program the group's. So it is attached through one more socket,
    the last of the group for a moment: closing it leaves the order as it is. Raises OSError.
    """
    try:
        attach(sock, policy)
    except PermissionError:
        host, port, *_ = sock.getsockname()
        with listen(host, port, reuse_port=True) as beside:
            attach(beside, policy)


def is_locked(sock: socket.socket) -> bool:
    """Return whether the socket's filters can't be changed any more."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER))


def _attach_program(sock: socket.socket, program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION_BYTES
    sock.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_REUSEPORT_CBPF,
        struct.pack("@HP", count, ctypes.addressof(code)),
    )


def prove_steering() -> None:
    """Check with real connections that this kernel steers, by policy and by source.

    The trial has a group of its own, so that no client takes part. A kernel that accepts the
    program and ignores it spreads connections by chance, so there are several. Raises OSError.
    """
    with ExitStack() as opened:
        group = open_group("127.0.0.1", 0, SteeringPolicy(GROUP_ORDER[0]))
        for listener in group.values():
            opened.enter_context(listener)
        arrived = dict.fromkeys(GROUP_ORDER, 0)
        for slot in GROUP_ORDER * _TRIALS:
            by_policy = SteeringPolicy(slot), "127.0.0.1"
            by_source = SteeringPolicy(slot.other, direct=True), str(DIRECT_SOURCE[slot])
            for policy, source in (by_policy, by_source):
                attach(group[slot], policy)
                address = group[slot].getsockname()
                opened.enter_context(socket.create_connection(address, _TRIAL_SECONDS, (source, 0)))
                arrived[slot] += 1
                _await_queues(group, arrived)


def _await_queues(group: dict[SlotName, socket.socket], expected: dict[SlotName, int]) -> None:
    """Wait until all connections have arrived, and check that each is in the expected queue."""
    deadline = time.monotonic() + _TRIAL_SECONDS
    while True:
        found = {slot: queue_length(listener) for slot, listener in group.items()}
        if found == expected:
            return
        if sum(found.values()) == sum(expected.values()) or time.monotonic() > deadline:
            raise OSError("the kernel accepts the steering program and ignores it")


def foreign_listeners(host: str, port: int, ours: Collection[int] = ()) -> list[TcpSocket]:
    """Return the listeners of other programs that conflict with the address."""
    return [
        listener
        for listener in sockdiag.listeners(port)
        if listener.inode not in ours and _conflicts(host, listener.address.removeprefix("::ffff:"))
    ]


def _conflicts(host: str, other: str) -> bool:
    """Return whether listeners on `host` and `other` conflict, on one port.

    A listener on one address takes the connections of a wildcard listener, and the other way
    round the bind fails; two different addresses don't conflict. `::` may serve both families.
    """
    if host == other or "::" in {host, other}:
        return True
    return (":" in host) == (":" in other) and bool({host, other} & _WILDCARDS)


def refuse_foreign_listeners(label: str, host: str, port: int, ours: Collection[int] = ()) -> None:
    """Raise StartRefusedError, naming the process, if another program listens on the address."""
    if found := foreign_listeners(host, port, ours):
        raise StartRefusedError(
            f"{label}={port} is taken: {procfs.describe_listeners(found)}. "
            f"Stop it, or choose another {label}."
        )


def refuse_unusable(label: str, host: str, port: int, ours: Collection[int]) -> None:
    """Raise StartRefusedError if the address can't be opened once `ours` are closed."""
    refuse_foreign_listeners(label, host, port, ours)
    try:
        bind(host, port, reuse_port=True).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not ours:
            raise explain_bind_error(label, host, port, error) from error


def explain_bind_error(label: str, host: str, port: int, error: OSError) -> StartRefusedError:
    """Return the error that explains why the address can't be bound."""
    if error.errno == errno.EADDRINUSE:
        why = f"{label}={port} is taken on {host} by a socket that is bound but does not listen"
    elif error.errno == errno.EACCES:
        why = f"{label}={port} needs privileges (ports below 1024 do)"
    elif error.errno == errno.EADDRNOTAVAIL:
        why = f"this machine has no address {host}, which {label} needs"
    else:
        why = f"{label}={port} on {host} can't be opened: {error.strerror}"
    return StartRefusedError(why)


def loopback_of(host: str) -> str:
    """Return an address by which a process on this machine reaches a listener on `host`."""
    return "127.0.0.1" if host in _WILDCARDS else host


def mark(group: Sequence[socket.socket], traffic: socket.socket) -> None:
    """Note on the sockets what the next daemon has to know about them."""
    for index, sock in enumerate(group):
        sock.setsockopt(*SECOND_IN_GROUP[sock.family], int(index == 0))
        sock.setsockopt(*WITHOUT_TRAFFIC[sock.family], int(sock is traffic))
