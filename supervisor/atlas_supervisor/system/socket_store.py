"""Where the listening sockets are kept for the next daemon: in systemd, or in a process of our own.

Workers hold sockets too, which can be copied from them. But not where tracing is restricted, not if
all workers died with the daemon, and the relay's public port is in no worker. What is kept here
survives all of it: connections wait in the queue, and none is refused.

systemd's store comes with `NOTIFY_SOCKET`. Else a keeper is started (`socket_keeper`), unless the
daemon is pid 1, with which everything ends. The daemon stays connected to it, and starts another
one if it ends. The lock of the state folder sees to it that there is one daemon, and so one keeper;
each side looks at the other's uid.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from importlib.util import cache_from_source
from pathlib import Path

import structlog

from atlas_supervisor.system import procfs, socket_keeper
from atlas_supervisor.system.files import short_name
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.system.service_manager import ServiceManager
from atlas_supervisor.system.socket_keeper import (
    FAMILY_SHIFT,
    MOST_DESCRIPTORS,
    RECORD_BYTES,
    VERSION,
)
from atlas_supervisor.system.threads import in_thread

log = structlog.get_logger(__name__)

KEEPER_SOCKET = "keeper.sock"
_ALONE_SECONDS = 60.0
"""How long a keeper waits for a daemon where no worker accepts; clients wait as long."""
_ANSWER_SECONDS = 1.0
_RESTART_SECONDS = 1.0
_PLANES = ("public", "own-", "reserved-")
"""What the names of the plane's sockets begin with; others are for the API and the lock."""
_PEER = struct.Struct("3i")


class SocketStore:
    """What is kept for the next daemon, and by what."""

    def __init__(
        self,
        folder: Path,
        manager: ServiceManager,
        passed: PassedSockets,
        *,
        reloaded: bool = False,
    ) -> None:
        """Add what a keeper has to what was passed.

        `reloaded`: that came from the daemon before, with much that systemd has not stored.
        """
        self._manager = manager
        self._stored = frozenset(
            each for each in passed.identities if each[0].startswith(_PLANES) or not reloaded
        )
        self._keeper = Keeper(folder / KEEPER_SOCKET)
        self._keeper.fetch(passed)

    async def drop_misplaced(
        self, passed: PassedSockets, addresses: Mapping[str, tuple[str, int]]
    ) -> None:
        """Close what is not on the address that its name has by now: it would be in the way.

        The rest is ours alone then, and kept again by `keep`: workers on the other address may have
        to end, and then nothing is taken back.
        """
        dropped = [
            name
            for name in sorted(passed.names)
            if name.startswith(_PLANES) and not _is_at(passed, name, addresses.get(name))
        ]
        if dropped:
            log.warning("kept_sockets_dropped", names=dropped, why="the settings were changed")
            self._manager.store({}, {name for name, _ in self._stored})
            self._stored = frozenset()
            await in_thread(self._manager.barrier)
            await self._keeper.end()

    async def keep(self, sockets: Mapping[str, socket.socket], tag: int) -> None:
        """Have these sockets kept, and no others.

        A keeper without a daemon stays for long only while processes with the daemon's tag live.
        """
        if self._manager.present:
            await self._keeper.end()
            wanted = {(name, os.fstat(sock.fileno()).st_ino) for name, sock in sockets.items()}
            self._manager.store(sockets, {name for name, _ in self._stored - wanted})
            self._stored = frozenset(wanted)
        elif os.getpid() != 1:
            self._keeper.keep(sockets, tag)

    async def empty(self) -> None:
        """Have nothing kept any more: the daemon stops, and its next start is a fresh one."""
        self._manager.store({}, {name for name, _ in self._stored})
        await self._keeper.end()

    def close(self) -> None:
        """Leave what is kept to the next daemon."""
        self._keeper.disconnect()


def _is_at(passed: PassedSockets, name: str, address: tuple[str, int] | None) -> bool:
    """Return whether the socket is on the address. It is closed if it is not."""
    sock = passed.take(name, shared=True)
    if sock is None:
        return False
    if sock.type == socket.SOCK_STREAM and sock.getsockname()[:2] == address:
        passed.put(name, sock.detach())
        return True
    sock.close()
    return False


class Keeper:
    """The daemon's side of a keeper: starts it, names what it keeps, and ends it."""

    def __init__(self, path: Path, *, alone_seconds: float = _ALONE_SECONDS) -> None:
        self._path = path
        self._alone_seconds = alone_seconds
        self.pid: int | None = None
        """None where there is none."""
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: Mapping[str, socket.socket] = {}
        self._tag = 0

    def fetch(self, passed: PassedSockets) -> None:
        """Take what the keeper of the daemon before has, if there is one."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(_ANSWER_SECONDS)
            with short_name(self._path) as name:
                connection.connect(name)
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        except OSError:  # there is none
            connection.close()
            return
        listening_pid, uid, _ = _PEER.unpack(peer)
        greeting, descriptors = _received(connection) if uid == os.geteuid() else (b"", [])
        version, pid, *names = greeting.split() if b" " in greeting else (b"", b"")
        if version == VERSION and len(names) == len(descriptors):
            for each, descriptor in zip(names, descriptors, strict=True):
                passed.put(each.decode(), descriptor)
            self._use(connection, int(pid))
            return
        log.warning("socket_keeper_unusable", uid=uid, version=version.decode(errors="replace"))
        for descriptor in descriptors:
            os.close(descriptor)
        with suppress(OSError), connection:
            connection.send(b"end")
            _until_ended(listening_pid)

    def keep(self, sockets: Mapping[str, socket.socket], tag: int) -> None:
        """Have these kept in place of those before, from now on."""
        self._sockets, self._tag = sockets, tag
        if self._connection is None:
            self._start()
        else:
            self._send_sockets()

    async def end(self) -> None:
        """End the keeper, and wait for it."""
        pid, self._sockets = self.pid, {}
        if pid is None:
            return
        self._send(b"end", [])
        if not await in_thread(_until_ended, pid):
            log.warning("socket_keeper_killed", pid=pid)
            procfs.send_signal([pid], signal.SIGKILL)
            await in_thread(_until_ended, pid)
        if self._process is not None:
            self._process.poll()
        self.disconnect()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def disconnect(self) -> None:
        """Close the connection, by which the keeper knows that there is no daemon."""
        if self._connection is not None and self.pid is not None:
            asyncio.get_running_loop().remove_reader(self._connection)
            self._connection.close()
            procfs.KEEPERS.discard(self.pid)
        self.pid = self._connection = None

    def _start(self) -> None:
        if not self._sockets or self._connection is not None:
            return  # the daemon stops, or has started another one meanwhile
        if self._process is not None:
            self._process.poll()  # it has ended, or we would not be here
        try:
            with ExitStack() as stack:
                name = stack.enter_context(short_name(self._path))
                Path(name).unlink(missing_ok=True)
                listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                listener.bind(name)
                Path(name).chmod(0o600)
                listener.listen()
                self._process = _started(listener, self._alone_seconds)
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                connection.connect(name)
        except OSError as error:
            log.warning("socket_keeper_unavailable", why=str(error))
            return
        self._use(connection, self._process.pid)
        self._send_sockets()

    def _use(self, connection: socket.socket, pid: int) -> None:
        self.pid, self._connection = pid, connection
        procfs.KEEPERS.add(pid)
        connection.setblocking(False)
        asyncio.get_running_loop().add_reader(connection, self._read, connection)

    def _read(self, connection: socket.socket) -> None:
        """Note that the keeper has ended; what it sends of its own accord is its greeting."""
        record, descriptors = _received(connection)
        for descriptor in descriptors:
            os.close(descriptor)
        if record:
            return
        if self._sockets:
            log.warning("socket_keeper_ended", pid=self.pid)
            asyncio.get_running_loop().call_later(_RESTART_SECONDS, self._start)
        self.disconnect()

    def _send_sockets(self) -> None:
        family = self._tag >> FAMILY_SHIFT
        record = " ".join(["keep", str(family), *self._sockets]).encode()
        self._send(record, [sock.fileno() for sock in self._sockets.values()])

    def _send(self, record: bytes, descriptors: Collection[int]) -> None:
        if self._connection is not None:
            with suppress(OSError):  # it has ended, which is noticed elsewhere
                socket.send_fds(self._connection, [record], [*descriptors])


def _started(listener: socket.socket, alone_seconds: float) -> subprocess.Popen[bytes]:
    """Start a keeper, which outlives us and our terminal. Raises OSError."""
    program = Path(cache_from_source(socket_keeper.__file__))
    if not program.is_file():  # what compiles it takes another half of a megabyte for good
        program = Path(socket_keeper.__file__)
    return subprocess.Popen(
        (sys.executable, "-I", "-S", str(program), str(alone_seconds)),
        stdin=listener.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        start_new_session=True,
    )


def _until_ended(pid: int) -> bool:
    """Wait a moment for a process's end; return whether it came."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        return bool(select.select([handle], [], [], _ANSWER_SECONDS)[0])
    finally:
        os.close(handle)


def _received(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Return a record and its descriptors; an empty one if there is none."""
    try:
        record, descriptors, _, _ = socket.recv_fds(connection, RECORD_BYTES, MOST_DESCRIPTORS)
    except OSError:
        return b"", []
    return record, descriptors
