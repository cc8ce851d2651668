"""Reads `/proc`: processes and their identity, their descendants, and the sockets they hold.

Also opens the files that worker processes write, and checks which process does.

A refusal can name the process in the way, a switch can check where a real connection landed, and
no process of a worker is left over.
"""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from atlas_supervisor.system import sockdiag
from atlas_supervisor.system.descriptors import is_shortage
from atlas_supervisor.system.sockdiag import TcpSocket
from atlas_supervisor.system.text import escaped
from atlas_worker.contract import ENV_STATE_DIR

_PROC = Path("/proc")
_PF_EXITING = 0x4  # of the flags in /proc/PID/stat
_MOST_PROCESSES = 100
_PIECE_BYTES = 1 << 15
_PROTOCOL = "system.sockprotoname"
"""The name under which the kernel says of a socket's descriptor what it is: `TCP`, `UNIX`, …"""


def inode_of(sock: socket.socket) -> int:
    """Return the socket's inode, which is its name in `/proc`."""
    return os.fstat(sock.fileno()).st_ino


def pids() -> Iterator[int]:
    """Yield the pid of every process."""
    for name in os.listdir(_PROC):  # noqa: PTH208  # a Path for each of thousands is the cost here
        if name.isdecimal():
            yield int(name)


def open_sockets(pid: int, *, strict: bool = False) -> dict[int, int]:
    """Return the inodes of a process's open sockets by descriptor; none if it is gone.

    `strict`: raises OSError if there is no descriptor to look with.
    """
    folder = f"/proc/{pid}/fd"
    found: dict[int, int] = {}
    try:
        names = os.listdir(folder)  # noqa: PTH208  # see above
    except OSError as error:
        if strict and is_shortage(error):
            raise
        return found
    for name in names:
        try:
            target = os.readlink(f"{folder}/{name}")  # noqa: PTH115  # see above
        except OSError:
            continue
        if target.startswith("socket:["):
            found[int(name)] = int(target[8:-1])
    return found


def sockets_of(pid: int, *, strict: bool = False) -> set[int]:
    """Return the inodes of a process's open sockets, as `open_sockets` does."""
    return set(open_sockets(pid, strict=strict).values())


def holders(inode: int) -> list[int]:
    """Return the processes that have the socket open, as far as permissions allow."""
    return holders_of({inode})


KEEPERS: set[int] = set()
"""Processes that keep our listening sockets for us (`socket_store`): none of them uses one."""


def holders_of(inodes: Collection[int]) -> list[int]:
    """Return the processes that have one of the sockets open, as far as permissions allow."""
    return [pid for pid in pids() if pid not in KEEPERS and not sockets_of(pid).isdisjoint(inodes)]


def own_listeners() -> set[int]:
    """Return the inodes of the sockets on which this process listens. Raises OSError."""
    return sockets_of(os.getpid()) & {each.inode for each in sockdiag.listeners()}


def describe(pid: int) -> str:
    """Return a process's pid and command, cut: `pid 12 (python -m http.server)`."""
    text = escaped(command_of(pid))
    return f"pid {pid} ({text[:120]})" if text else f"pid {pid}"


def command_of(pid: int) -> str:
    """Return a process's whole command line; empty if there is none."""
    try:
        return _content(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def describe_listeners(found: Collection[TcpSocket]) -> str:
    """Return the listeners with their processes, as a refusal names them.

    Workers name their supervisor's folder: they outlive it, and a start elsewhere finds them.
    """
    parts, folders = [], []
    for listener in found:
        pids = holders(listener.inode)
        who = ", ".join(map(describe, pids)) or "an unknown process"
        parts.append(f"{who} listens on {listener.place}")
        folders += [name[:200] for pid in pids if (name := variables(pid).get(ENV_STATE_DIR))]
    parts += [f"it belongs to the supervisor with STATE_DIR={escaped(each)}" for each in folders]
    return "; ".join(dict.fromkeys(parts))  # sockets of one group read alike


@dataclass(frozen=True)
class ProcessIdentity:
    """Tells one process from a later one with the same pid, also after a reboot."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return a process's identity; None if it is gone."""
        ticks = start_ticks(pid)
        return None if ticks is None else cls(pid, ticks, boot_id())

    @property
    def exists(self) -> bool:
        """Whether the pid still belongs to this process; it may be a zombie."""
        return self.boot_id == boot_id() and start_ticks(self.pid) == self.start_ticks


def start_ticks(pid: int) -> int | None:
    """Return when the process started, in clock ticks since boot; None if it is gone."""
    stat = _stat(pid)
    return int(stat[19]) if stat else None


def age_seconds(pid: int) -> float:
    """Return the age of a process, which does not depend on the wall clock; 0 if it is gone."""
    ticks = start_ticks(pid)
    if ticks is None:
        return 0.0
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"), 0.0)


def is_alive(pid: int, started: int) -> bool:
    """Whether the process with this number and these start ticks still runs; a zombie does not."""
    stat = _stat(pid)
    return stat is not None and stat[0] not in "ZX" and int(stat[19]) == started


def is_exiting(pid: int) -> bool:
    """Return whether the process is about to end, or has ended.

    It gives back its memory first: for a moment it is still alive, and has no file mapped any more.
    """
    stat = _stat(pid)
    return stat is None or stat[0] in "ZX" or bool(int(stat[6]) & _PF_EXITING)


class Zombie(NamedTuple):
    """A process that has ended and is not reaped yet."""

    session: int
    start_ticks: int


def zombie(pid: int) -> Zombie | None:
    """Return the process if it is a zombie."""
    stat = _stat(pid)
    return Zombie(int(stat[3]), int(stat[19])) if stat and stat[0] == "Z" else None


def exit_status(pid: int) -> int | None:
    """Return the wait status of a process that has ended and is not reaped yet; None otherwise."""
    stat = _stat(pid)
    return int(stat[49]) if stat and stat[0] in "ZX" and len(stat) > 49 else None


def usage(pid: int) -> tuple[int, float] | None:
    """Return a process's resident bytes and CPU seconds; None if it is gone."""
    stat = _stat(pid)
    if not stat:
        return None
    ticks = int(stat[11]) + int(stat[12])
    return int(stat[21]) * resource.getpagesize(), ticks / os.sysconf("SC_CLK_TCK")


def session(pid: int) -> int:
    """Return the process's session; 0 if the process is gone."""
    stat = _stat(pid)
    return int(stat[3]) if stat else 0


def ancestors(pid: int) -> Iterator[int]:
    """Yield the process's parent, its parent, and so on, without the first of all."""
    while (pid := parent(pid)) > 1:
        yield pid


def children(pid: int) -> list[int]:
    """Return a process's children; none if it is gone, or if the kernel does not list them."""
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  # see above
            with suppress(OSError):
                found += map(int, _content(pid, f"task/{task}/children").split())
    return found


def usage_of_tree(pid: int) -> tuple[int, float] | None:
    """Return resident bytes and CPU seconds of a process and its descendants; None if it is gone.

    CPU seconds include those of children that have ended. Of very many descendants only the first
    ones count.
    """
    memory, ticks, waiting = 0, 0, [pid]
    for each in waiting:  # which grows meanwhile
        if (stat := _stat(each)) is not None:
            memory += int(stat[21])
            ticks += sum(map(int, stat[11:15]))
            waiting += children(each)[: _MOST_PROCESSES - len(waiting)]
        elif each == pid:
            return None
    return memory * resource.getpagesize(), ticks / os.sysconf("SC_CLK_TCK")


def parent(pid: int) -> int:
    """Return the parent's pid; 0 if the process is gone."""
    stat = _stat(pid)
    return int(stat[1]) if stat else 0


def _stat(pid: int, *, strict: bool = False) -> list[str] | None:
    """Return the fields of `/proc/PID/stat` after the command's name, which may hold anything.

    None if the process is gone. `strict`: raises OSError if there is no descriptor to look with.
    """
    try:
        text = _content(pid, "stat")
    except OSError as error:
        if strict and is_shortage(error):
            raise
        return None
    return text.rpartition(b")")[2].decode(errors="replace").split()


def _content(pid: int, name: str) -> bytes:
    """Return one of the process's files. Raises OSError.

    A look reads them for each process of the machine, so without what a `Path` and a file cost.
    """
    descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.read(descriptor, _PIECE_BYTES)
        while piece := os.read(descriptor, _PIECE_BYTES):
            content += piece
    finally:
        os.close(descriptor)
    return content


def boot_id() -> str:
    """Return the kernel's random id of this boot."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def family_of(
    *,
    environment: bytes,
    beside: bytes = b"",
    sessions: Collection[int] = (),
    tag: int = 0,
    tag_mask: int = -1,
) -> list[int]:
    """Return the living processes that belong to an instance or a daemon.

    A process belongs if it carries the tag; if it was started with `environment` (`KEY=value`) and
    with something that begins with `beside`; if it is in one of `sessions`; or if it descends from
    one that belongs. A program can leave its session, overwrite its environment and outlive its
    parent. It does not change its tag. Zombies and the calling process don't count. Raises OSError
    if there is no descriptor to look with.
    """
    found: set[int] = set()
    offspring: dict[int, list[int]] = {}
    for pid in pids():
        if pid == os.getpid():
            continue
        stat = _stat(pid, strict=True)
        if not stat or stat[0] in "ZX":
            continue
        offspring.setdefault(int(stat[1]), []).append(pid)
        if (
            int(stat[3]) in sessions
            or (tag and tag_of(pid) & tag_mask == tag & tag_mask)
            or _started_with(pid, environment, beside)
        ):
            found.add(pid)
    reached = list(found)
    while reached:
        fresh = [child for child in offspring.get(reached.pop(), ()) if child not in found]
        found.update(fresh)
        reached += fresh
    return sorted(found)


def _started_with(pid: int, environment: bytes, beside: bytes) -> bool:
    content = _environment(pid)
    if environment not in content:  # nearly all processes
        return False
    variables = content.split(b"\0")
    return environment in variables and any(each.startswith(beside) for each in variables)


_RLIMIT_LOCKS = 10
_INSTANCE_BITS = 32
TAG_OF_DAEMON = -1 << _INSTANCE_BITS
"""The bits of a tag that all instances of one state folder share."""


def tag_for(folder: str, instance: str) -> int:
    """Return the number that all processes of an instance carry; never 0.

    It is their limit of file locks, which the kernel hands on to every descendant and has not
    enforced since Linux 2.4. Titles and environments are rewritten, sessions are left; no program
    touches this one.
    """
    of_folder = int.from_bytes(hashlib.blake2b(folder.encode(), digest_size=4).digest()) >> 2 | 1
    of_instance = int.from_bytes(hashlib.blake2b(instance.encode(), digest_size=4).digest())
    return of_folder << _INSTANCE_BITS | of_instance


def tag_of(pid: int) -> int:
    """Return the process's tag; 0 if it has none, is gone, or is not ours to look at."""
    try:
        return max(resource.prlimit(pid, _RLIMIT_LOCKS)[1], 0)
    except (OSError, ValueError):
        return 0


def send_signal(pids: Collection[int], number: int) -> None:
    """Signal the processes that still exist and that we may signal."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def environment_of(pid: int) -> list[bytes]:
    """Return the variables that the process was started with; none if it is gone or not ours."""
    return _environment(pid).split(b"\0")


def _environment(pid: int) -> bytes:
    try:
        return _content(pid, "environ")
    except OSError as error:
        if is_shortage(error):
            raise
        return b""


def variables(pid: int) -> dict[str, str]:
    """Return the environment that the process was started with, as text."""
    pairs = (each.decode(errors="replace").partition("=") for each in environment_of(pid))
    return {name: value for name, _, value in pairs}


def has_mapped(pid: int, name: str) -> bool | None:
    """Return whether the process has a file of this name mapped; None if it can't be looked at."""
    try:
        maps = (_PROC / str(pid) / "maps").read_text(errors="replace")
    except PermissionError:
        return None
    except OSError:
        return False
    return any(each.endswith(f"/{name}") for each in maps.splitlines())


def connections_of(family: Collection[int], ports: Collection[int]) -> list[sockdiag.TcpConnection]:
    """Return the connections on these local ports that the processes hold. Raises OSError."""
    held = {pid: open_sockets(pid, strict=True) for pid in family}
    listening = {each.inode for each in sockdiag.listeners()}
    # To find connections the kernel goes through a table of up to half a million places.
    if all(
        inode in listening or _is_unix_socket(pid, number)
        for pid, sockets in held.items()
        for number, inode in sockets.items()
    ):
        return []
    inodes = set().union(*(sockets.values() for sockets in held.values()))
    return [each for each in sockdiag.connections(ports) if each.inode in inodes]


def _is_unix_socket(pid: int, number: int) -> bool:
    try:
        return os.getxattr(f"/proc/{pid}/fd/{number}", _PROTOCOL).startswith(b"UNIX")
    except OSError:
        return False
