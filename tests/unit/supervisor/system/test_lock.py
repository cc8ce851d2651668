from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atlas_supervisor.errors import StartRefusedError
from atlas_supervisor.system.lock import only_daemon

HOLD = """
import sys
from pathlib import Path
from atlas_supervisor.system.lock import only_daemon
with only_daemon(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_daemon(path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.lock"
    with another_daemon(path) as first:
        refused = pytest.raises(StartRefusedError, match=rf"pid {first.pid} \(.* holds {path}")
        with refused, only_daemon(path):
            pass
        assert path.read_text() == f"{first.pid}\n"


def test_the_lock_is_free_after_any_end_of_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.lock"
    with another_daemon(path) as first:
        first.kill()
        first.wait()
        with only_daemon(path):
            pass
    with only_daemon(path):
        pass


def test_a_child_does_not_hold_on_to_it(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.lock"
    with only_daemon(path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with only_daemon(path):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe", b"-1\n", b"9" * 100])
def test_only_the_lock_counts_and_not_the_content_of_its_file(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "supervisor.lock"
    path.write_bytes(content)
    with only_daemon(path):
        path.write_bytes(content)
        refused = pytest.raises(StartRefusedError, match="another supervisor runs")
        with refused, only_daemon(path):
            pass


def test_a_place_that_cannot_be_locked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefusedError, match="can't be opened"), only_daemon(tmp_path):
        pass


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "supervisor.lock"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    refused = pytest.raises(StartRefusedError, match=rf"^{path} can't be written: No space")
    with refused, only_daemon(path):
        pass
