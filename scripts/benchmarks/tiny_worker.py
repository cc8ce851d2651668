"""A worker that starts in a moment: answers its version on the sockets handed over."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys

VERSION = os.environ.get("ATLAS_VERSION", "ok").encode()
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
ANSWER = HEAD % len(VERSION) + VERSION


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    waiting = selectors.DefaultSelector()
    listeners = [socket.socket(fileno=3 + n) for n in range(int(os.environ["LISTEN_FDS"]))]
    for listener in listeners:
        waiting.register(listener, selectors.EVENT_READ, listener)
    while True:
        for key, _ in waiting.select():
            answer_one(key.data)


def answer_one(listener: socket.socket) -> None:
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return  # another process was faster
    with connection, contextlib.suppress(OSError):
        connection.settimeout(5)
        connection.recv(65536)
        connection.sendall(ANSWER)


main()
