"""What many watchers of `GET /deploy/events` cost a deploy and the daemon, some of them stuck.

Rounds without and with watchers alternate in one run. A stuck watcher asks for the whole journal
and never reads an answer, so its connection is full from the start.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from scripts.benchmarks.footprint import sample
from scripts.benchmarks.result import Options, Result, summary, summary_table
from tests.harness import DaemonProcess, write_release

READING, STUCK = 180, 20
_SMALL_BUFFER = 4096
_READY_SECONDS = 30.0


async def run(options: Options) -> Result:
    rounds, count = options.rounds or 5, options.count or 10
    alone: list[float] = []
    watched: list[float] = []
    memory: list[int] = []
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        async with DaemonProcess.running(Path(name), {"HEALTH_PROBES": 1}) as daemon:
            await deploys(daemon, count)  # a journal for the stuck ones to choke on
            memory.append(sample(daemon, 0).resident)
            for _ in range(rounds):
                alone += await deploys(daemon, count)
                async with watchers(daemon) as events:
                    watched += await deploys(daemon, count)
                    memory.append(sample(daemon, 0).resident)
                    heard = events()
            memory.append(sample(daemon, 0).resident)
    rows = {"no watchers": summary(alone), f"{READING} read, {STUCK} do not": summary(watched)}
    title = f"a deploy's own steps, {len(alone)} deploys each"
    return Result(
        [summary_table(title, "ms", rows)],
        {"milliseconds": rows, "resident_kib": memory, "events_heard_last_round": heard},
        [
            f"the median with watchers is {ratio(rows):.2f} times that without",
            "resident, MB: " + ", ".join(f"{kib * 1024 / 1e6:.1f}" for kib in memory),
            f"events heard by all who read, in the last round: {heard}",
        ],
    )


def ratio(rows: dict[str, dict[str, float]]) -> float:
    alone, watched = (row["median"] for row in rows.values())
    return watched / alone


async def deploys(daemon: DaemonProcess, count: int) -> list[float]:
    """Deploy in a row, each to its end; return the times of the steps up to the switch, in ms."""
    took = []
    for _ in range(count):
        write_release(daemon.worker_directory, f"v{time.monotonic_ns()}")
        answer = await daemon.deploy()
        if answer.status != 200:
            raise RuntimeError(f"a deploy was not done: {answer}")
        await daemon.ended(answer.json["deploy_id"])
        took.append(sum(step["duration_ms"] for step in answer.json["steps"]))
    return took


class Watcher:
    """One client in plain bytes, so that the client's own work is small."""

    def __init__(self) -> None:
        self.events = 0

    async def watch(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request(port, "/deploy/events"))
            while chunk := await reader.read(65536):
                self.events += chunk.count(b"event: transition")
        finally:
            writer.close()


def request(port: int, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()


def stuck(port: int) -> socket.socket:
    """Return a connection that asks for everything and takes nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
    sock.connect(("127.0.0.1", port))
    sock.sendall(request(port, "/deploy/events?after=0"))
    return sock


@asynccontextmanager
async def watchers(daemon: DaemonProcess) -> AsyncIterator[Callable[[], int]]:
    """Have all of them there; yields a function that returns how many events were heard."""
    port = daemon.control_port
    all_of_them = [Watcher() for _ in range(READING)]
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for _ in range(STUCK):
            stack.enter_context(stuck(port))
        tasks = [group.create_task(each.watch(port)) for each in all_of_them]
        deadline = time.monotonic() + _READY_SECONDS
        while not all(each.events for each in all_of_them):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not everybody heard of a deploy within {_READY_SECONDS} s")
            await deploys(daemon, 1)
        yield lambda: sum(each.events for each in all_of_them)
        for task in tasks:
            task.cancel()
