"""Keeps hostile connections open to the control API until it is ended, in one thread.

A process of its own: what it costs must not be the daemon's. Arguments: the kind, how many
connections, the TCP port. It prints a line once all have been opened. A connection that the daemon
ends is opened again at once, from an address that honest clients don't use, so that it takes none
of their ports.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
import time
from collections.abc import Callable
from itertools import cycle
from typing import NamedTuple

from scripts.benchmarks.machine import allow_many_files

SOURCES = [f"127.0.0.{number}" for number in range(2, 34)]
DRIP_SECONDS = 1.0
_SMALL_BUFFER = 4096
_POLL_SECONDS = 0.01


class Kind(NamedTuple):
    """What a connection sends at first, and what it does then."""

    opening: Callable[[int], bytes]
    drips: bytes = b""
    """Sent every second."""
    reads: bool = False
    """Whether it reads its answers, and sends its opening again after each."""


def head(port: int, line: str, *fields: str) -> bytes:
    return "\r\n".join([line, f"Host: 127.0.0.1:{port}", *fields, "", ""]).encode()


def _refused(port: int) -> bytes:
    return head(port, "POST /deploy/bluegreen HTTP/1.1", "Content-Length: 0")


def _unread(port: int) -> bytes:
    return head(port, "GET /docs/swagger-ui-bundle.js HTTP/1.1") * 8


KINDS = {
    "silent": Kind(lambda _port: b""),
    "dripped header": Kind(lambda port: head(port, "GET /livez HTTP/1.1")[:-2] + b"X: ", b"a"),
    "announced body": Kind(lambda port: head(port, "GET /livez HTTP/1.1", "Content-Length: 60000")),
    "unread answers": Kind(_unread),
    "event streams": Kind(lambda port: head(port, "GET /deploy/events?after=0 HTTP/1.1")),
    "refused posts": Kind(_refused, reads=True),
}


class Attack:
    """One kind of attack by a number of connections."""

    def __init__(self, kind: str, port: int) -> None:
        self._kind = KINDS[kind]
        self._opening = self._kind.opening(port)
        self._address = ("127.0.0.1", port)
        self._sources = cycle(SOURCES)
        self._poll = select.epoll()
        self._connecting: dict[int, socket.socket] = {}
        self._open: dict[int, socket.socket] = {}
        self._opened = 0

    def run(self, count: int) -> None:
        """Keep so many connections open; never returns."""
        announced, drip_at = False, time.monotonic() + DRIP_SECONDS
        while True:
            while len(self._connecting) + len(self._open) < count and self._connect():
                pass
            for descriptor, _ in self._poll.poll(_POLL_SECONDS):
                self._serve(descriptor)
            if self._kind.drips and time.monotonic() > drip_at:
                drip_at = time.monotonic() + DRIP_SECONDS
                for descriptor in list(self._open):
                    self._send(descriptor, self._kind.drips)
            if not announced and self._opened >= count:
                announced = True
                print("open", flush=True)

    def _connect(self) -> bool:
        """Begin a connection; return whether the kernel lets us."""
        sock = socket.socket()
        sock.setblocking(False)
        if not self._kind.reads:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        sock.bind((next(self._sources), 0))
        if sock.connect_ex(self._address) not in (0, errno.EINPROGRESS):
            sock.close()
            return False
        self._connecting[sock.fileno()] = sock
        self._poll.register(sock, select.EPOLLOUT)
        return True

    def _serve(self, descriptor: int) -> None:
        sock = self._connecting.pop(descriptor, None)
        if sock is not None:
            self._open[descriptor] = sock
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._ended(descriptor)
                return
            self._opened += 1
            # One that does not read wants to know of the connection's end only.
            wanted = select.EPOLLIN if self._kind.reads else select.EPOLLRDHUP
            self._poll.modify(descriptor, wanted)
            self._send(descriptor, self._opening)
        elif self._kind.reads and self._receives(self._open[descriptor]):
            self._send(descriptor, self._opening)
        else:
            self._ended(descriptor)

    def _receives(self, sock: socket.socket) -> bool:
        try:
            return bool(sock.recv(65536))
        except OSError:
            return False

    def _send(self, descriptor: int, data: bytes) -> None:
        try:
            self._open[descriptor].send(data)
        except BlockingIOError:
            pass
        except OSError:
            self._ended(descriptor)

    def _ended(self, descriptor: int) -> None:
        sock = self._open.pop(descriptor)
        self._poll.unregister(sock)
        sock.close()


def main() -> None:
    kind, count, port = sys.argv[1:]
    allow_many_files()
    Attack(kind, int(port)).run(int(count))


if __name__ == "__main__":
    main()
