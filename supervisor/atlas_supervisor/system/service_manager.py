"""Reports the daemon's state to systemd, as sd_notify(3) defines it.

It looks at the state a few times in a second, and reports a change. A sign of life goes out several
times within the watchdog's time. They stop when the event loop hangs or the database can't be read.
Then systemd kills the daemon and starts the next one, and workers serve on. Without `NOTIFY_SOCKET`
nothing is sent.

systemd also stores the listening sockets (`FileDescriptorStoreMax=` in the unit), so that the next
daemon gets them back even if no worker lives. A socket that it has under another name counts as
stored: a name that is wrong by now is removed first.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress

import anyio
import structlog

from atlas_supervisor.errors import AtlasError

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.2
_BEAT_SECONDS = 10.0
"""The longest pause between two signs of life."""
_BEATS = 3
"""So many fit into the time after which systemd takes the daemon for hung."""
_STATUS_LENGTH = 300
_RELOAD_SECONDS = 60.0
_STORE_SECONDS = 1.0
"""The longest wait for systemd to take one socket."""


class ServiceManager:
    """The connection to the service manager that started this process, if one did."""

    def __init__(self, environ: Mapping[str, str] = os.environ, *, reloaded: bool = False) -> None:
        """Begin to report; a daemon that was `reloaded` had been ready before."""
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog_seconds = _watchdog_seconds(environ)
        self._beat_seconds = min(_BEAT_SECONDS, self._watchdog_seconds / _BEATS)
        self._ready = self._reloaded = reloaded
        self._reloading = False
        self.stopping = False
        """Whether the daemon stops, which takes as long as its drains."""

    @property
    def present(self) -> bool:
        """Whether there is a service manager."""
        return bool(self._address)

    def store(self, sockets: Mapping[str, socket.socket], unused: Iterable[str]) -> None:
        """Have these sockets stored under their names, and nothing under the unused ones."""
        for name in sorted(unused):
            self._send(["FDSTOREREMOVE=1", f"FDNAME={name}"], seconds=_STORE_SECONDS)
        for name, sock in sockets.items():
            lines = ["FDSTORE=1", f"FDNAME={name}", "FDPOLL=0"]  # else a shutdown would remove it
            if not self._send(lines, [sock.fileno()], seconds=_STORE_SECONDS):
                log.warning("socket_not_stored", name=name)

    def barrier(self) -> None:
        """Wait until systemd has processed all messages, for a moment at most."""
        ours, its = os.pipe()
        try:
            sent = self._send(["BARRIER=1"], [its], seconds=_STORE_SECONDS)
        finally:
            os.close(its)
        if sent:
            select.select([ours], [], [], _STORE_SECONDS)  # until the other end is closed
        os.close(ours)

    def refused(self, why: str) -> None:
        """Report why the daemon can't start."""
        self._send([_status_line(why)])

    def reloading(self) -> None:
        """Report that the daemon is about to be replaced in place; the next one reports ready.

        Until then nothing is sent, so the watchdog has more time.
        """
        self._reloading = True
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(["RELOADING=1", f"MONOTONIC_USEC={now}", *self._watchdog(_RELOAD_SECONDS)])

    def reload_ended(self) -> None:
        """Report that the daemon was not replaced."""
        self._reloading = False
        self._send([*self._phase(), *self._watchdog()])

    async def run(
        self,
        serves: Callable[[], bool],
        status: Callable[[], str],
        answers: Callable[[], Awaitable[object]],
    ) -> None:
        """Report until cancelled: ready once a worker serves, and `status`, a line.

        `answers` raises AtlasError, or does not return, if a restart is the better state.
        """
        if not self._address:
            return
        if self._reloaded:
            self._send(self._watchdog())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._beat, answers)
            last: list[str] = []
            while True:
                self._ready = self._ready or serves()
                text = f"stopping; {status()}" if self.stopping else status()
                if (lines := [*self._phase(), _status_line(text)]) != last:
                    self._send(lines)
                last = lines
                await anyio.sleep(_LOOK_SECONDS)

    async def _beat(self, answers: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await answers()
            except AtlasError as error:
                log.error("watchdog_withheld", why=str(error))
            else:
                self._send([*self._phase(), *(["WATCHDOG=1"] if self._ready else [])])
            await anyio.sleep(self._beat_seconds)

    def _watchdog(self, least_seconds: float = 0.0) -> list[str]:
        """Return the lines that set the watchdog's time; none if the daemon is not watched."""
        if self._watchdog_seconds == float("inf"):
            return []
        seconds = max(self._watchdog_seconds, least_seconds)
        return [f"WATCHDOG_USEC={seconds * 1e6:.0f}", "WATCHDOG=1"]

    def _phase(self) -> list[str]:
        """Return the lines for where the daemon is; a start or a stop is extended."""
        seconds = max(_BEAT_SECONDS, self._beat_seconds) * _BEATS
        extension = f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}"
        if self.stopping:
            return ["STOPPING=1", extension]
        if self._reloading:
            return [extension]
        return ["READY=1" if self._ready else extension]

    def _send(
        self, lines: list[str], descriptors: Iterable[int] = (), *, seconds: float = 0
    ) -> bool:
        """Send a message, or drop it after so many seconds; return whether it was sent."""
        if not self._address:
            return False
        address = self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.settimeout(seconds)
            out.connect("\0" + address[1:] if address.startswith("@") else address)
            socket.send_fds(out, ["\n".join(lines).encode(errors="replace")], [*descriptors])
            return True
        return False


def _status_line(text: str) -> str:
    return f"STATUS={' '.join(text.split())[:_STATUS_LENGTH]}"


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    """Return the time after which a silent daemon is killed; endless if it is not watched."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return float("inf")
    with suppress(ValueError):
        return int(environ.get("WATCHDOG_USEC", "")) / 1e6 or float("inf")
    return float("inf")
