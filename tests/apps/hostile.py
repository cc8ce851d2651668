"""A worker that abuses what it inherits: it does what the path of a request names.

By socket activation: descriptor 3 is its slot's public listener, 4 its own port's, 5 the public
listener of the other slot. `/steal` attaches a steering program that sends everything to it,
`/detach` detaches the program, `/lock` locks the filters of both public sockets, `/swallow` steals
and accepts nothing any more, `/shutdown` ends the other slot's listener. Each answers how that
went. Every other path answers with slot and version. With the file `in_gates` in its folder it does
that once its gates have begun: at the second request for its health.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import struct
import threading

SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF, SO_LOCK_FILTER = 51, 68, 44
RETURN = 0x06

PUBLIC = socket.socket(fileno=3)
OWN = socket.socket(fileno=4)
OTHER = socket.socket(fileno=5)
MINE = 0 if os.environ["ATLAS_SLOT"] == "blue" else 1
LISTENING = [PUBLIC, OWN]
IN_GATES: list[str] = []
SEEN: list[str] = []


def steal() -> None:
    """Attach a program that sends every connection to this worker's slot."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", RETURN, 0, 0, MINE), 8)
    code = struct.pack("@HP", 1, ctypes.addressof(program))
    PUBLIC.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, code)


def detach() -> None:
    """Detach the program, so that the kernel spreads connections by chance."""
    PUBLIC.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 1)


def lock() -> None:
    """Lock the filters of both sockets."""
    for each in (PUBLIC, OTHER):
        each.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)


def swallow() -> None:
    """Take every connection, and answer none."""
    LISTENING.remove(PUBLIC)
    steal()


def shutdown() -> None:
    """End the other slot's listener, which takes it out of the group."""
    OTHER.shutdown(socket.SHUT_RDWR)


ATTACKS = {"/steal": steal, "/detach": detach, "/lock": lock, "/swallow": swallow}
ATTACKS["/shutdown"] = shutdown


def converse(connection: socket.socket) -> None:
    """Read one request and answer it."""
    with connection:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := connection.recv(65536)):
                return
            head += data
        path, outcome = head.split()[1].decode(), "done"
        SEEN.append(path)
        if SEEN.count("/health") > 1 and IN_GATES:
            ATTACKS[IN_GATES.pop()]()
        try:
            ATTACKS.get(path, int)()
        except OSError as error:
            outcome = str(error)
        facts = {"slot": os.environ["ATLAS_SLOT"], "version": os.environ["ATLAS_VERSION"]}
        body = json.dumps({**facts, "outcome": outcome, "pid": os.getpid()}).encode()
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        )
        connection.sendall(head + body)


def main() -> None:
    if os.path.exists("in_gates"):  # noqa: PTH110  # pathlib would double the start
        with open("in_gates", encoding="ascii") as file:  # noqa: PTH123  # the same
            IN_GATES.append(file.read().strip())
    while True:
        for each in select.select(list(LISTENING), (), (), 0.05)[0]:
            try:
                connection, _ = each.accept()
            except OSError:
                continue
            connection.setblocking(True)
            threading.Thread(target=converse, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
