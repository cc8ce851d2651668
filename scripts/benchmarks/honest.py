"""An honest client with the token over TCP, and one on the Unix socket, that measure their answers.

A process of its own. Arguments: the Unix socket, the TCP port, the token, for how many seconds. It
prints, as JSON, the milliseconds of each answer by the way that it took, and null for each request
that was not answered.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
from collections.abc import Callable

from scripts.benchmarks.asker import PAUSE_SECONDS, UnixConnection

PATH = "/deploy/status"
TIMEOUT_SECONDS = 5.0

Connect = Callable[[], http.client.HTTPConnection]


class Way:
    """Requests on connections of one kind: a new one for each, or one that is kept."""

    def __init__(self, connect: Connect, token: str, *, keep: bool) -> None:
        self._connect = connect
        self._headers = {"Authorization": f"Bearer {token}"}
        self._keep = keep
        self._connection: http.client.HTTPConnection | None = None
        self.took: list[float | None] = []

    def ask(self) -> None:
        """Send a request, and note how long its answer took."""
        began = time.perf_counter()
        connection, self._connection = self._connection or self._connect(), None
        connection.timeout = TIMEOUT_SECONDS
        try:
            connection.request("GET", PATH, headers=self._headers)
            with connection.getresponse() as response:
                response.read()
            answered = response.status == 200
        except (OSError, http.client.HTTPException):
            answered = False
        self.took.append((time.perf_counter() - began) * 1000 if answered else None)
        if answered and self._keep:
            self._connection = connection
        else:
            connection.close()


class TimedUnixConnection(UnixConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_SECONDS)
        self.sock.connect(self._path)


def main() -> None:
    path, port, token, seconds = sys.argv[1:]

    def tcp() -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", int(port), timeout=TIMEOUT_SECONDS)

    def unix() -> http.client.HTTPConnection:
        return TimedUnixConnection(path)

    ways = {
        "TCP, new": Way(tcp, token, keep=False),
        "TCP, kept": Way(tcp, token, keep=True),
        "Unix, new": Way(unix, token, keep=False),
        "Unix, kept": Way(unix, token, keep=True),
    }
    deadline = time.monotonic() + float(seconds)
    while time.monotonic() < deadline:
        for way in ways.values():
            way.ask()
            time.sleep(PAUSE_SECONDS)
    json.dump({name: way.took for name, way in ways.items()}, sys.stdout)


if __name__ == "__main__":
    main()
