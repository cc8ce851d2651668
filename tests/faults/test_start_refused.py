"""A start that is refused touches no process: an earlier daemon's workers go on serving."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from tests.faults.support import refused, replaced, worker_pid
from tests.harness import DaemonProcess, Setting, eventually
from tests.integration.support import SCRIPTED, scripted_daemon
from tests.invariants import invariants_hold
from tests.unit.supervisor.support import fill, mounted
from tests.unit.supervisor.traffic.support import foreign_listener

Obstacle = Callable[[DaemonProcess], AbstractContextManager[None]]


@contextmanager
def taken_control_port(daemon: DaemonProcess) -> Iterator[None]:
    with foreign_listener(daemon.control_port):
        yield


@contextmanager
def stray_on_the_public_port(daemon: DaemonProcess) -> Iterator[None]:
    with foreign_listener(daemon.public_port, "0.0.0.0", reuse_port=True):
        yield


@contextmanager
def stray_on_an_own_port(daemon: DaemonProcess) -> Iterator[None]:
    daemon.end_keeper()  # it has that port, until it has ended
    with foreign_listener(int(str(daemon.settings["STAGING_PORT"])), reuse_port=True):
        yield


def in_place_of(name: str, make: Callable[[Path], object]) -> Obstacle:
    return lambda daemon: replaced(daemon.state_dir / name, make)


@contextmanager
def locked_database(daemon: DaemonProcess) -> Iterator[None]:
    with closing(sqlite3.connect(daemon.state_dir / "atlas.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def bad_certificate(daemon: DaemonProcess) -> Iterator[None]:
    path, settings = daemon.folder / "tls.pem", dict(daemon.settings)
    path.write_text("no certificate")
    daemon.settings |= {"CONTROL_TLS_CERT": path, "CONTROL_TLS_KEY": path}
    yield
    daemon.settings = settings


def known_to_all(path: Path) -> None:
    path.write_text("a-token-that-a-stranger-knows\n")
    path.chmod(0o644)


def linked(path: Path) -> None:
    (path.parent / "elsewhere").touch()
    path.symlink_to(path.parent / "elsewhere")


OBSTACLES: dict[Obstacle, str] = {
    taken_control_port: "CONTROL_PORT={CONTROL_PORT} is taken: pid",
    stray_on_the_public_port: "PUBLIC_PORT={PUBLIC_PORT} is taken: pid",
    stray_on_an_own_port: "STAGING_PORT={STAGING_PORT} is taken: pid",
    in_place_of("control.token", Path.touch): "has 0 characters",
    in_place_of("control.token", os.mkfifo): "control.token: it is not a regular file; remove it",
    in_place_of("control.token", Path.mkdir): "control.token is a folder",
    in_place_of("supervisor.sock", Path.touch): "supervisor.sock exists and is not a socket",
    in_place_of("supervisor.lock", Path.mkdir): "supervisor.lock can't be opened",
    in_place_of("supervisor.lock", os.mkfifo): "supervisor.lock: it is not a regular file",
    in_place_of(".deploy_state.json.new", Path.mkdir): "deploy_state.json can't be written",
    in_place_of("logs/supervisor.jsonl", os.mkfifo): "supervisor.jsonl: it is not a regular file",
    in_place_of("logs", Path.touch): "can't be used",
    in_place_of("control.token", known_to_all): "control.token is open to every user",
    in_place_of("supervisor.lock", linked): "supervisor.lock is a link",
    in_place_of("logs/worker-blue.log", os.mkfifo): "worker-blue.log: it is not a regular file",
    in_place_of("atlas.db", Path.mkdir): "atlas.db can't be opened",
    in_place_of("atlas.db", os.mkfifo): "atlas.db: it is not a regular file",
    locked_database: "database is locked",
    bad_certificate: "CONTROL_TLS_CERT",
}


@pytest.mark.fault("The daemon", "a start that is refused", "no process is touched")
async def test_every_refusal_comes_before_the_first_process_is_touched(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        before = await worker_pid(daemon)
        await daemon.kill()
        for obstacle, message in OBSTACLES.items():
            with obstacle(daemon):
                printed = await refused(daemon)
            assert message.format(**daemon.settings) in printed
            assert "Traceback" not in printed, printed
            assert await worker_pid(daemon) == before, message
        await daemon.start()


async def test_workers_that_are_in_the_way_of_another_state_folder_name_their_own(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        before, own = await worker_pid(daemon), daemon.state_dir
        await daemon.kill()
        daemon.settings["STATE_DIR"] = tmp_path / "elsewhere"
        printed = await refused(daemon)
        assert f"PUBLIC_PORT={daemon.public_port} is taken: " in printed
        assert f"it belongs to the supervisor with STATE_DIR={own}. Stop it, or" in printed
        assert await worker_pid(daemon) == before
        daemon.settings["STATE_DIR"] = own
        await daemon.start()
        assert await worker_pid(daemon) == before


@pytest.mark.needs_root
async def test_a_folder_of_another_user_is_refused_and_the_worker_goes_on(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        before = await worker_pid(daemon)
        await daemon.kill()
        os.chown(daemon.state_dir, 65534, 65534)
        printed = await refused(daemon)
        assert "belongs to uid 65534" in printed
        assert "Traceback" not in printed, printed
        assert await worker_pid(daemon) == before
        os.chown(daemon.state_dir, 0, 0)
        await daemon.start()


async def test_too_few_descriptors_are_refused_in_words_and_the_worker_goes_on(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        before = await worker_pid(daemon)
        await daemon.kill()
        limited = (
            "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64));"
            "runpy.run_module('atlas_supervisor', run_name='__main__', alter_sys=True)"
        )
        daemon.code = limited
        printed = await refused(daemon)
        assert "the limit of open files is 64" in printed
        assert "Traceback" not in printed
        assert await worker_pid(daemon) == before
        daemon.code = None
        await daemon.start()


@pytest.mark.needs_root
@pytest.mark.fault(
    "Disk and files", "a full disk at a start", "the start is refused, and the worker goes on"
)
async def test_a_start_on_a_full_disk_is_refused_and_the_worker_goes_on(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=8m") as disk:
        settings: dict[str, Setting] = {"STATE_DIR": disk / "state"}
        daemon = DaemonProcess(tmp_path, {**settings, "WORKER_COMMAND": SCRIPTED})
        daemon.state_dir = disk / "state"
        try:
            await daemon.start()
            before = await worker_pid(daemon)
            await daemon.kill()
            filler = fill(disk)
            printed = await refused(daemon)
            assert "disk" in printed or "No space left" in printed
            assert "Traceback" not in printed
            assert await worker_pid(daemon) == before
            filler.unlink()
            await daemon.start()
            await invariants_hold(daemon)
            await daemon.stop()
        finally:
            await daemon.clean_up()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
async def test_a_state_file_that_is_no_file_is_set_aside_and_rebuilt(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        await daemon.kill()
        (daemon.state_dir / "deploy_state.json").unlink()
        make(daemon.state_dir / "deploy_state.json")
        await daemon.start()
        assert len(list(daemon.state_dir.glob("deploy_state.json.unreadable-*"))) == 1
        await eventually(lambda: len(daemon.leftovers()) == 1)


async def test_the_workers_of_a_living_supervisor_are_no_orphans(tmp_path: Path) -> None:
    """Also where its folder was moved away, or copied to try an upgrade."""
    async with scripted_daemon(tmp_path) as daemon:
        before = await worker_pid(daemon)
        second = DaemonProcess(tmp_path / "second")
        moved = tmp_path / "moved"
        daemon.state_dir.rename(moved)
        settings = {**daemon.settings, "CONTROL_PORT": 0}
        second.settings, second.state_dir = settings, daemon.state_dir
        try:
            for _ in range(5):
                printed = await refused(second)
                if "deploy_state.json" not in printed:
                    break  # else both were about to write their state file there
            assert f"PUBLIC_PORT={daemon.public_port} is taken: pid {daemon.pid} " in printed
            assert await worker_pid(daemon) == before
        finally:
            while daemon.state_dir.exists():  # the daemon writes its state file there meanwhile
                shutil.rmtree(daemon.state_dir, ignore_errors=True)
            moved.rename(daemon.state_dir)

        tried = DaemonProcess(tmp_path / "tried")
        shutil.copytree(daemon.state_dir, tried.state_dir, ignore=shutil.ignore_patterns("*.sock"))
        tried.settings["WORKER_COMMAND"] = daemon.settings["WORKER_COMMAND"]
        try:
            await tried.start()
            assert await worker_pid(daemon) == before
            assert await worker_pid(tried) != before
            await tried.stop()
        finally:
            await tried.clean_up()
        assert await worker_pid(daemon) == before
