"""What a release starts belongs to it, whatever those processes say of themselves.

The one here is forked twice, has a session of its own, another title and an empty environment, and
serves on the sockets of its slot: as gunicorn with `daemon=True`, or nginx with `daemon on`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from atlas_supervisor.system import procfs
from tests.harness import DaemonProcess, eventually
from tests.integration.support import (
    SCRIPTED,
    everything_agrees,
    public_version,
    release,
    scripted_daemon,
)


def alone(daemon: DaemonProcess) -> int:
    """Return the process that runs on its own."""
    return int((daemon.worker_directory / "alone").read_text())


def is_there(pid: int) -> bool:
    return procfs.start_ticks(pid) is not None and procfs.zombie(pid) is None


async def test_a_release_that_leaves_its_process_to_another_one_is_refused_and_cleared_away(
    tmp_path: Path,
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2", alone="instead")
        refused = await daemon.deploy()
        assert (refused.status, refused.json["result"]) == (422, "failed")
        assert refused.json["reason"].endswith("and must stay in the foreground")
        assert not is_there(alone(daemon))
        for _ in range(10):
            assert await public_version(daemon) == "v1"
        await everything_agrees(daemon)


@pytest.mark.fault(
    "Workers", "double-forked descendants without a mark", "they end with their release"
)
async def test_a_process_without_any_mark_goes_with_the_release_whose_listener_it_has(
    tmp_path: Path,
) -> None:
    """With tag, session, environment and parents gone, it is found by the slot's own socket."""
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2")
        stray = f"(setsid env -i sleep 300 & echo $! > {tmp_path}/stray)"
        script = f"prlimit -p $$ --locks=7\n[ -e {tmp_path}/stray ] || {stray} & exec {SCRIPTED}"
        daemon.settings["WORKER_COMMAND"] = wrapped(tmp_path, script)
        await daemon.stop()
        await daemon.start()
        await eventually((tmp_path / "stray").exists)
        stray_pid = int((tmp_path / "stray").read_text())
        assert is_there(stray_pid)
        assert (await daemon.deploy()).json["result"] == "switched"
        await eventually(lambda: not is_there(stray_pid))
        await everything_agrees(daemon)


async def test_a_process_beside_the_worker_goes_with_it(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2", alone="beside")
        assert (await daemon.deploy()).json["result"] == "switched"
        beside = alone(daemon)
        assert is_there(beside)
        release(daemon, "v3")
        assert (await daemon.deploy()).json["result"] == "switched"
        await eventually(lambda: not is_there(beside))
        assert await public_version(daemon) == "v3"


async def test_a_stop_leaves_no_process_with_the_public_listener(tmp_path: Path) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2", alone="beside")
        assert (await daemon.deploy()).json["result"] == "switched"
        beside = alone(daemon)
        await daemon.stop()
        assert not is_there(beside)
        release(daemon, "v3")
        await daemon.start()
        assert await public_version(daemon) == "v3"


@pytest.mark.fault("Workers", "descendants of a worker that died", "a stop ends them")
async def test_a_stop_ends_what_a_worker_started_before_it_died(tmp_path: Path) -> None:
    """Also one without the tag: it became the daemon's own child when its parent ended."""
    async with scripted_daemon(tmp_path) as daemon:
        script = f"(setsid env -i sleep 300 & echo $! > {tmp_path}/stray) & exec {SCRIPTED}"
        daemon.settings["WORKER_COMMAND"] = wrapped(tmp_path, f"prlimit -p $$ --locks=7\n{script}")
        await daemon.stop()
        await daemon.start()
        await eventually((tmp_path / "stray").exists)
        stray = int((tmp_path / "stray").read_text())
        assert procfs.parent(stray) == daemon.pid
        await daemon.stop()
        assert not is_there(stray)
        await daemon.start()


def wrapped(folder: Path, script: str) -> str:
    """Return the worker command that runs a shell script."""
    path = folder / "run.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


async def test_the_next_daemon_ends_a_process_without_any_mark_that_holds_the_public_listener(
    tmp_path: Path,
) -> None:
    """It left tag, session, environment and parents behind; daemon and worker were killed."""
    async with scripted_daemon(tmp_path) as daemon:
        script = f"(setsid env -i sleep 300 & echo $! > {tmp_path}/stray) & exec {SCRIPTED}"
        command = daemon.settings["WORKER_COMMAND"]
        daemon.settings["WORKER_COMMAND"] = wrapped(tmp_path, f"prlimit -p $$ --locks=7\n{script}")
        await daemon.stop()
        await daemon.start()
        await eventually((tmp_path / "stray").exists)
        stray, workers = int((tmp_path / "stray").read_text()), daemon.leftovers()
        await daemon.kill()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        daemon.settings["WORKER_COMMAND"] = command
        assert is_there(stray)
        await daemon.start()
        await eventually(lambda: not is_there(stray))
        await everything_agrees(daemon)


@pytest.mark.parametrize("killed", ["daemon", "daemon and worker"])
async def test_the_next_daemon_starts_though_such_a_process_holds_the_public_listener(
    tmp_path: Path, killed: str
) -> None:
    async with scripted_daemon(tmp_path) as daemon:
        release(daemon, "v2", alone="beside")
        assert (await daemon.deploy()).json["result"] == "switched"
        beside, worker = alone(daemon), daemon.leftovers()
        await daemon.kill()
        if killed == "daemon and worker":
            for pid in worker:
                os.kill(pid, signal.SIGKILL)
        release(daemon, "v3")
        await daemon.start()
        if killed == "daemon":  # its worker goes on, and so does what belongs to it
            assert is_there(beside)
            assert (await daemon.deploy()).json["result"] == "switched"
        await eventually(lambda: not is_there(beside))
        await everything_agrees(daemon)


@pytest.mark.needs_root
async def test_as_pid_1_the_daemon_reaps_what_it_inherits(tmp_path: Path) -> None:
    container = (
        "import os, sys; os.execvp('unshare', ['unshare', '-p', '-f', '--mount-proc', "
        "'--kill-child', sys.executable, '-m', 'atlas_supervisor', *sys.argv[1:]])"
    )
    command = wrapped(tmp_path, f"(while :; do (true &); sleep 0.05; done) & exec {SCRIPTED}")
    daemon = DaemonProcess(tmp_path, {"WORKER_COMMAND": command}, program=("-c", container))
    try:
        await daemon.start()
        (first,) = procfs.children(daemon.pid)
        for _ in range(4):
            assert await public_version(daemon) == "v1"
        reaped: set[int] = set()

        def inherited() -> bool:
            reaped.update(pid for pid in procfs.children(first) if procfs.zombie(pid))
            return len(reaped) > 20

        await eventually(inherited)  # so many have ended without a parent
        await eventually(lambda: not any(map(procfs.zombie, reaped)))
        os.kill(first, signal.SIGTERM)
        assert daemon.process is not None
        await daemon.process.wait()
        assert daemon.leftovers() == []
    finally:
        await daemon.clean_up()
