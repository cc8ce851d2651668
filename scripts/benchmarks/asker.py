"""Asks the control API one request after the other, and prints how long each took, as JSON.

A process of its own, so that what makes load and deploys is not measured with it. Arguments: the
Unix socket, the TCP port, for how many seconds, and the paths.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time

PAUSE_SECONDS = 0.005


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def ask(connection: http.client.HTTPConnection, path: str) -> float:
    """Return how long an answer took, in milliseconds; 503 is an answer, too."""
    began = time.perf_counter()
    connection.request("GET", path)
    with connection.getresponse() as response:
        response.read()
        if response.status not in {200, 503}:
            raise RuntimeError(f"GET {path} was answered with {response.status}")
    return (time.perf_counter() - began) * 1000


def main() -> None:
    path, port, seconds, *paths = sys.argv[1:]
    ways = {
        "Unix": UnixConnection(path),
        "TCP": http.client.HTTPConnection("127.0.0.1", int(port)),
    }
    took: dict[str, list[float]] = {f"{each}, {way}": [] for each in paths for way in ways}
    deadline = time.monotonic() + float(seconds)
    while time.monotonic() < deadline:
        for way, connection in ways.items():
            for each in paths:
                took[f"{each}, {way}"].append(ask(connection, each))
                time.sleep(PAUSE_SECONDS)
    json.dump(took, sys.stdout)


if __name__ == "__main__":
    main()
