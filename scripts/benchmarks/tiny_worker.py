"""A worker that starts in a moment: answers every request with 200 on the sockets handed over."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nok\n"


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
