"""Replaces the daemon in place: the same process executes the program as it is installed now.

1. Everything that can be refused is refused before anything changes: a deploy before its switch, a
   fault that the new program finds in itself, the settings or the files (`start_check`), a change
   that only a restart can make, an address of the API that can't be bound.
2. Then the API stops: requests in progress are answered, streams end and are resumed from the next
   daemon, new connections wait in the queues of the listeners, which are passed on.
3. Connections that this process relays would end with it. Those of the public port are passed on
   (`carry_over`); the others have a few seconds to get the answers that are pending.
4. The exec happens at a moment when nothing is half done: no flip, no deploy before its switch, no
   launch that is not recorded, no write to the database or the state file. Between the last look
   and the exec the event loop runs nothing else. To the journal it is as if the daemon had been
   killed then, which is safe at any moment; to the sockets, the workers and the signals it is not.
5. If the moment does not come, a stop comes first, or the exec fails, the daemon goes on as it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from socket import socket

import anyio
import structlog
from anyio.lowlevel import checkpoint
from pydantic import ValidationError

from atlas_supervisor import errors
from atlas_supervisor.api.listeners import bind_tcp
from atlas_supervisor.api.server import CONTROL_TCP
from atlas_supervisor.config import Settings
from atlas_supervisor.deploy.errors import in_progress, not_durable
from atlas_supervisor.deploy.recorder import Runs
from atlas_supervisor.errors import RefusedError, StartRefusedError
from atlas_supervisor.fleet.listening import bind
from atlas_supervisor.fleet.neighbours import neighbours
from atlas_supervisor.model.actor import SUPERVISOR, Actor
from atlas_supervisor.model.status import DaemonView, ReloadView
from atlas_supervisor.probes.command import run_command
from atlas_supervisor.start_check import CheckReport, digests, refused_changes, shown
from atlas_supervisor.store.database import Database
from atlas_supervisor.store.state_keeper import StateKeeper
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system import signals
from atlas_supervisor.system.failpoints import seam
from atlas_supervisor.system.program import Program
from atlas_supervisor.system.service_manager import ServiceManager
from atlas_supervisor.system.text import escaped, without_known_secrets
from atlas_supervisor.system.threads import in_thread
from atlas_supervisor.traffic import Plane
from atlas_supervisor.workers.registry import WorkerRegistry
from atlas_supervisor.workers.slots import Slots

log = structlog.get_logger(__name__)

CHECK_SECONDS = 30.0
CHECK_OPTION = "--check-start"
LOCK, SIGNALS = "lock", "signals"
"""Names of what is passed on besides sockets: the held lock; signals from during the exec."""

_ANSWER_SECONDS, _QUIET_SECONDS = 5.0, 5.0
_LOOK_SECONDS = 0.01
_TURNS = 5
"""Turns of the event loop until a signal that arrived before has had its effect."""
_LINES, _LINE_LENGTH = 20, 500
_BY_SIGNAL = Actor(name="SIGHUP", origin="internal")


class Requests:
    """What signals ask of a running daemon."""

    def __init__(self) -> None:
        self.stop = anyio.Event()
        self.reload = asyncio.Event()
        """Cleared once that reload is begun."""


class Reloads:
    """Reloads the daemon; it satisfies `api.ports.ReloadPort`."""

    def __init__(
        self,
        *,
        settings: Settings,
        program: Program,
        daemon: Callable[[], DaemonView],
        descriptors: Callable[[], Mapping[str, int]],
        runs: Runs,
        slots: Slots,
        plane: Plane,
        database: Database,
        registry: WorkerRegistry,
        state: StateKeeper,
        manager: ServiceManager,
    ) -> None:
        """`descriptors` are passed on by name, besides connections."""
        self._settings = settings
        self._program = program
        self._daemon = daemon
        self._descriptors = descriptors
        self._runs = runs
        self._slots = slots
        self._plane = plane
        self._database = database
        self._registry = registry
        self._state = state
        self._manager = manager
        self._reloading = False
        self._fresh: dict[str, socket] = {}
        """The API's socket on its next address, if that is another one."""
        self.accepted = anyio.Event()
        """Set once a reload was accepted: the API is to be stopped, then `replace` called."""

    async def until_accepted(self, stop: anyio.Event) -> None:
        """Wait until a reload was accepted, or the daemon is to stop."""
        async with anyio.create_task_group() as group:

            async def wait(event: anyio.Event) -> None:
                await event.wait()
                group.cancel_scope.cancel()

            group.start_soon(wait, stop)
            group.start_soon(wait, self.accepted)

    async def follow_signal(self, asked: asyncio.Event) -> None:
        """Reload whenever it is asked by a signal, until cancelled."""
        while True:
            await asked.wait()
            asked.clear()
            try:
                await self.reload(_BY_SIGNAL)
            except RefusedError as refused:
                log.error("reload_refused", code=refused.code, why=refused.message)

    @seam("reload")
    async def reload(self, actor: Actor) -> ReloadView:
        """Check the new program and settings; return once the replacement is about to happen."""
        self._refuse_now()
        self._reloading = True
        try:
            report = await self._checked()
            self._refuse_now(own=True)
            view = self._view(report)
            await self._audit_accepted(actor, view)
            await self._runs.make_way("it gives way to a reload")
            self._refuse_now(own=True)
        except BaseException as error:
            self._give_up()
            if isinstance(error, RefusedError):
                await self._database.audit.record(
                    actor, "reload", "refused", reason=error.message, code=error.code
                )
            raise
        self._runs.stopping = True
        self.accepted.set()
        log.info("reload_accepted", actor=actor.name, version=view.version, changed=view.changed)
        return view

    def _refuse_now(self, *, own: bool = False) -> None:
        """Raise RefusedError if this is no moment for a reload."""
        if self._runs.stopping and not self._reloading:
            raise errors.STOPPING.error()
        if self._reloading and not own:
            raise errors.RELOAD_IN_PROGRESS.error()
        current = self._runs.current
        if current is not None and not (current.waits or current.plan.recycle):
            raise in_progress(current)

    def _give_up(self) -> None:
        for sock in self._fresh.values():
            sock.close()
        self._fresh.clear()
        self._reloading = self._runs.stopping = False
        if self.accepted.is_set():  # else it is waited for
            self.accepted = anyio.Event()

    def _view(self, report: CheckReport) -> ReloadView:
        known = digests(self._settings)
        changed = [key for key, value in report.digests.items() if known.get(key) != value]
        return ReloadView(version=report.version, before=self._daemon(), changed=changed)

    async def _audit_accepted(self, actor: Actor, view: ReloadView) -> None:
        """Write it down. Raises RefusedError where the next daemon could not write either."""
        try:
            await self._database.audit.write(
                actor, "reload", "accepted", version=view.version, changed=view.changed
            )
        except StoreError as error:
            raise not_durable("the reload could not be recorded", error) from error

    # The checks.

    async def _checked(self) -> CheckReport:
        """Return the new program's report. Raises RefusedError if there is any fault."""
        report = await self._ask_program()
        known = shown(self._settings)
        lines = [*report.faults, *(refused_changes(known, report.shown) if report.shown else ())]
        lines += await in_thread(self._plane.foreign_listeners)
        if not lines:
            lines += await self._bind_anew(known, report.shown)
        if lines:
            lines = [_line(line) for line in lines]
            raise errors.RELOAD_REFUSED.error(problem="; ".join(lines), extra={"lines": lines})
        return report

    async def _ask_program(self) -> CheckReport:
        """Run the check of the program that would be executed."""
        try:
            done = await run_command(
                [*self._program.command, CHECK_OPTION],
                env=self._program.environ,
                directory=Path.cwd(),
                timeout_seconds=CHECK_SECONDS,
            )
        except OSError as error:
            why = f"{self._program.command[0]} can't be executed: {error.strerror or error}"
            return CheckReport(version="", faults=[why])
        if done.exit_code is None:
            problem = f"the check of the new program did not end within {CHECK_SECONDS:.0f} s"
            raise errors.RELOAD_FAILED.error(problem=problem)
        lines = [line for line in done.output.splitlines() if line.strip()]
        for line in lines:
            try:
                return CheckReport.model_validate_json(line)
            except ValidationError:
                continue
        ended = f"the check of the new program exited with status {done.exit_code}"
        return CheckReport(version="", faults=lines[-_LINES:] or [ended])

    async def _bind_anew(self, known: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
        """Bind the next addresses that are other ones; return why that is not possible."""
        host, port = wanted["CONTROL_HOST"], wanted["CONTROL_PORT"]
        try:
            if port != "0" and (host, port) != (known["CONTROL_HOST"], known["CONTROL_PORT"]):
                (self._fresh[CONTROL_TCP],) = await bind_tcp(host, int(port))
            for name, key, host in neighbours(self._settings):
                if (port := wanted.get(key, "0")) not in {"0", known[key]}:
                    self._fresh[name] = bind(key, host, int(port))
        except StartRefusedError as refused:
            return [str(refused)]
        return []

    # The replacement.

    async def replace(self, stopping: anyio.Event) -> None:
        """Execute the new program; the API has stopped.

        Returns if that failed or a stop came first: then the daemon goes on as it was.
        """
        self._manager.reloading()
        why = "something is in progress"
        await self._let_answer(stopping)
        with anyio.move_on_after(_QUIET_SECONDS):
            while not stopping.is_set():
                await self._database.outbox.attempt()
                if self._is_quiet():
                    why = await self._execute(stopping)
                    break
                await anyio.sleep(_LOOK_SECONDS)
        self._plane.resume()
        self._give_up()
        self._manager.reload_ended()
        if not stopping.is_set():
            log.error("reload_failed", why=why, instead="the daemon goes on as it was")
            await self._database.audit.record(SUPERVISOR, "reload", "failed", reason=why)

    async def _let_answer(self, stopping: anyio.Event) -> None:
        """Give connections that can't be passed on time for the answers that are pending."""
        self._plane.pause()
        with anyio.move_on_after(_ANSWER_SECONDS):
            while self._plane.answering() and not stopping.is_set():  # noqa: ASYNC110  # no event
                await anyio.sleep(_LOOK_SECONDS)

    async def _execute(self, stopping: anyio.Event) -> str:
        """Execute it, unless a stop comes first; return why it was not."""
        with signals.kept() as pipe:
            for _ in range(_TURNS):
                await checkpoint()
            # What a turn has begun may take time.
            while not self._is_quiet():  # noqa: ASYNC110  # no event
                await anyio.sleep(_LOOK_SECONDS)
            if stopping.is_set():
                return "the daemon stops"
            for handler in logging.getLogger().handlers:
                handler.flush()
            fresh = {name: sock.fileno() for name, sock in self._fresh.items()}
            passed = {**self._descriptors(), **fresh, **self._plane.pass_on(), SIGNALS: pipe}
            try:
                self._program.execute(passed)
            except OSError as error:
                return f"{self._program.command[0]} can't be executed: {error.strerror}"

    def _is_quiet(self) -> bool:
        """Return whether nothing is half done that the next daemon would have to undo."""
        current, database = self._runs.current, self._database
        writing = database.statements.busy or database.outbox.pending
        writing = writing or self._registry.pending or self._state.busy
        return (current is None or current.waits) and not (writing or self._slots.launching)


def _line(text: str) -> str:
    """Return a line that may be shown to anyone who may reload."""
    return escaped(without_known_secrets(text))[:_LINE_LENGTH]
