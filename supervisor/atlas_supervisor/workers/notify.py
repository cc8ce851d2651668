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
from pydantic import ValidationError

from atlas_supervisor.model.drain import DrainCounts
from atlas_worker.contract import (
    NOTIFY_CUT,
    NOTIFY_KIT,
    NOTIFY_LEFT,
    NOTIFY_NOT_ACCEPTING,
    NOTIFY_READY,
)

_MESSAGE_LIMIT = 4096
_MESSAGES_PER_WAKE = 16  # a worker that never stops talking must not hold up the daemon
_CREDENTIALS = struct.Struct("=iII")


class NotifySocket:
    """Listens for one instance. The public attributes tell what it has said so far."""

    def __init__(self, instance: str) -> None:
        self.ready = anyio.Event()
        self.kit = False
        self.not_accepting = anyio.Event()
        """Set once it takes no more connections; it never goes back on that."""
        self.left: DrainCounts | None = None
        """What it still had when it last said so."""
        self.most: DrainCounts | None = None
        """The most of each kind that it has told of."""
        self.cut: DrainCounts | None = None
        """What it cut off at its hard deadline; None if it did not say that it cut anything."""
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
        if NOTIFY_NOT_ACCEPTING in lines:
            self.not_accepting.set()
        for line in lines:
            if line.startswith(NOTIFY_LEFT) and (left := _counts(line, NOTIFY_LEFT)):
                self.left = left
                self.most = left.most(self.most)
            elif line.startswith(NOTIFY_CUT):
                self.cut = _counts(line, NOTIFY_CUT) or self.cut

    def close(self) -> None:
        """Hear what it said last, and listen no more."""
        if self._socket.fileno() >= 0:
            self._read()
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()


def _counts(line: str, prefix: str) -> DrainCounts | None:
    """Return what a worker counted; None for anything but counts: a worker is not trusted."""
    try:
        return DrainCounts.model_validate_json(line.removeprefix(prefix))
    except ValidationError:
        return None


def _sender_uid(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return int(_CREDENTIALS.unpack_from(data)[1])
    return None
