"""What becomes of clients that connect during a hold: whether any is refused, lost or overtaken.

Each is a connection of its own to the public port of a real daemon, and asks at once. The worker
answers with how many it has served, one after the other, so the answers show the order.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from rich.table import Table

from scripts.benchmarks.result import Options, Result
from tests.harness import DaemonProcess, Setting

WORKER = """
import os, socket, sys, itertools
port = int(sys.argv[1]) if sys.argv[1:] else 0
listener = socket.create_server(("127.0.0.1", port)) if port else None
listeners = [listener] if listener else [socket.socket(fileno=fd) for fd in (3, 4)]
import selectors
waiting = selectors.DefaultSelector()
for each in listeners:
    each.listen(4096)
    each.setblocking(False)
    waiting.register(each, selectors.EVENT_READ)
count = 0
while True:
    for key, _ in waiting.select():
        try:
            connection, _ = key.fileobj.accept()
        except BlockingIOError:
            continue
        with connection:
            connection.setblocking(True)
            request = connection.recv(65536)
            count += request.startswith(b"GET /client")
            body = b"%d" % count
            head = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n"
            try:
                connection.sendall(head % len(body) + body)
            except OSError:
                pass
"""
COMMANDS = {"kernel": "python -S counting.py", "relay": "python -S counting.py {port}"}
ARRIVING = 0.8
"""In so much of the hold the clients come, evenly."""
GIVEN_UP_SECONDS = 60.0


@dataclass
class Clients:
    """What became of them."""

    sent: int = 0
    refused: int = 0
    lost: int = 0
    numbers: list[int] = field(default_factory=list)
    """Of each client's answer, in the order in which they connected."""
    answered: float = 0.0
    """When the last one was answered."""

    @property
    def overtaken(self) -> int:
        return sum(first > second for first, second in pairwise(self.numbers))


async def run(options: Options) -> Result:
    clients, seconds = options.count or 1000, options.seconds or 5.0
    found = {}
    for plane in COMMANDS:
        for killed in (False, True):
            name = f"{plane} plane{', the daemon killed in the middle' if killed else ''}"
            found[name] = await held(plane, clients, seconds, killed=killed)
    shown = Table(title=f"{clients:,} clients through a hold of {seconds:g} s")
    for column in ("", *next(iter(found.values()))):
        shown.add_column(column, justify="right" if column else "left")
    for name, facts in found.items():
        shown.add_row(name, *map(str, facts.values()))
    return Result(
        [shown],
        found,
        ["a killed daemon's hold ends with the next one's start, half of the time after the kill"],
    )


async def held(plane: str, count: int, seconds: float, *, killed: bool) -> dict[str, float]:
    settings: dict[str, Setting] = {"WORKER_COMMAND": COMMANDS[plane], "HEALTH_PATH": "/"}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        async with DaemonProcess.running(
            Path(name), settings, files={"counting.py": WORKER}
        ) as daemon:
            return await _held(daemon, count, seconds, killed=killed)


async def _held(
    daemon: DaemonProcess, count: int, seconds: float, *, killed: bool
) -> dict[str, float]:
    answer = await daemon.request("POST", "/traffic/hold", json={"max_seconds": seconds})
    if answer.status != 200:
        raise RuntimeError(f"nothing is held: {answer}")
    began, clients = time.monotonic(), Clients()
    asking = asyncio.create_task(arrive(daemon.public_port, count, seconds * ARRIVING, clients))
    released = began + seconds
    if killed:
        await asyncio.sleep(seconds / 2)
        await daemon.kill()
        await asyncio.sleep(seconds / 2)
        released = time.monotonic()
        await daemon.start()
    await asking
    return {
        "sent": clients.sent,
        "refused": clients.refused,
        "lost": clients.lost,
        "overtaken": clients.overtaken,
        "last answer, s after the release or the next start": round(clients.answered - released, 2),
    }


async def arrive(port: int, count: int, seconds: float, clients: Clients) -> None:
    """Connect one client after the other, evenly, and wait until all are answered or lost."""
    began, asked = time.monotonic(), []
    for number in range(count):
        await asyncio.sleep(max(0.0, began + seconds * number / count - time.monotonic()))
        clients.sent += 1
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            clients.refused += 1
            continue
        writer.write(b"GET /client HTTP/1.1\r\nHost: localhost\r\n\r\n")
        asked.append(asyncio.create_task(number_of(reader, writer)))
    for each in asked:
        try:
            clients.numbers.append(await asyncio.wait_for(each, GIVEN_UP_SECONDS))
        except (OSError, ValueError, TimeoutError):
            clients.lost += 1
    clients.answered = time.monotonic()


async def number_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """Return the number in the answer. Raises OSError or ValueError if it is not whole."""
    try:
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        if b" 200 " not in head:
            raise ValueError(head)
        return int(body)
    finally:
        writer.close()
