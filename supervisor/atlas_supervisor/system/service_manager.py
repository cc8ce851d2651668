"""Reports the daemon's state to systemd, as sd_notify(3) defines it.

Every message holds the whole state, so that one that is lost is made good by the next. Messages
go out when something changes, and in any case several times within the watchdog's time. They stop
when the event loop hangs or the database can't be read. Then systemd kills the daemon and starts
the next one, and workers serve on. Without `NOTIFY_SOCKET` nothing is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import anyio
import structlog

from atlas_supervisor.errors import AtlasError

log = structlog.get_logger(__name__)

_BEAT_SECONDS = 10.0
"""The longest pause between two messages."""
_BEATS = 3
"""So many fit into the time after which systemd takes the daemon for hung."""
_STATUS_LENGTH = 300


class ServiceManager:
    """The connection to the service manager that started this process, if one did."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._beat_seconds = min(_BEAT_SECONDS, _watchdog_seconds(environ) / _BEATS)
        self._ready = self._stopping = False
        self._news = anyio.Event()

    def ready(self) -> None:
        """Report that a worker serves."""
        self._ready = True
        self.changed()

    def stopping(self) -> None:
        """Report that the daemon stops, which takes as long as its drains."""
        self._stopping = True
        self.changed()

    def changed(self) -> None:
        """Report the state soon: it may be another one."""
        self._news.set()

    def refused(self, why: str) -> None:
        """Report why the daemon can't start."""
        self._send([_status_line(why)])

    async def run(
        self, answers: Callable[[], Awaitable[object]], status: Callable[[], str]
    ) -> None:
        """Report until cancelled: `status` in one line, and all else as long as `answers` does.

        `answers` raises AtlasError, or does not return, if a restart is the better state.
        """
        if not self._address:
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._report_changes, status)
            while True:
                try:
                    await answers()
                except AtlasError as error:
                    log.error("watchdog_withheld", why=str(error))
                else:
                    self._send([*self._state(status), *(["WATCHDOG=1"] if self._ready else [])])
                await anyio.sleep(self._beat_seconds)

    async def _report_changes(self, status: Callable[[], str]) -> None:
        while True:
            self._news = anyio.Event()
            self._send(self._state(status))
            await self._news.wait()

    def _state(self, status: Callable[[], str]) -> list[str]:
        if self._stopping:
            return ["STOPPING=1", self._extension(), _status_line(f"stopping; {status()}")]
        return ["READY=1" if self._ready else self._extension(), _status_line(status())]

    def _extension(self) -> str:
        """Return the line that extends systemd's limit on a start or a stop."""
        seconds = max(_BEAT_SECONDS, self._beat_seconds) * _BEATS
        return f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}"

    def _send(self, lines: list[str]) -> None:
        """Send a message, or drop it: nothing waits for the service manager."""
        if not self._address:
            return
        address = self._address
        flags = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with suppress(OSError), socket.socket(socket.AF_UNIX, flags) as out:
            message = "\n".join(lines).encode(errors="replace")
            out.sendto(message, "\0" + address[1:] if address.startswith("@") else address)


def _status_line(text: str) -> str:
    return f"STATUS={' '.join(text.split())[:_STATUS_LENGTH]}"


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    """Return the time after which a silent daemon is killed; endless if it is not watched."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return float("inf")
    with suppress(ValueError):
        return int(environ.get("WATCHDOG_USEC", "")) / 1e6 or float("inf")
    return float("inf")
