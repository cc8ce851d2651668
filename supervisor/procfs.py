"""What `/proc` and the kernel's socket diagnosis tell: which process holds which socket.

Asked so that a refusal can name the process that is in the way, so that a switch can check where
a real connection landed, and so that no process of an instance is ever left over.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_LISTEN = "0A"
_ESTABLISHED = "01"


class Listener(NamedTuple):
    """A listening TCP socket, whoever's."""

    address: str
    port: int
    inode: int


def listeners(port: int) -> list[Listener]:
    """Return every TCP socket that listens on `port`, on any address."""
    return [
        Listener(address, local_port, inode)
        for address, local_port, state, inode in _tcp_sockets()
        if state == _LISTEN and local_port == port
    ]


def _tcp_sockets() -> Iterator[tuple[str, int, str, int]]:
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (_PROC / table).read_text().splitlines()[1:]
        except OSError:  # no IPv6 on this machine
            continue
        for line in lines:
            fields = line.split()
            host, _, port = fields[1].rpartition(":")
            yield _address(host), int(port, 16), fields[3], int(fields[9])


def _address(words: str) -> str:
    """Decode the kernel's hexadecimal: 32-bit words, each in this machine's byte order."""
    raw = b"".join(
        struct.pack("=I", int(words[start : start + 8], 16)) for start in range(0, len(words), 8)
    )
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def inode_of(sock: socket.socket) -> int:
    """Return the number under which `/proc` knows this socket."""
    return os.fstat(sock.fileno()).st_ino


def pids() -> Iterator[int]:
    """Yield every process that there is."""
    for name in os.listdir(_PROC):  # noqa: PTH208  # a Path for each of thousands is the cost here
        if name.isdecimal():
            yield int(name)


def sockets_of(pid: int) -> set[int]:
    """Return the inodes of the sockets that a process has open; none if it is gone."""
    folder = f"/proc/{pid}/fd"
    found: set[int] = set()
    try:
        names = os.listdir(folder)  # noqa: PTH208  # see above
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(f"{folder}/{name}")  # noqa: PTH115  # see above
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found


def holders(inode: int) -> list[int]:
    """Return the processes that have the socket open, as far as we may look."""
    return [pid for pid in pids() if inode in sockets_of(pid)]


def describe(pid: int) -> str:
    """Return a process as a person would name it: `pid 12 (python -m http.server)`."""
    try:
        command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").strip()
    except OSError:
        command = b""
    text = command.decode(errors="replace")
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return f"pid {pid} ({printable[:120]})" if printable else f"pid {pid}"


def describe_listeners(found: Collection[Listener]) -> str:
    """Return who listens, for a refusal that names them."""
    parts = []
    for listener in found:
        who = ", ".join(describe(pid) for pid in holders(listener.inode)) or "an unknown process"
        host = f"[{listener.address}]" if ":" in listener.address else listener.address
        parts.append(f"{who} listens on {host}:{listener.port}")
    return "; ".join(parts)


def start_ticks(pid: int) -> int | None:
    """Return when the process started, in clock ticks since boot; None if it is gone.

    Together with the boot id this tells one process from a later one with the same number.
    """
    stat = _stat(pid)
    return int(stat[19]) if stat else None


def parent(pid: int) -> int:
    """Return the parent's pid; 0 if the process is gone."""
    stat = _stat(pid)
    return int(stat[1]) if stat else 0


def _stat(pid: int) -> list[str] | None:
    """Return the fields of `/proc/PID/stat` after the command's name, which may hold anything."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def boot_id() -> str:
    """Return the kernel's name for the time since the last boot."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def family_of(*, environment: bytes, sessions: Collection[int] = ()) -> list[int]:
    """Return the living processes that belong to an instance or a daemon.

    A process belongs if it was started with `environment` (`KEY=value`; inherited by every
    descendant, even one that has left its session), or is in one of `sessions` (for programs that
    write over their environment). Zombies don't count, nor does the asking process.
    """
    found = []
    for pid in pids():
        if pid == os.getpid():
            continue
        stat = _stat(pid)
        if not stat or stat[0] in "ZX":
            continue
        if int(stat[3]) in sessions or environment in _environment(pid):
            found.append(pid)
    return found


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def established(family: Collection[int], ports: Collection[int]) -> int:
    """Return how many connections on these local ports the processes hold."""
    held: set[int] = set()
    for pid in family:
        held |= sockets_of(pid)
    return sum(
        1
        for _, port, state, inode in _tcp_sockets()
        if state == _ESTABLISHED and port in ports and inode in held
    )


# Socket diagnosis over netlink: linux/sock_diag.h and linux/inet_diag.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_FLAG = 1
_ALL_STATES = 0xFFFFFFFF
_NO_COOKIE = 0xFFFFFFFF
_MESSAGE_HEADER = struct.Struct("=IHHII")
_REQUEST_HEADER = struct.Struct("=BBBBI")
_INODE_OFFSET = _MESSAGE_HEADER.size + 4 + 48 + 16


def accepted_inode(client: socket.socket) -> int:
    """Return the inode of the server's end of a local connection; 0 while nobody accepted it.

    Raises OSError where the kernel does not answer.
    """
    family = client.family
    server, own = client.getpeername(), client.getsockname()
    sock_id = (
        struct.pack("!HH", server[1], own[1])
        + socket.inet_pton(family, server[0]).ljust(16, b"\0")
        + socket.inet_pton(family, own[0]).ljust(16, b"\0")
        + struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE)
    )
    body = _REQUEST_HEADER.pack(family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES) + sock_id
    header = _MESSAGE_HEADER.pack(
        _MESSAGE_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_FLAG, 1, 0
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1)
        netlink.send(header + body)
        answer = netlink.recv(8192)
    if _MESSAGE_HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return 0  # the kernel knows no such connection (any more)
    return int(struct.unpack_from("=I", answer, _INODE_OFFSET)[0])
