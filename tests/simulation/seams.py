"""The seams at which the simulated world takes the place of the real one.

The daemon is the real one (`atlas_supervisor.daemon.Daemon`), with the real files and SQLite. What
is replaced is what reaches other processes, the network and the kernel's sockets, and every thread:
their work is done in the loop, after a little time.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

import aiosqlite
import anyio
import anyio.lowlevel
import anyio.to_thread

from atlas_supervisor import assembly, daemon, opening, reload
from atlas_supervisor.canary import service as canary_service
from atlas_supervisor.deploy import executor, landing_watch, ramping, switch
from atlas_supervisor.deploy.switch import Landing, LandingCheck
from atlas_supervisor.model.probe import CheckResult
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.verdict import Verdict
from atlas_supervisor.requests import collector
from atlas_supervisor.start_check import CheckReport, shown
from atlas_supervisor.store import audit, state_keeper
from atlas_supervisor.system.procfs import ProcessIdentity
from atlas_supervisor.workers import adoption, launch, process, registry, slot
from atlas_supervisor.workers.process import WorkerProcess
from atlas_supervisor.workers.registry import Survivor
from tests.simulation.fakes import (
    PORTS,
    Comparison,
    Connected,
    Fallback,
    Health,
    Log,
    Prober,
    Process,
    Reports,
    Store,
    Unmeasured,
    forever,
)

if TYPE_CHECKING:
    from tests.simulation.life import Life


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
                "make_plane": lambda *_, **__: life().plane,
                "own_version": lambda: "1",
                "Metrics": lambda **_: Unmeasured(),
                "api_options": lambda _settings: None,
                "SocketStore": lambda *_, **__: Store(life()),
                "bind": self._bound,
                "serve": self._served,
                "HttpProber": lambda *_, **__: Prober(life()),
                "become_subreaper": lambda: None,
                "end_strays": self._end_strays,
            },
            opening: {"own_version": lambda: "1"},
            assembly: {
                "GaugeCollector": lambda **_: Unmeasured(),
                "HealthMonitor": Health,
                "Reaper": Health,
                "keep_bounded": forever,
            },
            canary_service: {"Fallback": lambda *_: Fallback(life()), "POLL_SECONDS": 5.0},
            collector: {"POLL_SECONDS": 5.0},
            executor: {"run_smoke": self._smoke},
            ramping: {"Comparison": lambda *_, **options: Comparison(life(), **options)},
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

    def _reacts(self, place: tuple[str, int, str | None], *_: object) -> bool:
        worker = self._life().world.in_slot(PORTS[place[1]])
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
        worker = life.world.in_slot(PORTS[int(base_url.rsplit(":", 1)[1])])
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
        return cls(pid, pid, "this boot")  # a later process has started later


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
