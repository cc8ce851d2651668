"""Hears what a worker says about itself: the sd_notify protocol on a socket of its own.

Each instance gets an abstract socket with an unguessable name; there is no file to clean up, and
messages from other users are ignored.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct

import anyio

from worker.contract import NOTIFY_KIT, NOTIFY_READY

_MESSAGE_LIMIT = 4096
_MESSAGES_PER_WAKE = 16  # a worker that never stops talking must not hold up the daemon
_CREDENTIALS = struct.Struct("=iII")


class NotifySocket:
    """Listens for one instance. `ready` and `kit` tell what it has said so far."""

    def __init__(self, instance: str) -> None:
        self.ready = anyio.Event()
        self.kit = False
        self.address = f"@atlas-notify-{instance}"
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind("\0" + self.address[1:])
        except OSError:
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    def _read(self) -> None:
        for _ in range(_MESSAGES_PER_WAKE):
            try:
                data, ancillary, _flags, _sender = self._socket.recvmsg(
                    _MESSAGE_LIMIT, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except (BlockingIOError, InterruptedError):
                return
            if _sender_uid(ancillary) in {0, os.getuid()}:
                self._hear(data.decode(errors="replace").splitlines())

    def _hear(self, lines: list[str]) -> None:
        self.kit = self.kit or NOTIFY_KIT in lines
        if NOTIFY_READY in lines:
            self.ready.set()

    def close(self) -> None:
        """Listen no more."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()


def _sender_uid(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return int(_CREDENTIALS.unpack_from(data)[1])
    return None
