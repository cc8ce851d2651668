"""Workers made of a few lines, and the slots that they run in."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from atlas_supervisor.config import Settings
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.probes.health_probe import HttpProber
from atlas_supervisor.traffic import Endpoints, InheritedSockets, Plane, make_plane
from atlas_supervisor.workers.launch import launch, new_instance_id
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.slot import Slot
from atlas_supervisor.workers.slots import Slots
from tests.harness import free_ports

BLUE, GREEN = SlotName.BLUE, SlotName.GREEN

READY = """
import os, socket
def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(text.encode(), "\\0" + os.environ["NOTIFY_SOCKET"][1:])
"""
SLEEP = "import time\nwhile True:\n    time.sleep(0.2)\n"
"""In pieces: a signal that comes just before a sleep is handled only after it."""
ANSWER = """
import os, select, socket, threading
def answer():
    listener = socket.socket(fileno=4)
    while True:
        select.select([listener], [], [])
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            continue
        with client:
            client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
if "LISTEN_FDS" in os.environ:
    threading.Thread(target=answer, daemon=True).start()
"""
"""Answers on the slot's own port alone, and takes nothing from the public queue."""
READY_AND_SLEEP = f"{READY}notify('READY=1')\n{ANSWER}{SLEEP}"
DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
SERVE = """
import os, select, socket, threading
name = os.environ["ATLAS_INSTANCE"]
answer = "\\r\\n".join((
    "HTTP/1.0 STATUS Served", f"Content-Length: {len(name)}", f"X-Atlas-Instance: {name}", "", name
)).encode()
def converse(client):
    with client:
        head = b""
        while b"\\r\\n\\r\\n" not in head:
            piece = client.recv(65536)
            if not piece:
                return
            head += piece
        client.sendall(answer)
def serve(number):
    listener = socket.socket(fileno=number)
    while True:
        select.select([listener], [], [])
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            continue
        threading.Thread(target=converse, args=(client,), daemon=True).start()
for number in range(3, 3 + int(os.environ.get("LISTEN_FDS", "1"))):
    threading.Thread(target=serve, args=(number,)).start()
"""


async def ask(port: int, request: str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n") -> str:
    """Return the whole answer; empty if the connection was closed without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request.encode())
        return (await asyncio.wait_for(reader.read(), 20)).decode()
    finally:
        writer.close()


def serving(status: int = 200) -> str:
    """Return a worker that answers every request with this status and its instance's name."""
    return SERVE.replace("STATUS", str(status))


def release(folder: Path, code: str, version: str = "v1") -> Release:
    """Return a release whose `app.py` is this code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(code)
    return Release(name=None, path=folder, version=version)


def make_settings(folder: Path, **changes: Any) -> Settings:
    blue, green, public = free_ports(3)
    values: dict[str, Any] = {
        "active_port": blue,
        "staging_port": green,
        "public_port": public,
        "worker_command": (sys.executable, "-S", "app.py"),
        "ready_timeout_seconds": 10,
        "drain_timeout_seconds": 5,
        "stop_timeout_seconds": 5,
        "smoke_file": None,
    }
    (folder / "state" / "logs").mkdir(parents=True, exist_ok=True)
    return Settings(base_dir=folder, **{**values, "state_dir": folder / "state", **changes})


@asynccontextmanager
async def launched(folder: Path, code: str, **more: Any) -> AsyncIterator[WorkerProcess]:
    """Launch a worker of this code, without sockets by default; it is gone afterwards."""
    name = new_instance_id(BLUE)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    options: dict[str, Any] = {
        "slot": BLUE,
        "release": release(folder / "release", code),
        "name": name,
        "command": [sys.executable, "-S", "app.py"],
        "environment": {"PATH": os.environ["PATH"], "ATLAS_INSTANCE": name},
        "inherited": InheritedSockets({}),
        "announce": False,
        "output": output,
    }
    try:
        instance = await launch(**{**options, **more})
    finally:
        os.close(output)
    try:
        yield instance
    finally:
        await instance.kill()


class Registry:
    """Records what is reported to it, in order."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []

    def launched(self, instance: WorkerProcess) -> None:
        self.entries.append(("launched", instance.name))

    def gone(self, instance: WorkerProcess) -> None:
        self.entries.append(("gone", instance.name))


@dataclass
class Bench:
    """Both slots on a plane of their own, and the deaths that they reported."""

    settings: Settings
    plane: Plane
    slots: Slots
    registry: Registry
    tasks: anyio.abc.TaskGroup
    down: list[tuple[SlotName, str]] = field(default_factory=list)
    downs: anyio.Event = field(default_factory=anyio.Event)
    wait_when_down: anyio.Event | None = None
    handled: bool = False
    """Whether a deploy takes care of a worker that went down."""

    @property
    def blue(self) -> Slot:
        return self.slots[BLUE]

    @property
    def green(self) -> Slot:
        return self.slots[GREEN]


class Unattended(Slots):
    """Slots that report a death and do nothing about it."""

    async def _worker_down(self, slot: Slot, _instance: WorkerProcess, cause: str) -> None:
        await self.on_worker_down(slot, cause)


@asynccontextmanager
async def bench(
    folder: Path,
    make_prober: Callable[[], HttpProber] = HttpProber,
    make_slots: type[Slots] = Unattended,
    **changes: Any,
) -> AsyncIterator[Bench]:
    """Open a plane and two slots; everything is gone afterwards."""
    settings = make_settings(folder, **changes)
    plane = make_plane(
        Endpoints(str(settings.public_host), settings.public_port, settings.slot_ports),
        settings.socket_passing,
    )
    plane.open(BLUE)
    try:
        async with make_prober() as prober, anyio.create_task_group() as tasks:

            async def on_down(slot: Slot, cause: str) -> bool:
                made.down.append((slot.name, cause))
                made.downs.set()
                if made.wait_when_down is not None:
                    await made.wait_when_down.wait()
                return made.handled

            registry = Registry()
            slots = make_slots(
                settings=settings,
                plane=plane,
                prober=prober,
                registry=registry,
                tasks=tasks,
                active=BLUE,
            )
            slots.on_worker_down = on_down
            made = Bench(settings, plane, slots, registry, tasks)
            try:
                yield made
            finally:
                with anyio.CancelScope(shield=True):
                    slots.begin_stop()
                    for slot in slots:
                        if slot.instance is not None:
                            await slot.instance.kill()
                tasks.cancel_scope.cancel()
    finally:
        await plane.close()
