"""Standard streams that can't be written: full, closed, left by their reader, non-blocking."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_supervisor.output import Output, is_lost

LAUNCHER = Path(__file__).parents[3] / "scripts/service_launcher.py"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError as error:
            assert error.errno == errno.EBADF  # noqa: PT017  # the test has closed it


def test_a_full_disk_is_remembered_and_raises_nothing() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        stream = Output(full, sys.stdout)
        stream.write("ü" * 100_000)
        stream.flush()
        stream.buffer.write(b"more")
        stream.flush()
        assert stream.fault is not None
        assert stream.fault.errno == errno.ENOSPC
        assert is_lost(stream)
    finally:
        os.close(full)


def test_a_reader_that_left_is_remembered(pipe: tuple[int, int]) -> None:
    read, write = pipe
    stream = Output(write, sys.stdout)
    stream.write("first\n")
    stream.flush()
    assert not is_lost(stream)
    assert os.read(read, 100) == b"first\n"
    os.close(read)
    stream.write("second\n")
    stream.flush()
    assert stream.fault is not None
    assert stream.fault.errno == errno.EPIPE


def test_a_stream_that_was_closed_at_the_start_fails_at_its_first_text(
    pipe: tuple[int, int],
) -> None:
    stream = Output(pipe[1], None)
    stream.flush()
    assert not is_lost(stream)
    stream.write("text")
    stream.flush()
    assert is_lost(stream)


def test_a_non_blocking_pipe_gets_everything(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.set_blocking(write, False)
    stream, text = Output(write, sys.stdout), b"x" * 300_000  # more than a pipe holds

    def fill() -> None:
        stream.buffer.write(text)
        stream.flush()

    writer = threading.Thread(target=fill)
    writer.start()
    arrived = b""
    while len(arrived) < len(text):
        arrived += os.read(read, 65536)
    writer.join()
    assert arrived == text
    assert not is_lost(stream)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_service_launcher_starts_its_worker_whatever_standard_error_is(
    tmp_path: Path, redirection: str
) -> None:
    env_file = tmp_path / "atlas.env"
    done = tmp_path / "done"
    env_file.write_text(f"SMOKE_FILE=\nACTIVE_PORT=1\nWORKER_COMMAND=touch {done} {{port}}\n")
    program = shlex.join((sys.executable, str(LAUNCHER), "--env-file", str(env_file)))
    command = f"exec {program} {redirection}"
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False, timeout=30)
    assert ended.returncode == 0
    assert done.exists()


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        (">/dev/full", "standard output can't be written (No space left on device)"),
        (">&-", "standard output can't be written (it is closed)"),
    ],
)
def test_check_has_its_own_exit_status_where_nothing_can_be_printed(
    tmp_path: Path, redirection: str, said: str
) -> None:
    env_file = tmp_path / "atlas.env"
    program = (sys.executable, "-m", "atlas_supervisor", "--check", "--env-file", str(env_file))
    check = f"exec {shlex.join(program)} {redirection}"
    for settings, status in (("SMOKE_FILE=\n", 0), ("SMOKE_FILE=\nNO_KEY=1\n", 2)):
        env_file.write_text(settings)
        ended = subprocess.run(
            ["bash", "-c", check], stderr=subprocess.PIPE, text=True, check=False
        )
        assert ended.returncode == status
        assert (said in ended.stderr) is (status == 0)  # a refusal prints on standard error alone
        assert "Traceback" not in ended.stderr
