"""What a reload refuses, and at what moment the daemon is replaced."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from atlas_supervisor import reload
from atlas_supervisor.api import examples
from atlas_supervisor.deploy.machine import Phase, Plan
from atlas_supervisor.errors import RefusedError
from atlas_supervisor.model.actor import Actor
from atlas_supervisor.reload import Reloads
from atlas_supervisor.start_check import CheckReport, digests, shown
from atlas_supervisor.store.statements import StoreError
from atlas_supervisor.system.service_manager import ServiceManager
from tests.harness import free_ports
from tests.unit.supervisor.workers.support import make_settings

OPERATOR = Actor(name="uid:1", origin="unix")


class ExecutedError(Exception):
    """In place of an exec, which does not return."""


def made(**attributes: Any) -> Any:
    """Return an object with these attributes, in place of any."""
    return SimpleNamespace(**attributes)


class _Busy:
    """A state file that is written for some looks; it satisfies what a reload asks of it."""

    def __init__(self, looks: list[bool]) -> None:
        self._looks = looks

    @property
    def busy(self) -> bool:
        return self._looks.pop(0) if self._looks else False


class Stage:
    """A daemon as far as a reload sees it; the new program is a script."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = make_settings(folder, **settings)
        self.audits: list[tuple[str, str]] = []
        self.disk_fails = False
        self.runs = made(current=None, stopping=False, make_way=self._make_way)
        self.busy: list[bool] = []
        self.foreign: list[str] = []
        self.done: list[str] = []
        self.pending: list[bool] = []
        """Whether a relayed connection waits for its answer, look by look."""
        self.executed: list[dict[str, int]] = []
        self.fails: OSError | None = None
        self.program = made(
            command=(sys.executable, "-c", "raise SystemExit(9)"),
            environ=dict(os.environ),
            execute=self._execute,
        )
        database = self._database()
        busy: Any = _Busy(self.busy)
        self.reloads = Reloads(
            settings=self.settings,
            program=self.program,
            daemon=lambda: examples.DAEMON,
            descriptors=lambda: {"lock": 7, "control-tcp": 8},
            runs=self.runs,
            slots=made(launching=False),
            plane=self._plane(),
            database=database,
            registry=made(pending=False),
            state=busy,
            manager=ServiceManager({}),
        )

    async def _make_way(self, _cause: str) -> None:
        if self.runs.current is not None and self.runs.current.plan.recycle:
            self.runs.current = None

    def _plane(self) -> Any:
        return made(
            foreign_listeners=lambda: self.foreign,
            pause=lambda: self.done.append("paused"),
            resume=lambda: self.done.append("resumed"),
            answering=lambda: self.pending.pop(0) if self.pending else False,
            pass_on=dict,
        )

    def _database(self) -> Any:
        async def record(_actor: Actor, action: str, outcome: str, **_detail: Any) -> None:
            self.audits.append((action, outcome))

        async def write(actor: Actor, action: str, outcome: str, **detail: Any) -> None:
            if self.disk_fails:
                raise StoreError("disk is full")
            await record(actor, action, outcome, **detail)

        async def attempt() -> bool:
            return True

        return made(
            audit=made(record=record, write=write),
            outbox=made(attempt=attempt, pending=False),
            statements=made(busy=False),
        )

    def _execute(self, descriptors: dict[str, int]) -> None:
        self.executed.append(descriptors)
        raise self.fails or ExecutedError

    def answers(self, report: CheckReport | None = None, **changes: Any) -> None:
        """Let the new program report this; by default, nothing but these changes."""
        found = report or CheckReport(
            version="9.9",
            shown=shown(self.settings) | changes,
            digests=digests(self.settings) | changes,
        )
        self.prints(found.model_dump_json())

    def prints(self, text: str, status: int = 0) -> None:
        code = f"print({text!r}); raise SystemExit({status})"
        self.program.command = (sys.executable, "-c", code)

    async def refused(self) -> RefusedError:
        with pytest.raises(RefusedError) as caught:
            await self.reloads.reload(OPERATOR)
        assert not self.reloads.accepted.is_set()
        assert not self.runs.stopping
        return caught.value


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path)
    stage.answers()
    return stage


def in_progress(phase: Phase, *, waits: bool = False, recycle: bool = False) -> Any:
    plan = Plan(recycle=recycle)
    return made(record=made(deploy_id="d-1"), plan=plan, phase=phase, waits=waits)


async def test_an_accepted_reload_names_the_new_version_and_what_changes(stage: Stage) -> None:
    stage.answers(LOG_LEVEL="another digest", CHANNEL="another digest")

    view = await stage.reloads.reload(OPERATOR)

    assert view.version == "9.9"
    assert view.changed == ["CHANNEL", "LOG_LEVEL"]
    assert stage.reloads.accepted.is_set()
    assert stage.runs.stopping, "no deploy begins any more"
    assert stage.audits == [("reload", "accepted")]


@pytest.mark.parametrize(
    ("prepare", "lines"),
    [
        (
            lambda stage: stage.answers(CheckReport(version="9", faults=["first", "second"])),
            ["first", "second"],
        ),
        (
            lambda stage: stage.answers(PUBLIC_PORT="1"),
            ["PUBLIC_PORT=1: a reload can't change it; it is {PUBLIC_PORT}"],
        ),
        (
            lambda stage: stage.prints("Traceback\nImportError: no new code", 1),
            ["Traceback", "ImportError: no new code"],
        ),
        (
            lambda stage: stage.prints("", 3),
            ["the check of the new program exited with status 3"],
        ),
        (
            lambda stage: setattr(stage.program, "command", ("/nowhere/python",)),
            ["/nowhere/python can't be executed: No such file or directory"],
        ),
        (
            lambda stage: stage.foreign.append("PUBLIC_PORT is taken"),
            ["PUBLIC_PORT is taken"],
        ),
    ],
)
async def test_every_fault_refuses_it_as_a_line(
    stage: Stage, prepare: Callable[[Stage], None], lines: list[str]
) -> None:
    prepare(stage)

    refused = await stage.refused()

    known = shown(stage.settings)
    assert (refused.status, refused.code) == (422, "reload_refused")
    assert refused.extra["lines"] == [line.format(**known) for line in lines]
    assert stage.audits == [("reload", "refused")]


@pytest.mark.parametrize("key", ["CONTROL_PORT", "FLEET_AGENT_PORT", "FLEETLOCK_PORT"])
async def test_an_address_that_can_not_be_bound_refuses_it(stage: Stage, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        changes: dict[str, Any] = {key: str(port)}
        stage.answers(**changes)
        refused = await stage.refused()

    assert refused.extra["lines"][0].startswith(f"{key}={port} ")
    assert " is taken: " in refused.extra["lines"][0]


async def test_a_check_that_does_not_end_fails_the_reload(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "CHECK_SECONDS", 0.1)
    stage.program.command = (sys.executable, "-c", "import time; time.sleep(60)")

    refused = await stage.refused()

    assert (refused.status, refused.code) == (503, "reload_failed")


async def test_a_disk_that_fails_refuses_it(stage: Stage) -> None:
    stage.disk_fails = True
    assert (await stage.refused()).code == "not_durable"


@pytest.mark.parametrize("phase", [Phase.PREFLIGHT, Phase.HEALTH, Phase.SWITCH, Phase.REVERT])
async def test_a_deploy_before_its_switch_refuses_it(stage: Stage, phase: Phase) -> None:
    stage.runs.current = in_progress(phase)
    assert (await stage.refused()).code == "deploy_in_progress"


async def test_a_deploy_that_waits_for_its_switch_does_not(stage: Stage) -> None:
    stage.runs.current = in_progress(Phase.AWAITING_SWITCH, waits=True)
    await stage.reloads.reload(OPERATOR)
    assert stage.reloads.accepted.is_set()


async def test_a_recycle_gives_way_to_it(stage: Stage) -> None:
    stage.runs.current = in_progress(Phase.HEALTH, recycle=True)
    await stage.reloads.reload(OPERATOR)
    assert stage.reloads.accepted.is_set()
    assert stage.runs.current is None


async def test_a_deploy_that_begins_during_the_check_refuses_it(stage: Stage) -> None:
    report = json.loads(CheckReport(version="9", shown=shown(stage.settings)).model_dump_json())
    stage.prints(json.dumps(report))
    stage.foreign = _Then(lambda: setattr(stage.runs, "current", in_progress(Phase.LAUNCH)))

    assert (await stage.refused()).code == "deploy_in_progress"


class _Then(list[str]):
    """An empty list; reading it lets something happen."""

    def __init__(self, happens: Callable[[], None]) -> None:
        super().__init__()
        self._happens = happens

    def __iter__(self) -> Any:
        self._happens()
        return iter(())


async def test_of_two_at_once_one_is_refused(stage: Stage) -> None:
    results: list[str] = []

    async def ask() -> None:
        try:
            await stage.reloads.reload(OPERATOR)
            results.append("accepted")
        except RefusedError as refused:
            results.append(refused.code)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(ask)
    await ask()

    assert results == ["reload_in_progress", "accepted", "reload_in_progress"]


async def test_a_daemon_that_stops_refuses_it(stage: Stage) -> None:
    stage.runs.stopping = True
    with pytest.raises(RefusedError, match="is stopping"):
        await stage.reloads.reload(OPERATOR)


async def test_the_exec_waits_until_nothing_is_half_done(stage: Stage) -> None:
    await stage.reloads.reload(OPERATOR)
    stage.busy += [True, True, True]
    stage.pending = [True, True]

    with pytest.raises(ExecutedError):
        await stage.reloads.replace(anyio.Event())

    assert not stage.busy
    assert not stage.pending
    assert stage.done == ["paused"]
    (descriptors,) = stage.executed
    assert descriptors.keys() == {"lock", "control-tcp", "signals"}


async def test_the_next_address_of_the_api_is_bound_before_and_passed_on(stage: Stage) -> None:
    (port,) = free_ports(1)
    stage.answers(CONTROL_PORT=str(port))
    await stage.reloads.reload(OPERATOR)

    with pytest.raises(ExecutedError):
        await stage.reloads.replace(anyio.Event())

    assert stage.executed[0]["control-tcp"] != 8
    stage.reloads._give_up()


async def test_an_exec_that_fails_lets_the_daemon_go_on_as_it_was(stage: Stage) -> None:
    await stage.reloads.reload(OPERATOR)
    stage.fails = FileNotFoundError(2, "No such file or directory")

    await stage.reloads.replace(anyio.Event())

    assert not stage.reloads.accepted.is_set()
    assert not stage.runs.stopping
    assert stage.audits == [("reload", "accepted"), ("reload", "failed")]
    assert stage.done == ["paused", "resumed"]
    await stage.reloads.reload(OPERATOR)  # and it can be tried again


async def test_a_stop_comes_first(stage: Stage) -> None:
    await stage.reloads.reload(OPERATOR)
    stopping = anyio.Event()
    stopping.set()

    await stage.reloads.replace(stopping)

    assert not stage.executed


async def test_without_a_quiet_moment_the_daemon_goes_on_as_it_was(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_QUIET_SECONDS", 0.1)
    await stage.reloads.reload(OPERATOR)
    stage.runs.current = in_progress(Phase.REVERT)

    await stage.reloads.replace(anyio.Event())

    assert not stage.executed
    assert stage.audits[-1] == ("reload", "failed")


async def test_a_reload_after_a_refused_one_reaches_those_that_wait_for_it(stage: Stage) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(stage.reloads.until_accepted, anyio.Event())
        await anyio.lowlevel.checkpoint()
        stage.foreign = ["PUBLIC_PORT is taken"]
        await stage.refused()
        stage.foreign = []
        await stage.reloads.reload(OPERATOR)  # ends the wait, and with it this block
