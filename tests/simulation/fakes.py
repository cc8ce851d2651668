"""What plays the parts of the kernel, the processes and the network for a simulated daemon."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiosqlite
import anyio
import anyio.lowlevel
import anyio.to_thread

from atlas_supervisor.model.judgement import Judgement
from atlas_supervisor.model.probe import ProbeResult
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import ProbedResponse

if TYPE_CHECKING:
    from tests.simulation.life import Life

PORTS = {8791: SlotName.BLUE, 8792: SlotName.GREEN}


class Process:
    """A worker process, as its parent or a later daemon sees it."""

    def __init__(self, life: Life, pid: int, *, is_child: bool = True) -> None:
        worker = life.world.find(pid)
        if worker is None or (not worker.alive and not is_child):
            raise ProcessLookupError(pid)
        self.pid = pid
        self.returncode: int | None = None
        self._is_child = is_child
        self._worker, self._ended = worker, asyncio.Event()
        life.processes.setdefault(pid, []).append(self)
        if not worker.alive:
            self.end()

    def end(self) -> None:
        """Let it be known; of one that is no child the status is not."""
        self.returncode = self._worker.returncode if self._is_child else None
        self._ended.set()

    async def wait(self) -> None:
        await self._ended.wait()


class Reports:
    """What a worker reports; it stands for `NotifySocket`."""

    def __init__(self, life: Life, instance: str, *, kit: bool = False, **_: Any) -> None:
        self.address = f"@{instance}"
        self.ready = anyio.Event()
        self.not_accepting = anyio.Event()
        self.kit = kit
        self.on_change: Callable[[], object] = bool
        self.left = self.most = self.cut = None
        life.reports[instance] = self

    def hear(self, what: str) -> None:
        if what == "KIT" and not self.kit:
            self.kit = True
            self.on_change()
        elif what == "READY":
            self.ready.set()
        elif what == "NOT_ACCEPTING" and not self.not_accepting.is_set():
            self.not_accepting.set()
            self.on_change()

    def read_from(self, _pid: int) -> None:
        """Do nothing: no other process reports."""

    def close(self) -> None:
        """Do nothing: there is no socket."""


class Connection:
    """An open connection of a worker."""

    peer = ("127.0.0.1", 40000)

    def busy(self, _quiet_seconds: float) -> bool:
        return True


class Processes:
    """What the daemon reads of `/proc`, and the signals that it sends."""

    TAG_OF_DAEMON = 0

    def __init__(self, life: Life) -> None:
        self._life = life

    def send_signal(self, pids: Collection[int], number: int) -> None:
        if not self._life.dead:
            self._life.effect("signal")
            for pid in () if self._life.loop.killed else pids:
                self._life.world.signal(pid, number)

    def family_of(self, *, sessions: Collection[int], **_: Any) -> list[int]:
        return [each.pid for each in self._life.world.living if each.pid in sessions]

    def connections_of(self, pids: Collection[int], _ports: Collection[int]) -> list[Connection]:
        found = (self._life.world.find(pid) for pid in pids)
        busy = [each for each in found if each and each.alive and each.draining]
        return [Connection() for _ in busy]

    def age_seconds(self, pid: int) -> float:
        worker = self._life.world.find(pid)
        return self._life.world.timeline.now - worker.started_at if worker else 0.0

    def usage_of_tree(self, _pid: int) -> None:
        return None

    def tag_for(self, *_: Any) -> int:
        return 0

    def boot_id(self) -> str:
        return "this boot"

    def own_listeners(self) -> set[int]:
        return set()

    def describe(self, pid: int) -> str:
        return f"pid {pid}"


class Prober:
    """Probes the world's workers; it stands for `HttpProber`."""

    def __init__(self, life: Life, *_: Any, **__: Any) -> None:
        self._world = life.world

    async def __aenter__(self) -> Prober:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Do nothing: there is no session."""

    async def probe(self, port: int, path: str, **options: Any) -> ProbeResult:
        return (await self.probe_response(port, path, **options)).result

    async def probe_response(
        self, port: int, _path: str, *, timeout_seconds: float, **_: Any
    ) -> ProbedResponse:
        draw = self._world.random.random
        deadline = anyio.current_time() + timeout_seconds
        await anyio.sleep(0.001 + draw() * 0.01)
        while (status := self._status(port)) is None and anyio.current_time() < deadline:  # noqa: ASYNC110  # no event
            await anyio.sleep(min(0.2, deadline - anyio.current_time()))
        verdict = Verdict.PASS if status == 200 else Verdict.FAIL
        if status == 200 and draw() < 0.01:
            verdict, status = Verdict.INCONCLUSIVE, None
        text = f"answered {status}" if status else "no answer"
        result = ProbeResult(verdict=verdict, status=status, duration_ms=1, message=text)
        return ProbedResponse(result, None, answered=status is not None)

    def _status(self, port: int) -> int | None:
        """Return the status that the worker on this port answers now; None: no answer."""
        worker = self._world.in_slot(PORTS[port])
        if worker is None or not worker.ready or worker.hung:
            return None
        return 500 if worker.sick or worker.release == "fails-health" else 200


class Connected(aiosqlite.Connection):
    """A connection to SQLite whose work is done in the loop, without a thread."""

    life: Life

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._connection:
            raise ValueError("Connection closed")
        name = getattr(fn, "__name__", "")
        if name == "commit":
            return await self.life.disk("database", fn)
        if name == "_execute_fetchall":
            await asyncio.sleep(0)  # what a read sees may have been changed meanwhile
        elif name == "execute":
            self.life.refuse_write("database")
        return fn(*args, **kwargs)

    def __await__(self) -> Generator[Any, None, aiosqlite.Connection]:
        yield from asyncio.sleep(0).__await__()
        self._connection = self._connector()
        self.life.connections.append(self._connection)
        return self

    def stop(self) -> None:
        self._running = False

    def __del__(self) -> None:
        """Do nothing: a killed daemon closes nothing."""


class Log:
    """A worker's output, which is of no interest here; it stands for `WorkerLog`."""

    def __init__(self, path: Path, _slot: SlotName) -> None:
        self.path = path

    def open(self, _instance: str) -> int:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def close(self, _instance: str) -> None:
        """Do nothing."""

    def adopt(self, _instance: str, _pid: int) -> None:
        """Do nothing."""

    def last_lines(self, _count: int = 20) -> list[str]:
        return []


class Health:
    """No monitor: what it reads is for the status alone."""

    score = 100

    def __init__(self, **_: Any) -> None:
        """Take what the real one takes."""

    async def run(self) -> None:
        await anyio.sleep_forever()

    def switched(self) -> None:
        """Do nothing."""

    def health(self) -> Health:
        return self


class Store:
    """Keeps the sockets over the daemon's death, where there is a keeper or systemd."""

    def __init__(self, life: Life) -> None:
        self._world = life.world

    async def drop_misplaced(self, *_: object) -> None:
        """Do nothing: the settings never change."""

    async def keep(self, *_: object) -> None:
        self._world.kernel.is_kept = self._world.has_keeper

    async def empty(self) -> None:
        self._world.kernel.is_kept = False

    def close(self) -> None:
        """Do nothing: the daemon ends."""


class Fallback:
    """Says what the world has drawn about the canaries."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def reason(self, _canary: object, _stable: object) -> str | None:
        return "31 % of 100 canary calls failed" if self._life.canaries_fail else None


class Comparison:
    """Says what the world has drawn about users' requests."""

    def __init__(self, life: Life, *, saved: dict[str, int] | None = None, **_: str) -> None:
        self._life = life
        self._looks = (saved or {}).get("looks", 0)

    def set_weight(self, _weight: float) -> None:
        """Do nothing: nothing is counted."""

    def look(self) -> Judgement:
        self._looks += 1
        if self._life.requests_fail:
            return Judgement(verdict=Verdict.FAIL, against=100, why="31 % of requests failed")
        draw = self._life.world.random
        verdict = draw.choice((Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE, Verdict.PASS))
        return Judgement(verdict=verdict, against=draw.choice((None, 1, 9)), why="few requests")

    def saved(self) -> dict[str, int]:
        return {"looks": self._looks}


class Unmeasured:
    """Takes every measurement, and keeps none."""

    def __getattr__(self, _name: str) -> Any:
        return forever if _name == "sample" else self

    def __call__(self, *_: Any, **__: Any) -> None:
        """Keep nothing."""


async def forever(*_: Any) -> None:
    await anyio.sleep_forever()
