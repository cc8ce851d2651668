"""Reports the state of this process to the supervisor (or systemd), over `NOTIFY_SOCKET`.

A message that can't be delivered is dropped: a worker must work without a receiver.
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

# The queue of a supervisor that is stopped fills up: the wait for it is short.
_SEND_TIMEOUT = 0.5


class Notifier:
    """Sends sd_notify messages to one address; None sends nothing."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Remove the address from the environment, so that no child process uses it."""
        return cls(environ.pop(ENV_NOTIFY_SOCKET, None) or None)

    def ready(self) -> bool:
        """Report that requests are answered, by a worker that drains as the kit does."""
        return self.send(NOTIFY_READY, NOTIFY_KIT)

    def stopping(self) -> bool:
        """Report that the drain has started."""
        return self.send(NOTIFY_STOPPING)

    def not_accepting(self, *, wait: bool = True) -> bool:
        """Report that no connection is accepted: another instance may serve this slot."""
        return self.send(NOTIFY_NOT_ACCEPTING, timeout=_SEND_TIMEOUT if wait else 0.0)

    def left(self, counts: Mapping[str, int]) -> bool:
        """Report the remaining work. Never waits, because it is sent often."""
        return self.send(NOTIFY_LEFT + json.dumps(counts), timeout=0.0)

    def cut(self, counts: Mapping[str, int]) -> bool:
        """Report exchanges that are cut at the deadline."""
        return self.send(NOTIFY_CUT + json.dumps(counts))

    def send(self, *lines: str, timeout: float = _SEND_TIMEOUT) -> bool:
        """Send the lines as one message; return whether the kernel accepted it. Never raises.

        `timeout` is the wait for room in the receiver's queue, in seconds.
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
