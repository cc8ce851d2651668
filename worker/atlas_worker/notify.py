"""Tell the supervisor (or systemd) how far this process is, over `NOTIFY_SOCKET`.

A message that can't be delivered is dropped: whether anybody listens must never decide whether a
worker works.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, MutableMapping

from atlas_worker.contract import (
    ENV_NOTIFY_SOCKET,
    NOTIFY_CUT,
    NOTIFY_KIT,
    NOTIFY_LEFT,
    NOTIFY_NOT_ACCEPTING,
    NOTIFY_READY,
    NOTIFY_STOPPING,
)

# A supervisor that is alive but stopped has a full queue at some point: don't wait for it long.
_SEND_TIMEOUT = 0.5


class Notifier:
    """Sends sd_notify messages to one address; None means that nobody wants them."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Take the address out of the environment, so that no child speaks in our name."""
        return cls(environ.pop(ENV_NOTIFY_SOCKET, None) or None)

    def ready(self) -> bool:
        """Say that requests are answered now, by a worker that knows how to drain."""
        return self.send(NOTIFY_READY, NOTIFY_KIT)

    def stopping(self) -> bool:
        """Say that the drain has begun."""
        return self.send(NOTIFY_STOPPING)

    def not_accepting(self) -> bool:
        """Say that no connection is accepted any more: another instance may serve this slot."""
        return self.send(NOTIFY_NOT_ACCEPTING)

    def left(self, counts: Mapping[str, int]) -> bool:
        """Say what the drain still waits for. Never waits: it is said often."""
        return self.send(NOTIFY_LEFT + json.dumps(counts), timeout=0.0)

    def cut(self, counts: Mapping[str, int]) -> bool:
        """Say what is cut off, because the drain time is over."""
        return self.send(NOTIFY_CUT + json.dumps(counts))

    def send(self, *lines: str, timeout: float = _SEND_TIMEOUT) -> bool:
        """Send the lines as one message; returns whether the kernel took it. Never raises.

        `timeout` (seconds) is how long it waits for room in the receiver's queue.
        """
        if self._address is None:
            return False
        # A leading "@" stands for the NUL byte of Linux's abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(timeout)
                sock.connect(address)
                sock.send("\n".join(lines).encode())
        except (OSError, ValueError):
            return False
        return True
