from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import pytest

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.model.life import Life
from atlas_supervisor.model.release import Release
from atlas_supervisor.store.database import open_database
from atlas_supervisor.system import procfs
from atlas_supervisor.system.clock import now
from atlas_supervisor.system.procfs import inode_of
from atlas_supervisor.traffic.listeners import listen
from atlas_supervisor.workers import registry
from atlas_supervisor.workers.registry import InstanceRow, WorkerRegistry, end_survivors
from tests.unit.supervisor.workers.support import DEAF

WAIT = "print('so far', flush=True)\nimport time\ntime.sleep(600)\n"


@contextmanager
def worker(
    code: str = "", inherits: socket.socket | None = None, /, **environ: str
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", code + WAIT],
        env=environ,
        pass_fds=[inherits.fileno()] if inherits else [],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "so far\n"
            yield process
        finally:
            process.kill()


def row(pid: int, *, start_ticks: int | None = None, boot_id: str | None = None) -> InstanceRow:
    return InstanceRow(
        "blue-1",
        "blue",
        pid,
        procfs.start_ticks(pid) or 0 if start_ticks is None else start_ticks,
        boot_id or procfs.boot_id(),
    )


def of_a_worker(state_dir: object) -> dict[str, str]:
    """Return the variables of a worker of this folder that matter here."""
    return {"ATLAS_STATE_DIR": str(state_dir), "ATLAS_INSTANCE": "blue-0123456789abcdef"}


async def test_recorded_workers_come_back_as_written(tmp_path: Path) -> None:
    release = Release(name="r1", path=tmp_path, version="1", recorded_version="0")
    life = Life(release=release, started_ts=now(), port=8791, restarts=3, draining_ts=now())
    one = InstanceRow("blue-1", "blue", 12, 34, "boot", kit=True, life=life)
    async with open_database(tmp_path / "atlas.db") as (database, _):
        workers = WorkerRegistry(database.statements)
        await workers.add(one)
        assert await workers.rows() == [one]
        await workers.add(one._replace(life=None))  # as an earlier version has left it
        assert await workers.rows() == [one._replace(life=None)]
        await workers.remove("blue-1")
        await workers.remove("never-there")
        assert await workers.rows() == []


async def test_without_leftovers_nothing_is_done(tmp_path: Path) -> None:
    assert await end_survivors(tmp_path, [], seconds=1) == 0


async def test_workers_of_this_state_folder_are_ended_and_no_others(tmp_path: Path) -> None:
    ours = of_a_worker(tmp_path)
    with (
        worker(**ours) as one,
        worker(DEAF, **ours) as deaf,
        worker(**of_a_worker(f"{tmp_path}2")) as other,
        worker(ATLAS_STATE_DIR=str(tmp_path)) as caller,  # it may report canary calls, no more
    ):
        assert await end_survivors(tmp_path, [], seconds=0.3) == 2
        assert one.wait(5) == -signal.SIGTERM
        assert deaf.wait(5) == -signal.SIGKILL
        assert other.poll() is None
        assert caller.poll() is None


async def test_a_worker_that_overwrote_its_environment_is_found_by_its_record(
    tmp_path: Path,
) -> None:
    with worker() as known, worker() as other:
        assert await end_survivors(tmp_path, [row(known.pid)], seconds=5) == 1
        assert known.wait(5) == -signal.SIGTERM
        assert other.poll() is None


async def test_a_process_without_any_mark_is_found_by_the_listener_that_it_holds(
    tmp_path: Path,
) -> None:
    with listen("127.0.0.1", 0) as ours, listen("127.0.0.1", 0) as theirs:
        both = (inode_of(ours), inode_of(theirs))
        assert procfs.own_listeners() >= set(both)
        with worker("", ours) as holder, worker("", theirs) as other:
            assert await end_survivors(tmp_path, [], both[:1], seconds=5) == 1
            assert holder.wait(5) == -signal.SIGTERM
            assert other.poll() is None


async def test_recorded_listeners_are_those_of_the_last_daemon(tmp_path: Path) -> None:
    async with open_database(tmp_path / "atlas.db") as (database, _):
        workers = WorkerRegistry(database.statements)
        for _ in range(2):
            with listen("127.0.0.1", 0) as sock:
                workers.listening()
                await workers.flush()
                assert inode_of(sock) in await workers.listeners()
        workers.listening()
        await workers.flush()
        assert await workers.listeners() == procfs.own_listeners()


async def test_a_worker_with_the_kit_gets_SIGTERM_and_another_one_STOP_SIGNAL(
    tmp_path: Path,
) -> None:
    with worker() as kit, worker() as foreign:
        rows = [row(kit.pid)._replace(kit=True), row(foreign.pid)._replace(instance="green-1")]
        found = await end_survivors(tmp_path, rows, seconds=5, stop_signal=signal.SIGQUIT)
        assert found == 2
        assert (kit.wait(5), foreign.wait(5)) == (-signal.SIGTERM, -signal.SIGQUIT)


@pytest.mark.parametrize("pid", [0, 1, -1])
@pytest.mark.fault("Clock and machine", "pid 0, 1 or -1 in a record", "it is ignored")
async def test_a_record_without_a_process_is_ignored(tmp_path: Path, pid: int) -> None:
    assert await end_survivors(tmp_path, [row(pid, start_ticks=0)], seconds=1) == 0


@pytest.mark.fault(
    "Clock and machine",
    "a pid that is used again, or of another boot",
    "that process is left alone",
)
async def test_a_reused_pid_is_left_alone(tmp_path: Path) -> None:
    with worker() as other:
        ticks = procfs.start_ticks(other.pid)
        assert ticks is not None
        rows = [
            row(other.pid, start_ticks=ticks - 1),
            row(other.pid, boot_id="another boot"),
        ]
        assert await end_survivors(tmp_path, rows, seconds=1) == 0
        assert other.poll() is None


async def test_the_daemon_and_its_ancestors_are_spared(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from atlas_supervisor.workers.registry import end_survivors\n"
        "print(asyncio.run(end_survivors(Path(sys.argv[1]), [], seconds=1)))\n"
    )
    shell = 'true; "$@"; true'  # the shell stays: it is started with the same environment
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", shell, "sh", sys.executable, "-c", code, str(tmp_path)),
        env={**os.environ, **of_a_worker(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert output.splitlines()[-1] == b"0"
    assert process.returncode == 0


async def test_a_worker_that_cannot_be_ended_refuses_the_start_with_its_pid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_KILL_SECONDS", 0.2)
    monkeypatch.setattr(procfs, "send_signal", lambda _pids, _number: None)  # as another uid's
    with (
        worker(**of_a_worker(tmp_path)) as stuck,
        pytest.raises(StartRefusedError, match=f"pid {stuck.pid} "),
    ):
        with anyio.fail_after(5):
            await end_survivors(tmp_path, [], seconds=0.1)


async def test_many_are_ended_together(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(worker(**of_a_worker(tmp_path)))
        with anyio.fail_after(10):
            assert await end_survivors(tmp_path, [], seconds=8) == 5
