"""Keeps the listening sockets open while there is no daemon, for a daemon without systemd.

The daemon's side is `socket_store`, which starts it. It runs outside of the package and imports as
little as it can: it lives as long as the daemon and its workers.

The protocol, over a Unix socket of records: the daemon connects, in place of the one before, and
gets a greeting with version, pid and names, and the sockets: `1 4711 public-blue own-blue`. It
sends `keep FAMILY NAMES` with the sockets to keep in place of those before, and `end`, in which all
versions agree. It ends at `end`, or when there has been no daemon for some time and no process of
the family. While a worker lives it stays: the next daemon, however late, takes over without a
refusal. The family are the upper bits of the limit of file locks that all workers carry
(`procfs.tag_for`); 0: none counts, since clients wait for the daemon.

Argument: the seconds without a daemon. Descriptor 0: the Unix socket.
"""

import _socket  # not `socket`, which would cost another megabyte
import array
import os
import select
import sys
import time

VERSION = b"1"
RECORD_BYTES, MOST_DESCRIPTORS = 4096, 64
INT_BYTES = 4
FAMILY_SHIFT = 32
LOCKS = "Max file locks"
LOOK_SECONDS = 5.0
ENDED = select.POLLIN | select.POLLHUP | select.POLLERR


class Keeper:
    """What it holds: sockets by name, and the connection of the daemon."""

    def __init__(self, listener: _socket.socket, seconds: float) -> None:
        self.listener, self.seconds = listener, seconds
        self.sockets: dict[bytes, int] = {}
        self.family = 0
        self.daemon: _socket.socket | None = None
        self.daemon_started = False
        self.deadline = time.monotonic() + seconds

    def run(self) -> None:
        """Serve until it is time to end."""
        while (wait := self.wait_ms()) != 0:
            poll = select.poll()
            poll.register(self.listener, select.POLLIN)
            if self.daemon is not None:
                poll.register(self.daemon, ENDED)
            ready = {number for number, _ in poll.poll(wait)}
            if self.daemon is not None and self.daemon.fileno() in ready:
                if not self.serve(self.daemon):
                    return
            elif self.listener.fileno() in ready:
                self.accept()

    def wait_ms(self) -> float | None:
        """Return how long to wait for something to happen; None: without limit, 0: no more."""
        if self.daemon is not None:
            return None
        left = self.deadline - time.monotonic()
        if left <= 0 and self.family and lives(self.family):
            left = min(LOOK_SECONDS, self.seconds)
        return max(0.0, left) * 1000

    def accept(self) -> None:
        """Take the daemon that connects, and give it what is kept."""
        try:
            number, _ = self.listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - `socket` hides it
        except OSError:
            return
        connection = _socket.socket(fileno=number)
        peer = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 3 * INT_BYTES)
        _, uid, _ = array.array("i", peer)
        if uid not in {0, os.geteuid()}:
            connection.close()
            return
        connection.setblocking(False)
        self.lose_daemon()
        self.daemon, self.daemon_started = connection, False
        greeting = b" ".join([VERSION, b"%d" % os.getpid(), *self.sockets])
        numbers = array.array("i", self.sockets.values())
        try:
            connection.sendmsg([greeting], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, numbers)])
        except OSError:
            return  # it has gone, and may have sent something

    def lose_daemon(self) -> None:
        """Wait for the next one; not for longer after one whose start was refused."""
        if self.daemon is not None:
            self.daemon.close()
            self.daemon = None
        if self.daemon_started:
            self.deadline = time.monotonic() + self.seconds

    def serve(self, daemon: _socket.socket) -> bool:
        """Do what the daemon asks for; return whether to go on."""
        try:
            record, descriptors = receive(daemon)
        except BlockingIOError:
            return True
        except OSError:
            record, descriptors = b"", []
        verb, family, *names = record.split() if b" " in record else (record, b"")
        if verb == b"keep" and len(names) == len(descriptors):
            self.family = int(family)
            replaced, self.sockets = self.sockets, dict(zip(names, descriptors, strict=True))
            descriptors, self.daemon_started = [*replaced.values()], True
        for number in descriptors:
            os.close(number)
        if not verb:  # it is gone
            self.lose_daemon()
        return verb != b"end"


def receive(connection: _socket.socket) -> tuple[bytes, list[int]]:
    """Return a record and its descriptors. Raises OSError."""
    space = _socket.CMSG_SPACE(MOST_DESCRIPTORS * INT_BYTES)
    record, ancillary, _, _ = connection.recvmsg(RECORD_BYTES, space, _socket.MSG_CMSG_CLOEXEC)
    return record, [number for _, _, data in ancillary for number in array.array("i", data)]


def lives(family: int) -> bool:
    """Return whether there is a process of the family; anyone may read the limits of all."""
    for pid in os.listdir("/proc"):  # noqa: PTH208  # pathlib costs memory
        if not pid.isdigit():
            continue
        try:
            with open(f"/proc/{pid}/limits") as limits, open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123  # pathlib as well
                hard = limits.read().partition(LOCKS)[2].split()[1]
                zombie = stat.read().rpartition(b") ")[2][:1] in b"ZX"
        except (OSError, IndexError):
            continue  # it is gone
        if hard.isdigit() and int(hard) >> FAMILY_SHIFT == family and not zombie:
            return True
    return False


def main() -> None:
    """Keep what the daemon sends."""
    listener = _socket.socket(fileno=0)
    listener.listen(8)  # once more: a peer sees the pid of the last to do so
    listener.setblocking(False)
    Keeper(listener, float(sys.argv[1])).run()


if __name__ == "__main__":
    main()
