"""The end of processes that are not our children, and which process a pid belongs to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import anyio
import pytest

from atlas_supervisor.system import procfs
from atlas_supervisor.system.pidfd import ForeignProcess
from atlas_supervisor.system.procfs import ProcessIdentity
from tests.unit.supervisor.traffic.support import open_files

PARENT = """
import subprocess, sys
print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def grandchild() -> Iterator[int]:
    """Run a process whose parent does not wait for it."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            yield pid
        finally:
            os.kill(pid, signal.SIGKILL)


def shell(script: str) -> int:
    return os.posix_spawn("/bin/sh", ["sh", "-c", script], os.environ)


async def ended(process: ForeignProcess) -> int | None:
    with anyio.fail_after(5):
        await process.wait()
    return process.returncode


async def test_the_status_of_a_process_that_its_parent_has_not_reaped_is_known() -> None:
    with grandchild() as pid:
        process = ForeignProcess(pid)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == -signal.SIGTERM
        assert procfs.zombie(pid) is not None  # it is its parent's to reap


async def test_the_status_of_one_that_was_reaped_is_unknown_and_not_made_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(procfs, "exit_status", lambda _pid: None)
    with grandchild() as pid:
        process = ForeignProcess(pid)
        process.send_signal(signal.SIGKILL)
        assert await ended(process) is None
        process.send_signal(signal.SIGKILL)  # it has ended: nothing is signalled


@pytest.mark.parametrize("code", [0, 3, -signal.SIGKILL])
async def test_a_child_from_before_a_reload_is_reaped_with_its_status(code: int) -> None:
    pid = shell(f"sleep 0.1; exit {max(code, 0)}")
    process = ForeignProcess(pid)
    if code < 0:
        os.kill(pid, -code)
    assert await ended(process) == code
    assert procfs.start_ticks(pid) is None


async def test_a_pid_that_belongs_to_another_process_by_now_is_refused() -> None:
    with grandchild() as pid:
        identity = ProcessIdentity.of(pid)
        assert identity is not None
        before = open_files()
        for other in (
            replace(identity, start_ticks=identity.start_ticks - 1),
            replace(identity, boot_id="another boot"),
        ):
            with pytest.raises(ProcessLookupError):
                ForeignProcess(pid, other)
        assert open_files() == before
        ForeignProcess(pid, identity).send_signal(0)
