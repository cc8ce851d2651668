"""The harness itself: what the other tests trust without looking."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests.harness import (
    PROGRAM,
    DaemonProcess,
    eventually,
    free_ports,
    processes_with,
    write_release,
)
from tests.integration.support import SCRIPTED, slot


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))


async def test_a_process_left_over_is_found_by_its_environment(tmp_path: Path) -> None:
    environment = {**os.environ, "ATLAS_STATE_DIR": str(tmp_path)}
    program = (sys.executable, "-c", "input()")
    process = await asyncio.create_subprocess_exec(
        *program, env=environment, stdin=asyncio.subprocess.PIPE
    )
    await eventually(lambda: processes_with("ATLAS_STATE_DIR", str(tmp_path)) == [process.pid])
    assert processes_with("ATLAS_STATE_DIR", str(tmp_path / "other")) == []
    await process.communicate(b"\n")
    assert processes_with("ATLAS_STATE_DIR", str(tmp_path)) == []


async def test_waiting_for_what_never_happens_fails_in_words() -> None:
    with pytest.raises(AssertionError, match="rain in the desert"):
        await eventually(lambda: False, within=0.05, what="rain in the desert")


def test_a_release_is_its_version_and_its_files(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "r" / "1.0", "1.0", {"lib/a.txt": "a"})
    assert (folder / "VERSION").read_text() == "1.0\n"
    assert (folder / "lib" / "a.txt").read_text() == "a"


@dataclass(frozen=True)
class Standing:
    """Where a daemon stands in the system, as the kernel has it."""

    leads_session: bool
    leads_group: bool
    folder: str
    signals: list[str]
    worker_signals: list[str]
    limits: str
    streams: list[str]
    worker_environment: set[str]


def open_files(pid: int) -> dict[int, str]:
    """Return what a process has open, by descriptor; of sockets and pipes that is a number."""
    found = {}
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[int(each.name)] = str(each.readlink())
    return found


def standing(daemon: DaemonProcess, worker: int) -> Standing:
    """Return how it stands, without what differs from one run to the next."""
    proc = Path("/proc") / str(daemon.pid)
    environment = Path(f"/proc/{worker}/environ").read_bytes().decode().split("\0")
    files = open_files(daemon.pid)
    return Standing(
        leads_session=os.getsid(daemon.pid) == daemon.pid,
        leads_group=os.getpgid(daemon.pid) == daemon.pid,
        folder=str((proc / "cwd").readlink().relative_to(daemon.folder)),
        signals=re.findall(r"Sig(?:Ign|Cgt):\s*\w+", (proc / "status").read_text()),
        # The daemon's own mask is another one in the moments in which it starts a process.
        worker_signals=re.findall(
            r"Sig(?:Blk|Ign|Cgt):\s*\w+", Path(f"/proc/{worker}/status").read_text()
        ),
        limits=(proc / "limits").read_text(),
        streams=[files[number].replace(str(daemon.folder), "") for number in range(3)],
        worker_environment={each.partition("=")[0] for each in environment},
    )


async def started(folder: Path, program: Sequence[str] | None) -> tuple[Standing, int | None]:
    """Start a daemon and stop it; return how it stood and its exit status."""
    async with DaemonProcess.running(
        folder, {"WORKER_COMMAND": SCRIPTED}, program=program
    ) as daemon:
        found = standing(daemon, slot(await daemon.status(), "active")["pid"])
        process = daemon.process
        assert process is not None
        await daemon.stop()
        status = process.returncode
        await daemon.start()
    return found, status


async def test_a_forked_daemon_stands_as_one_that_python_starts(tmp_path: Path) -> None:
    assert DaemonProcess.fork_server is not None
    real, status = await started(tmp_path / "real", PROGRAM)
    forked = await started(tmp_path / "forked", None)
    assert asdict(forked[0]) == asdict(real)
    assert forked[1] == status == 0
    assert real.leads_session


async def test_a_forked_daemon_that_is_killed_is_reported_and_reaped(tmp_path: Path) -> None:
    async with DaemonProcess.running(tmp_path, {"WORKER_COMMAND": SCRIPTED}) as daemon:
        process, pid = daemon.process, daemon.pid
        assert process is not None
        await daemon.kill()
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)  # not even as a zombie
        with pytest.raises(ProcessLookupError):
            process.kill()
        await daemon.start()


async def test_a_forked_daemon_that_refuses_to_start_says_why_and_with_which_status(
    tmp_path: Path,
) -> None:
    daemon = DaemonProcess(tmp_path, {"ACTIVE_PORT": "none"})
    with pytest.raises(AssertionError, match="ended with 2"):
        await daemon.start()
    assert "ACTIVE_PORT" in (tmp_path / "daemon.out").read_text()
    await daemon.clean_up()


async def test_forked_daemons_share_no_file_with_each_other_or_the_server(tmp_path: Path) -> None:
    settings = {"WORKER_COMMAND": SCRIPTED}
    async with (
        DaemonProcess.running(tmp_path / "one", settings) as one,
        DaemonProcess.running(tmp_path / "two", settings) as two,
    ):
        assert DaemonProcess.fork_server is not None
        server = DaemonProcess.fork_server.pid
        held = [set(open_files(pid).values()) for pid in (server, one.pid, two.pid)]
        for each, other in itertools.combinations(held, 2):
            shared = (name for name in each & other if "[" in name or str(tmp_path) in name)
            assert [name for name in shared if not name.startswith("anon_inode:")] == []
