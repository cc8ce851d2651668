"""Which workers of an earlier daemon go on as the slots' own, and which are to be replaced."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from atlas_supervisor.config import Settings
from atlas_supervisor.model.life import Life
from atlas_supervisor.model.release import Release
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.system import procfs
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.passed_sockets import PassedSockets
from atlas_supervisor.traffic import Plane, TakenBack
from atlas_supervisor.workers import adoption
from atlas_supervisor.workers.registry import InstanceRow, Survivor
from tests.unit.supervisor.workers.support import BLUE, GREEN, make_settings

BLUE_SOCKET, GREEN_SOCKET = 0, 1


class Sockets:
    """A plane on which a worker can go on if it accepts from a public socket."""

    def adoptable(self, _slot: SlotName, pids: Collection[int], taken: TakenBack) -> int | None:
        return next((pid for pid in pids if pid in taken.accepts), None)

    def direct(self, *_: object) -> tuple[str, int, str | None]:
        return "127.0.0.1", 1, None


class Scene:
    """Workers with pids from 101 on, in the order of their start; blue has the traffic."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings: Settings = make_settings(folder)
        self.survivors: list[Survivor] = []
        self.accepts: dict[int, int] = {}
        self.traffic = BLUE_SOCKET
        self.reacts = True
        monkeypatch.setattr(adoption, "_is_instance", lambda *_: True)
        monkeypatch.setattr(adoption, "_reacts", lambda *_: self.reacts)

    def worker(self, slot: SlotName, accepts: int | None, **life: Any) -> str:
        pid = 101 + len(self.survivors)
        lived = {
            "port": self.settings.slot_ports[slot],
            "socket_passing": SocketPassing.ACTIVATION,
            "ready": True,
            **life,
        }
        release = Release(name="r", path=Path("/r"), version="1")
        recorded = Life(release=release, started_ts=now(), **lived)
        row = InstanceRow(f"{slot}-{pid}", slot, pid, pid, "boot", life=recorded)
        if accepts is not None:
            self.accepts[pid] = accepts
        survivor = Survivor(row.instance, slot, "1", pid, (pid,), False, True, row)
        self.survivors.append(survivor)
        return survivor.instance

    def chosen(self, active: SlotName = BLUE) -> set[str]:
        taken = TakenBack(traffic=self.traffic, accepts=self.accepts)
        plane: Plane = Sockets()  # type: ignore[assignment]
        found = adoption._choose(self.survivors, taken, plane, self.settings, active)
        return {survivor.instance for survivor in found}


@contextmanager
def sleeping(**variables: str) -> Iterator[subprocess.Popen[bytes]]:
    command, environment = ("sleep", "600"), {"PATH": "/bin:/usr/bin", **variables}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_the_workers_of_both_slots_go_on(scene: Scene) -> None:
    warm, active = scene.worker(GREEN, GREEN_SOCKET), scene.worker(BLUE, BLUE_SOCKET)
    assert scene.chosen() == {active, warm}


def test_the_state_file_says_which_slot_is_active_and_not_the_traffic(scene: Scene) -> None:
    """The daemon was killed between the kernel's program and the state file."""
    both = {scene.worker(BLUE, BLUE_SOCKET), scene.worker(GREEN, GREEN_SOCKET)}
    scene.traffic = GREEN_SOCKET
    assert scene.chosen(BLUE) == scene.chosen(GREEN) == both


@pytest.mark.parametrize(
    "life",
    [
        {"port": 1},
        {"socket_passing": SocketPassing.FD},
        {"asked_to_end": True},
    ],
    ids=["has another port", "has its socket by other means", "is ending"],
)
def test_an_active_worker_that_does_not_fit_is_replaced_and_with_it_a_warm_one(
    scene: Scene, life: dict[str, Any]
) -> None:
    scene.worker(GREEN, GREEN_SOCKET)
    scene.worker(BLUE, BLUE_SOCKET, **life)
    ends = "asked_to_end" in life  # it does not count as one that accepts
    assert len(scene.chosen()) == (1 if ends else 0)


def test_a_worker_that_was_starting_goes_on_if_it_answers_by_now_and_is_active(
    scene: Scene,
) -> None:
    """Perhaps it was ready, and the daemon was killed before it could write that down."""
    active = scene.worker(BLUE, BLUE_SOCKET, ready=False)
    scene.worker(GREEN, GREEN_SOCKET, ready=False)
    assert scene.chosen() == {active}
    scene.reacts = False
    assert scene.chosen() == set()


def test_with_the_active_worker_dead_a_warm_one_goes_on_unless_it_has_the_traffic(
    scene: Scene,
) -> None:
    warm = scene.worker(GREEN, GREEN_SOCKET)
    assert scene.chosen() == {warm}
    scene.traffic = GREEN_SOCKET  # then it serves until the active slot has a fresh one
    assert scene.chosen() == set()


def test_a_hung_worker_is_replaced_unless_a_warm_one_can_take_over(scene: Scene) -> None:
    active = scene.worker(BLUE, BLUE_SOCKET)
    scene.reacts = False
    assert scene.chosen() == set()
    drains = scene.worker(GREEN, None, asked_to_end=True)
    assert scene.chosen() == set()
    scene.reacts = True
    assert scene.chosen() == {active, drains}
    scene.survivors.pop()
    warm = scene.worker(GREEN, GREEN_SOCKET)
    scene.reacts = False
    assert scene.chosen() == {active, warm}


def test_the_newest_of_a_slot_goes_on_in_it(scene: Scene) -> None:
    scene.worker(GREEN, None, asked_to_end=True, not_accepting=True)  # it lingers
    active, fresh = scene.worker(BLUE, BLUE_SOCKET), scene.worker(GREEN, GREEN_SOCKET)
    assert scene.chosen() == {active, fresh}


def test_two_workers_on_one_socket_are_not_both_taken_over(scene: Scene) -> None:
    active = scene.worker(BLUE, BLUE_SOCKET)
    scene.worker(GREEN, BLUE_SOCKET)
    assert scene.chosen() == {active}


def test_a_worker_without_a_record_of_its_life_is_replaced(scene: Scene) -> None:
    scene.worker(BLUE, BLUE_SOCKET)
    (survivor,) = scene.survivors
    assert survivor.row is not None
    scene.survivors = [survivor._replace(row=survivor.row._replace(life=None))]
    assert scene.chosen() == set()


async def test_an_inherited_worker_goes_on_with_its_life_and_its_end_may_stay_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_supervisor.system.pidfd.ForeignProcess._status", lambda _self: None)
    settings = make_settings(tmp_path)
    with sleeping() as process:
        ticks = procfs.start_ticks(process.pid)
        assert ticks is not None
        release = Release(name="r1", path=tmp_path, version="1")
        life = Life(release=release, started_ts=now(), restarts=3, not_accepting=True)
        row = InstanceRow("blue-1", "blue", process.pid, ticks, procfs.boot_id(), True, life)
        found = Survivor("blue-1", BLUE, "?", process.pid, (process.pid,), True, True, row)
        reused = found._replace(row=row._replace(start_ticks=ticks - 1))
        assert adoption.inherit(reused, settings) is None

        instance = adoption.inherit(found, settings)
        assert instance is not None
        assert (instance.release, instance.life, instance.kit) == (release, life, True)
        assert instance.reported.not_accepting.is_set()
        assert instance.exit_text == "is still running"
        await instance.kill()
        assert (instance.exit_status, instance.exit_text) == (None, "ended, exit status unknown")


@pytest.mark.parametrize("years", [-5, 5])
async def test_a_clock_that_was_set_by_years_leaves_an_inherited_worker_its_age(
    tmp_path: Path, years: int
) -> None:
    with sleeping() as process:
        ticks = procfs.start_ticks(process.pid)
        assert ticks is not None
        release = Release(name="r1", path=tmp_path, version="1")
        life = Life(release=release, started_ts=now() + timedelta(days=365 * years))
        row = InstanceRow("blue-1", "blue", process.pid, ticks, procfs.boot_id(), True, life)
        found = Survivor("blue-1", BLUE, "?", process.pid, (process.pid,), True, True, row)
        instance = adoption.inherit(found, make_settings(tmp_path))
        assert instance is not None
        assert 0 < instance.age.seconds < 60
        await instance.kill()


@pytest.mark.parametrize("folder", ["same", "copied"])
def test_a_process_with_the_mark_of_another_state_folder_is_not_taken_over(
    tmp_path: Path, folder: str
) -> None:
    settings = make_settings(tmp_path)
    state = settings.state_dir if folder == "same" else tmp_path / "copied"
    variables = {"ATLAS_INSTANCE": "blue-1", "ATLAS_STATE_DIR": str(state)}
    with sleeping(**variables) as process:
        found = Survivor("blue-1", BLUE, "1", process.pid, (process.pid,), False, True)
        assert adoption._is_instance(found, settings) is (folder == "same")


async def test_a_worker_that_ended_while_it_was_looked_at_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch)
    names = {scene.worker(BLUE, BLUE_SOCKET), scene.worker(GREEN, GREEN_SOCKET)}
    forgotten = []

    class Records:
        async def survivors(self, _folder: Path) -> list[Survivor]:
            return scene.survivors

        def listening(self) -> None: ...

        def forget(self, instance: str) -> None:
            forgotten.append(instance)

    class Opened(Sockets):
        def take_back(self, *_: object) -> TakenBack:
            return TakenBack(accepts=scene.accepts)

        def open(self, *_: object, held: bool) -> None: ...

    monkeypatch.setattr(adoption, "inherit", lambda *_: None)
    plane: Any = Opened()
    records: Any = Records()
    found = await adoption.take_over(scene.settings, plane, records, BLUE, PassedSockets())
    assert not found.adopted
    assert set(forgotten) == names
