"""The seams at which the simulated world takes the place of the real one.

The daemon is the real one (`atlas_supervisor.daemon.Daemon`), with the real files and SQLite. What
is replaced is what reaches other processes, the network and the kernel's sockets, and every thread:
their work is done in the loop, after a little time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Generator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

import aiosqlite
import anyio
import anyio.lowlevel
import anyio.to_thread

from atlas_supervisor import daemon, reload
from atlas_supervisor.canary import service as canary_service
from atlas_supervisor.deploy import executor, landing_watch, switch
from atlas_supervisor.deploy.switch import Landing, LandingCheck
from atlas_supervisor.model.probe import CheckResult, ProbeResult
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.probes.health_probe import ProbedResponse
from atlas_supervisor.start_check import CheckReport, shown
from atlas_supervisor.store import audit, state_keeper
from atlas_supervisor.system.procfs import ProcessIdentity
from atlas_supervisor.traffic import TakenBack
from atlas_supervisor.traffic.plane import InheritedSockets
from atlas_supervisor.workers import adoption, launch, process, registry, slot
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.registry import Survivor

if TYPE_CHECKING:
    from tests.simulation.life import Life

_PORTS = {8791: SlotName.BLUE, 8792: SlotName.GREEN}


class Socket:
    """A public socket, or a slot's own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        return self.number

    def close(self) -> None:
        """Do nothing: the world knows who holds it."""


class SimulatedPlane:
    """The kernel plane, on the world's kernel; it satisfies `traffic.Plane`."""

    name = "kernel"

    def __init__(self, life: Life) -> None:
        self._life, self._world, self._kernel = life, life.world, life.world.kernel
        self._public: dict[SlotName, int] = {}
        self.active = SlotName.BLUE

    @property
    def weights(self) -> dict[str, float]:
        return {each.value: float(each is self.active) for each in SlotName}

    def take_back(self, pids: Collection[int], _passed: object) -> TakenBack:
        kernel = self._kernel
        holders = [each for each in self._world.living if each.pid in pids]
        has_all = kernel.is_passed or kernel.is_kept
        if kernel.group is None or not (holders or has_all):
            return TakenBack()
        if not (self._world.copies_sockets or has_all):
            return TakenBack(complete=False)
        sockets: Any = tuple(map(Socket, kernel.group))
        return TakenBack(
            group=sockets,
            traffic=kernel.group.index(kernel.traffic),
            accepts={w.pid: kernel.group.index(w.socket) for w in holders if w.accepting},
        )

    def adoptable(self, _slot: SlotName, pids: Collection[int], taken: TakenBack) -> int | None:
        return next((pid for pid in pids if pid in taken.accepts), None)

    def open(
        self,
        active: SlotName,
        taken: TakenBack | None = None,
        adopted: Mapping[SlotName, int] | None = None,
    ) -> None:
        kernel, taken, adopted = self._kernel, taken or TakenBack(), adopted or {}
        served = not adopted and taken.traffic in taken.accepts.values()
        with_traffic = active.other if served else active
        if taken.group and kernel.group is not None:
            known = [(name, taken.accepts[pid]) for name, pid in adopted.items()]
            name, index = known[0] if known else (with_traffic, taken.traffic)
            self._public = {name: kernel.group[index], name.other: kernel.group[1 - index]}
        else:
            kernel.group = (kernel.made, kernel.made + 1)
            kernel.made += 2
            self._public = dict(zip(SlotName, kernel.group, strict=True))
        kernel.is_passed = False
        self.steer(with_traffic)

    def sockets(self) -> dict[str, Any]:
        return {}

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        return {}

    def pause(self) -> None:
        """Do nothing: this process carries no connection."""

    resume = pause

    def answering(self) -> bool:
        return False

    def pass_on(self) -> dict[str, int]:
        return {}

    def direct(self, name: SlotName, *_: object) -> tuple[str, int, str | None]:
        return "127.0.0.1", next(port for port, each in _PORTS.items() if each is name), None

    def inherited(self, name: SlotName) -> InheritedSockets:
        own, other = Socket(self._public[name]), Socket(self._public[name.other])
        named: Any = {"public": own, "private": Socket(100 + list(SlotName).index(name))}
        spare: Any = (other,)
        return InheritedSockets(named, spare=spare)

    def ports(self, name: SlotName) -> frozenset[int]:
        return frozenset({8790, *(port for port, each in _PORTS.items() if each is name)})

    def probe_port(self, port: int) -> int:
        return port

    def steer(self, name: SlotName) -> None:
        if self._life.dead:
            return
        if self._life.effect("steer"):
            raise OSError(errno.ENOMEM, "the kernel refused the program")
        if self._life.loop.killed:
            return
        self.active, self._kernel.traffic = name, self._public[name]
        self._world.tell(f"daemon: new connections go to {name}")
        self._world.look()

    def refresh(self, _slot: SlotName) -> None:
        """Do nothing: these workers change nothing."""

    def restore(self, *, turned: bool) -> None:
        self.steer(self.active)

    def locked(self) -> bool:
        return False

    def queued(self, name: SlotName) -> int:
        """Return how many wait: some while no worker accepts where they go, or did a moment ago."""
        socket = self._public[name]
        waits = socket == self._kernel.traffic and not any(
            each.serves and each.socket == socket for each in self._world.living
        )
        return int(waits and socket not in self._kernel.relayed)

    def vacate(self, name: SlotName, heir: SlotName) -> None:
        if not self._life.dead:
            self._kernel.relayed[self._public[name]] = heir
            self._world.look()

    def occupy(self, name: SlotName) -> None:
        if not self._life.dead:
            self._kernel.relayed.pop(self._public[name], None)
            self._world.look()

    def refuse(self, _slot: SlotName, _refusal: object, _launching: bool, /) -> None:
        """Do nothing: no client is served either way."""

    def admit(self, _slot: SlotName) -> None:
        """Do nothing, as above."""

    def rescued(self, _slot: SlotName) -> int:
        return 0

    def answers(self) -> dict[tuple[str, int], bool | None]:
        return {}

    def relayed(self) -> dict[str, Any]:
        return {}

    def foreign_listeners(self) -> list[str]:
        return []

    def stop_accepting(self) -> bool:
        return False

    async def close(self) -> None:
        if not self._life.dead:
            self._kernel.relayed.clear()


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
        worker = self._world.in_slot(_PORTS[port])
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


class _Unmeasured:
    """Takes every measurement, and keeps none."""

    def __getattr__(self, _name: str) -> Any:
        return _forever if _name == "sample" else self

    def __call__(self, *_: Any, **__: Any) -> None:
        """Keep nothing."""


async def _forever(*_: Any) -> None:
    await anyio.sleep_forever()


class Seams:
    """Replaces what the daemon's modules reach of the real world, for one seed."""

    def __init__(self, life: Callable[[], Life]) -> None:
        self._life = life

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace them while the context lasts."""
        with ExitStack() as stack:
            for module, names in self._replacements().items():
                for name, value in names.items():
                    stack.enter_context(patch.object(module, name, value))
            yield

    def _replacements(self) -> dict[Any, dict[str, Any]]:
        life, processes = self._life, _Current(lambda: self._life().procfs)
        return {
            anyio.to_thread: {"run_sync": self._in_loop},
            aiosqlite: {"connect": self._connect},
            secrets: {
                "token_hex": lambda size: self._bits(8 * size).to_bytes(size, "big").hex(),
                "randbits": self._bits,
            },
            daemon: {
                "make_plane": lambda *_: life().plane,
                "version": lambda _name: "1",
                "Metrics": lambda **_: _Unmeasured(),
                "api_options": lambda _settings: None,
                "GaugeCollector": lambda **_: _Unmeasured(),
                "SocketStore": lambda *_: Store(life()),
                "bind": self._bound,
                "serve": self._served,
                "HttpProber": lambda *_, **__: Prober(life()),
                "HealthMonitor": Health,
                "Reaper": Health,
                "become_subreaper": lambda: None,
                "end_strays": self._end_strays,
                "keep_bounded": _forever,
            },
            canary_service: {"Fallback": lambda *_: Fallback(life()), "POLL_SECONDS": 5.0},
            executor: {"run_smoke": self._smoke},
            switch: {"check_landing": self._landing},
            landing_watch: {"check_landing": self._landing},
            state_keeper: {
                "replace": self._replacing(state_keeper.replace, "state file"),
                "_WATCH_SECONDS": 5.0,
            },
            audit: {"replace": self._replacing(state_keeper.replace, "audit head")},
            launch: {"launch": self._launch, "_where_it_listens": lambda *_: "it listens nowhere"},
            process: {"procfs": processes},
            registry: {
                "procfs": processes,
                "find_survivors": self._survivors,
                "ProcessIdentity": _Identity,
            },
            adoption: {
                "procfs": processes,
                "NotifySocket": lambda *args, **options: Reports(life(), *args, **options),
                "ForeignProcess": lambda pid, _identity: Process(life(), pid, is_child=False),
                "_is_instance": lambda *_: True,
                "_reacts": self._reacts,
            },
            reload.Reloads: {"_ask_program": self._ask_program},
            reload: {"signals": _Signals},
            slot: {"WorkerLog": Log, "end_sharers": self._nothing, "inode_of": lambda sock: sock},
        }

    def _bits(self, count: int) -> int:
        return self._life().world.random.getrandbits(count)

    async def _in_loop(self, work: Callable[..., Any], *args: Any, **_: Any) -> Any:
        """Do a thread's work in the loop."""
        await anyio.lowlevel.checkpoint()
        life, after = self._life(), self._bits(1)
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(0 if after else life.latency())
            await life.live()
            try:
                return work(*args)
            finally:
                if after and not life.dead:
                    await asyncio.sleep(life.latency())
                    await life.live()

    def _connect(self, path: Path, **options: Any) -> aiosqlite.Connection:
        made = Connected(lambda: sqlite3.connect(path, **options), 64)
        made.life = self._life()
        return made

    @asynccontextmanager
    async def _bound(self, *_: object) -> AsyncIterator[Any]:
        yield SimpleNamespace(sockets={})

    @asynccontextmanager
    async def _served(self, control: Any, **_: Any) -> AsyncIterator[None]:
        life = self._life()
        life.serve(control)
        yield
        life.control = None

    def _replacing(self, replace: Callable[..., None], what: str) -> Callable[..., None]:
        """Return `replace` on a disk that may fail, before the file is replaced or after it."""

        def replaced(path: Path, content: str, **options: Any) -> None:
            life = self._life()
            life.effect(f"write {what}")
            if life.loop.killed:
                return
            fault = life.world.fails(what)
            if fault is not None:
                if what == "state file" and life.world.random.random() < 0.3:
                    replace(path, content, **options)  # the folder could not be synced
                raise fault.error()
            replace(path, content, **options)
            life.wrote(what, content)

        return replaced

    async def _launch(
        self, *, slot: SlotName, release: Any, name: str, inherited: Any, **_: Any
    ) -> WorkerProcess:
        life = self._life()
        reports: Any = Reports(life, name)
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(0.001 + life.latency())
            await life.live()
            refused = life.effect("launch")
            await life.live()
            if refused:
                raise OSError(errno.EAGAIN, "no more processes")
            public = inherited.named["public"].number
            worker = life.world.launch(name, slot, release.label, public)
            await asyncio.sleep(life.latency())
            await life.live()
        started: Any = Process(life, worker.pid)
        return WorkerProcess(name=name, slot=slot, release=release, process=started, notify=reports)

    def _survivors(self, _folder: Path, rows: Any, _listeners: object = ()) -> list[Survivor]:
        known = {row.instance: row for row in rows}
        found = []
        for each in self._life().world.living:
            row = known.get(each.instance)
            kit = bool(row and row.kit)
            found.append(
                Survivor(
                    *(each.instance, each.slot, each.release, each.pid, (each.pid,), kit),
                    marked=True,
                    row=row,
                )
            )
        return found

    def _reacts(self, place: tuple[str, int, str | None], _settings: object) -> bool:
        worker = self._life().world.in_slot(_PORTS[place[1]])
        return worker is not None and worker.serves

    async def _ask_program(self) -> CheckReport:
        """Return the report of the check of a new program, which may be a bad one."""
        life = self._life()
        await anyio.sleep(0.3 + life.latency())
        if life.world.random.random() < 0.2:
            return CheckReport(version="2", faults=["a setting is wrong"])
        return CheckReport(version="2", shown=shown(life.settings))

    async def _smoke(self, _plan: object, *, base_url: str, **_: Any) -> list[CheckResult]:
        life = self._life()
        await anyio.sleep(0.05 + life.latency())
        worker = life.world.in_slot(_PORTS[int(base_url.rsplit(":", 1)[1])])
        ok = worker is not None and worker.serves and worker.release != "fails-smoke"
        return [_checked(ok=ok)]

    async def _landing(self, _host: str, _port: int, instance: WorkerProcess, **_: Any) -> Any:
        life = self._life()
        await asyncio.sleep(0.001 + life.latency())
        worker = life.world.find(instance.pid)
        if worker is None or not worker.serves:
            return LandingCheck(Landing.UNSEEN, "not accepted in time")
        if worker.socket != life.world.kernel.traffic:
            return LandingCheck(Landing.WRONG, "another process accepted it")
        return LandingCheck(Landing.RIGHT, "it accepted")

    async def _end_strays(self, _folder: Path) -> None:
        """End what is left: drains of an earlier daemon's workers that were not over."""
        life = self._life()
        for each in life.world.living:
            life.procfs.send_signal([each.pid], signal.SIGKILL)
        await anyio.sleep(0.05)

    async def _nothing(self, _inodes: object) -> None:
        await anyio.lowlevel.checkpoint()


class _Signals:
    """No signal arrives during an exec."""

    @staticmethod
    def kept() -> Any:
        return nullcontext(0)


class _Identity(ProcessIdentity):
    """Tells a worker of the world from all others."""

    @classmethod
    def of(cls, pid: int) -> Self:
        return cls(pid, 1, "this boot")


class _Current:
    """Leads to what is the present daemon's."""

    def __init__(self, target: Callable[[], Any]) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target(), name)


def _checked(*, ok: bool) -> CheckResult:
    got = "200" if ok else "500"
    return CheckResult(
        name="home", kind="http", ok=ok, verdict=Verdict.PASS if ok else Verdict.FAIL,
        expected="200", got=got, duration_ms=1, message=f"answered {got}",
    )  # fmt: skip
