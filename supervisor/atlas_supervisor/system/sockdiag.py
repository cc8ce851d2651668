"""Asks the kernel about TCP sockets, over netlink: listeners, connections, and their far ends.

`/proc/net/tcp` has the same information, but for every socket: on a busy machine these are tens
of thousands of connections that ended a minute ago, and reading takes seconds. Here the kernel
filters by state and by local port.

The messages are those of linux/sock_diag.h and linux/inet_diag.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from atlas_supervisor.system.tcp_info import awaits_answer

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_DONE, _ERROR = 3, 2
_REQUEST, _DUMP = 0x1, 0x300
_NO_COOKIE = 0xFFFFFFFF
_ANSWER_BYTES = 256 * 1024
_ANSWER_SECONDS = 2.0

_ESTABLISHED, _FIN_WAIT_1, _FIN_WAIT_2, _CLOSE_WAIT, _LISTEN = 1, 4, 5, 8, 10
_ALL_STATES = 0xFFFFFFFF
_ACCEPTS = 0x10000  # a flag of a Unix socket that listens

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_REQUEST_BODY = struct.Struct("=BBBBI")  # family, protocol, extensions, padding, states
_ID = struct.Struct("!HH16s16s")  # ports and addresses, as on the wire
_MESSAGE = struct.Struct("=BBBB")  # family, state, timer, retransmits
_ID_BYTES = 48
_QUEUES = struct.Struct("=III")  # expiry, bytes to be read, bytes to be taken by the other end
_QUEUES_OFFSET = _MESSAGE.size + _ID_BYTES
_INODE_OFFSET = _QUEUES_OFFSET + 16
_MESSAGE_BYTES = _INODE_OFFSET + 4

_ATTRIBUTE = struct.Struct("=HH")  # length, type
_FILTER = 1  # the attribute of a request that has a program, which the kernel runs for each socket
_OPERATION = struct.Struct("=BBH")  # code, bytes to go on by if it holds, and if it does not
_OPERAND = struct.Struct("=HH")  # nothing, port
_GO, _AT_LEAST, _AT_MOST = 1, 2, 3  # codes: "holds not", "the local port is at least …", …
_COMPARISON_BYTES = _OPERATION.size + _OPERAND.size
_TCP_INFO = 2  # the extension that adds `struct tcp_info`
_WITH_TCP_INFO = 1 << (_TCP_INFO - 1)


class TcpSocket(NamedTuple):
    """A TCP socket of some process on this machine; `inode` is its name in `/proc`."""

    address: str
    port: int
    inode: int

    @property
    def place(self) -> str:
        """Its address and port in one word."""
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )


class TcpConnection(NamedTuple):
    """Our end of a connection."""

    port: int
    inode: int
    peer: tuple[str, int]
    """The address of the far end."""
    untaken: bool
    """Whether bytes are unread on either end."""
    info: bytes | None
    """The kernel's `struct tcp_info`."""

    def busy(self, quiet_seconds: float) -> bool:
        """Return whether an answer is pending or being sent, as far as the kernel can tell."""
        return self.untaken or awaits_answer(self.info, quiet_seconds)


def listeners(port: int | None = None) -> list[TcpSocket]:
    """Return every socket that listens on `port` (None: on any), on any address.

    Raises OSError.
    """
    ports = None if port is None else {port}
    return [_parsed(message) for message in _dump((_LISTEN,), ports)]


def unix_listeners() -> dict[int, str]:
    """Return the path of every Unix stream socket that listens and has one, by its inode."""
    found = {}
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        fields = line.split(maxsplit=7)  # address, references, protocol, flags, type, state, inode
        if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS:
            found[int(fields[6])] = fields[7]
    return found


def connections(ports: Collection[int]) -> list[TcpConnection]:
    """Return our ends of the connections on these local ports that can still carry data.

    Raises OSError.
    """
    found = []
    states = (_ESTABLISHED, _CLOSE_WAIT, _FIN_WAIT_1, _FIN_WAIT_2)
    for message in _dump(states, ports, _WITH_TCP_INFO):
        _, port, inode = _parsed(message)
        _, unread, untaken = _QUEUES.unpack_from(message, _QUEUES_OFFSET)
        waiting = bool(unread or untaken)
        found.append(TcpConnection(port, inode, _peer(message), waiting, _tcp_info(message)))
    return found


def accepted_inode(client: socket.socket) -> int:
    """Return the inode of the server's end of a local connection; 0 until it is accepted.

    Raises OSError.
    """
    server, own = client.getpeername(), client.getsockname()
    packed = [socket.inet_pton(client.family, end[0]).ljust(16, b"\0") for end in (server, own)]
    identity = _ID.pack(server[1], own[1], *packed) + struct.pack("=III", 0, *[_NO_COOKIE] * 2)
    for message in _ask(client.family, _REQUEST, _ALL_STATES, identity):
        return _parsed(message).inode
    return 0  # the kernel knows no such connection (any more)


def _dump(
    states: tuple[int, ...], ports: Collection[int] | None, extensions: int = 0
) -> Iterator[bytes]:
    mask = sum(1 << state for state in states)
    which = bytes(_ID_BYTES) + (b"" if ports is None else _only(ports))
    for family in (socket.AF_INET, socket.AF_INET6):
        yield from _ask(family, _REQUEST | _DUMP, mask, which, extensions)


def _only(ports: Collection[int]) -> bytes:
    """Return the filter that lets pass what has one of the local ports.

    For each port it compares twice and goes to the end, which lets pass; last it goes beyond the
    end, which does not. (There is a comparison for "equal" since Linux 5.10 alone.)
    """
    block = 2 * _COMPARISON_BYTES + _OPERATION.size
    last = _OPERATION.pack(_GO, _OPERATION.size, 2 * _OPERATION.size)
    program = b""
    for left, port in zip(reversed(range(len(ports))), sorted(ports), strict=True):
        operand = _OPERAND.pack(0, port)
        program += _OPERATION.pack(_AT_LEAST, _COMPARISON_BYTES, block) + operand
        program += _OPERATION.pack(_AT_MOST, _COMPARISON_BYTES, block - _COMPARISON_BYTES) + operand
        to_end = _OPERATION.size + left * block + len(last)
        program += _OPERATION.pack(_GO, _OPERATION.size, to_end)
    program += last
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(program), _FILTER) + program


def _ask(
    family: int, flags: int, states: int, which: bytes, extensions: int = 0
) -> Iterator[bytes]:
    body = _REQUEST_BODY.pack(family, socket.IPPROTO_TCP, extensions, 0, states) + which
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_ANSWER_SECONDS)
        netlink.send(header + body)
        while True:
            for kind, message in _messages(netlink.recv(_ANSWER_BYTES)):
                if kind == _ERROR:
                    _refuse(message, flags)
                if kind in {_DONE, _ERROR}:
                    return
                yield message
            if not flags & _DUMP:
                return


def _refuse(message: bytes, flags: int) -> None:
    """Raise the kernel's error, unless it says that there is no such connection."""
    (code,) = struct.unpack_from("=i", message)
    if flags & _DUMP or -code != errno.ENOENT:
        raise OSError(-code, os.strerror(-code))


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3  # messages are aligned to four bytes


def _parsed(message: bytes) -> TcpSocket:
    family, *_ = _MESSAGE.unpack_from(message)
    port, _, address, _ = _ID.unpack_from(message, _MESSAGE.size)
    (inode,) = struct.unpack_from("=I", message, _INODE_OFFSET)
    return TcpSocket(_address(family, address), port, inode)


def _peer(message: bytes) -> tuple[str, int]:
    family, *_ = _MESSAGE.unpack_from(message)
    _, port, _, address = _ID.unpack_from(message, _MESSAGE.size)
    return _address(family, address), port


def _address(family: int, packed: bytes) -> str:
    size = 4 if family == socket.AF_INET else 16
    return socket.inet_ntop(family, packed[:size])


def _tcp_info(message: bytes) -> bytes | None:
    offset = _MESSAGE_BYTES
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if kind == _TCP_INFO:
            return message[offset + _ATTRIBUTE.size : offset + length]
        offset += max(length + 3 & ~3, _ATTRIBUTE.size)
    return None
